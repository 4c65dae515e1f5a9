// SPDX-License-Identifier: Apache-2.0
// gate: every backend against the f64 reference, and the reference against finite differences.
#include <gtest/gtest.h>

#include <optional>

#include "support/backends.h"
#include "support/close.h"
#include "support/random.h"
#include "support/strided.h"

namespace mamba::test {
namespace {

struct Case {
  int64_t rows, dim, gap = 0;
  bool alias = false;  // y is a, da is dy
};

constexpr double kMaxZ = 8, kMaxA = 2;

struct Inputs {
  std::vector<double> a, z, dy;
  Inputs(const Case& c, uint64_t seed) {
    Random random(seed);
    a = random.vector(c.rows * c.dim, -kMaxA, kMaxA);
    z = random.vector(c.rows * c.dim, -kMaxZ, kMaxZ);
    dy = random.vector(c.rows * c.dim, -1, 1);
  }
};

template <class T>
struct Outputs {
  std::vector<T> y, da, dz;
};

Outputs<double> reference(const Case& c, const Inputs& in) {
  const std::vector<double> empty(in.a.size());
  Outputs<double> out{empty, empty, empty};
  GateArgs f{};
  f.rows = c.rows, f.dim = c.dim;
  f.a = in.a.data(), f.z = in.z.data(), f.y = out.y.data();
  f.a_stride = f.z_stride = f.y_stride = c.dim;
  GateBackwardArgs b{};
  b.rows = c.rows, b.dim = c.dim;
  b.a = in.a.data(), b.z = in.z.data(), b.dy = in.dy.data();
  b.da = out.da.data(), b.dz = out.dz.data();
  b.a_stride = b.z_stride = b.dy_stride = b.da_stride = b.dz_stride = c.dim;
  Stream stream;
  ref_kernels().gate_forward(stream, f);
  ref_kernels().gate_backward(stream, b);
  return out;
}

Outputs<float> run(Device& device, const Case& c, const Inputs& in) {
  const int64_t stride = c.dim + c.gap;
  StridedRows a(c.rows, c.dim, stride, 1, in.a), z(c.rows, c.dim, stride + 1, 2, in.z);
  StridedRows y(c.rows, c.dim, stride + 2, 3), dy(c.rows, c.dim, stride + 3, 2, in.dy);
  StridedRows da(c.rows, c.dim, stride + 1, 1), dz(c.rows, c.dim, stride, 3);
  GateBackwardArgs b{};
  b.rows = c.rows, b.dim = c.dim;
  b.a = a.data(), b.a_stride = a.stride();
  b.z = z.data(), b.z_stride = z.stride();
  b.dy = dy.data(), b.dy_stride = dy.stride();
  StridedRows& da_out = c.alias ? dy : da;
  b.da = da_out.data(), b.da_stride = da_out.stride();
  b.dz = dz.data(), b.dz_stride = dz.stride();
  device.kernels().gate_backward(device.stream(), b);
  GateArgs f{};
  f.rows = c.rows, f.dim = c.dim;
  f.a = a.data(), f.a_stride = a.stride();
  f.z = z.data(), f.z_stride = z.stride();
  StridedRows& y_out = c.alias ? a : y;
  f.y = y_out.data(), f.y_stride = y_out.stride();
  device.kernels().gate_forward(device.stream(), f);
  device.sync();
  for (const StridedRows* s : {&a, &z, &y, &dy, &da, &dz}) EXPECT_TRUE(s->intact());
  return {y_out.values(), da_out.values(), dz.values()};
}

TEST(Gate, EveryBackendIsTheReference) {
  std::vector<Case> list;
  for (int64_t dim : {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100}) {
    list.push_back({dim % 3 + 1, dim});
  }
  for (const Case& c : {Case{4, 37, 5}, Case{4, 37, 0, true}, Case{3, 37, 2, true}, Case{0, 9},
                        Case{37, 1536, 1536}}) {
    list.push_back(c);
  }
  for_each_backend([&](Device& device) {
    for (const Case& c : list) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << " gap " << c.gap);
      const Inputs in(c, 1);
      const Outputs<double> want = reference(c, in);
      const Outputs<float> got = run(device, c, in);
      // exp is good to 4 roundings, the sigmoid to 6, two products add 2.
      EXPECT_TRUE(close(got.y, want.y, 0, 12 * kRounding));
      EXPECT_TRUE(close(got.da, want.da, 0, 12 * kRounding));
      // silu'(z) <= 1.1 is a sum in which 1 - s is good to a rounding of 1, times |z|.
      EXPECT_TRUE(close(got.dz, want.dz, (16 + kMaxZ) * kRounding * 1.1 * kMaxA, 0));
    }
  });
}

TEST(Gate, LargeGatesNeitherOverflowNorBecomeNaN) {
  for_each_backend([](Device& device) {
    const Case c{1, 9};
    Inputs in(c, 2);
    in.z = {-1e4, -1000, -100, -88, 0, 88, 100, 1000, 1e4};
    const Outputs<double> want = reference(c, in);
    const Outputs<float> got = run(device, c, in);
    // The exponential saturates at 2e38, so the sigmoid of -1e4 is 5e-39 instead of 0.
    EXPECT_TRUE(close(got.y, want.y, 1e-33, 12 * kRounding));
    EXPECT_TRUE(close(got.da, want.da, 1e-33, 12 * kRounding));
    EXPECT_TRUE(close(got.dz, want.dz, 1e-33, 12 * kRounding));
  });
}

TEST(Gate, ReferenceBackwardIsTheFiniteDifference) {
  const Case c{3, 7};
  Inputs in(c, 3);
  const Outputs<double> got = reference(c, in);
  const auto loss = [&] { return dot(reference(c, in).y, in.dy); };
  // The loss is below 100, the differences are good to 1e-12 of it.
  EXPECT_TRUE(close(got.da, numeric_gradient(in.a, loss), 1e-9, 0));
  EXPECT_TRUE(close(got.dz, numeric_gradient(in.z, loss), 1e-9, 0));
}

TEST(Gate, ResultsDoNotDependOnThreadsOrRuns) {
  const Case c{130, 515};  // large enough for a parallel region
  const Inputs in(c, 4);
  std::optional<Outputs<float>> first;
  for (int threads : {1, 2, 3, 2}) {
    std::unique_ptr<Device> device = Device::create({"cpu", threads});
    const Outputs<float> o = run(*device, c, in);
    if (!first) first = o;
    EXPECT_TRUE(same_bits(o.y.data(), first->y.data(), c.rows * c.dim));
    EXPECT_TRUE(same_bits(o.da.data(), first->da.data(), c.rows * c.dim));
    EXPECT_TRUE(same_bits(o.dz.data(), first->dz.data(), c.rows * c.dim));
  }
}

}  // namespace
}  // namespace mamba::test
