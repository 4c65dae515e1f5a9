// SPDX-License-Identifier: Apache-2.0
// gated_norm: every backend against the f64 reference, and the reference against finite
// differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>

#include "support/backends.h"
#include "support/close.h"
#include "support/half_rows.h"
#include "support/random.h"
#include "support/strided.h"

namespace mamba::test {
namespace {

struct Case {
  int64_t rows, dim, groups = 1;
  bool before = false, rstd = true;
  int64_t gap = 0;
  bool alias = false;    // y is x, dx is dy
  bool aligned = false;  // every row begins at a multiple of 16 bytes, if the gap is one too

  // Where a buffer begins, and what its stride is beyond that of others.
  int misalign(int elements) const { return aligned ? 0 : elements; }
  int64_t more(int64_t elements) const { return aligned ? 8 * elements : elements; }
};

std::ostream& operator<<(std::ostream& o, const Case& c) {
  return o << c.rows << " x " << c.dim << " groups " << c.groups << " before " << c.before
           << " gap " << c.gap << " alias " << c.alias << " aligned " << c.aligned;
}

constexpr double kEps = 1e-5, kMaxX = 2, kMaxZ = 3, kMaxWeight = 1.5;

struct Inputs {
  std::vector<double> x, z, weight, dy, dweight;
  Inputs(const Case& c, uint64_t seed) {
    Random random(seed);
    x = random.vector(c.rows * c.dim, -kMaxX, kMaxX);
    z = random.vector(c.rows * c.dim, -kMaxZ, kMaxZ);
    weight = random.vector(c.dim, 0.5, kMaxWeight);
    dy = random.vector(c.rows * c.dim, -1, 1);
    dweight = random.vector(c.dim, -1, 1);
  }
};

template <class T>
struct Forward {
  std::vector<T> y, rstd;
};
template <class T>
struct Backward {
  std::vector<T> dx, dz, dweight;
};

Forward<double> reference_forward(const Case& c, const Inputs& in) {
  Forward<double> out{std::vector<double>(in.x.size()),
                      std::vector<double>(static_cast<size_t>(c.rows * c.groups))};
  GatedNormArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.groups = c.groups, a.eps = kEps;
  a.norm_before_gate = c.before;
  a.x = in.x.data(), a.z = in.z.data(), a.weight = in.weight.data();
  a.y = out.y.data(), a.rstd = out.rstd.data();
  a.x_stride = a.z_stride = a.y_stride = c.dim;
  Stream stream;
  ref_kernels().gated_norm_forward(stream, a);
  return out;
}

// rstd as the backward gets it, rounded to f32 if every backend is to see the same.
std::vector<double> saved(const Case& c, const Inputs& in, bool rounded) {
  std::vector<double> rstd = reference_forward(c, in).rstd;
  for (double& v : rstd) v = rounded ? static_cast<float>(v) : v;
  return rstd;
}

Backward<double> reference_backward(const Case& c, const Inputs& in,
                                    const std::vector<double>& rstd) {
  Backward<double> out{std::vector<double>(in.x.size()), std::vector<double>(in.x.size()),
                       in.dweight};
  GatedNormBackwardArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.groups = c.groups;
  a.norm_before_gate = c.before;
  a.x = in.x.data(), a.z = in.z.data(), a.weight = in.weight.data();
  a.rstd = rstd.data(), a.dy = in.dy.data();
  a.dx = out.dx.data(), a.dz = out.dz.data(), a.dweight = out.dweight.data();
  a.x_stride = a.z_stride = a.dy_stride = a.dx_stride = a.dz_stride = c.dim;
  Stream stream;
  ref_kernels().gated_norm_backward(stream, a);
  return out;
}

// Rows: StridedRows, or HalfRows for activations in bf16.
template <class Rows>
Forward<float> run_forward(Device& device, const Case& c, const Inputs& in) {
  const int64_t stride = c.dim + c.gap;
  Rows x(c.rows, c.dim, stride, c.misalign(1), in.x);
  Rows z(c.rows, c.dim, stride + c.more(1), c.misalign(2), in.z);
  Rows y(c.rows, c.dim, stride + c.more(2), c.misalign(2));
  StridedRows weight(1, c.dim, c.dim, c.misalign(3), in.weight);
  StridedRows rstd(c.rows, c.groups, c.groups, 1);
  GatedNormArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.groups = c.groups, a.eps = kEps;
  a.norm_before_gate = c.before;
  a.x = x.data(), a.x_stride = x.stride();
  a.z = z.data(), a.z_stride = z.stride();
  a.weight = weight.data();
  Rows& out = c.alias ? x : y;
  a.y = out.data(), a.y_stride = out.stride();
  if (c.rstd) a.rstd = rstd.data();
  device.kernels().gated_norm_forward(device.stream(), a);
  device.sync();
  for (const Rows* b : {&x, &z, &y}) EXPECT_TRUE(b->intact());
  for (const StridedRows* b : {&weight, &rstd}) EXPECT_TRUE(b->intact());
  return {out.values(), rstd.values()};
}

template <class Rows>
Backward<float> run_backward(Device& device, const Case& c, const Inputs& in,
                             const std::vector<double>& saved_rstd) {
  const int64_t stride = c.dim + c.gap;
  Rows x(c.rows, c.dim, stride, c.misalign(3), in.x);
  Rows z(c.rows, c.dim, stride + c.more(1), c.misalign(1), in.z);
  Rows dy(c.rows, c.dim, stride, c.misalign(2), in.dy);
  Rows dx(c.rows, c.dim, stride + c.more(2), c.misalign(3));
  Rows dz(c.rows, c.dim, stride + c.more(3), c.misalign(1));
  StridedRows weight(1, c.dim, c.dim, c.misalign(2), in.weight);
  StridedRows rstd(c.rows, c.groups, c.groups, 1, saved_rstd);
  StridedRows dweight(1, c.dim, c.dim, 1, in.dweight);
  GatedNormBackwardArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.groups = c.groups;
  a.norm_before_gate = c.before;
  a.x = x.data(), a.x_stride = x.stride();
  a.z = z.data(), a.z_stride = z.stride();
  a.weight = weight.data(), a.rstd = rstd.data();
  a.dy = dy.data(), a.dy_stride = dy.stride();
  Rows& out = c.alias ? dy : dx;
  a.dx = out.data(), a.dx_stride = out.stride();
  a.dz = dz.data(), a.dz_stride = dz.stride();
  a.dweight = dweight.data();
  device.kernels().gated_norm_backward(device.stream(), a);
  device.sync();
  for (const Rows* b : {&x, &z, &dy, &dx, &dz}) EXPECT_TRUE(b->intact());
  for (const StridedRows* b : {&weight, &rstd, &dweight}) EXPECT_TRUE(b->intact());
  return {out.values(), dz.values(), dweight.values()};
}

// Rows that begin at multiples of 16 bytes: one to three of a block, borders of what a block holds
// at once and longer ones, more rows than blocks.
std::vector<Case> aligned_cases() {
  std::vector<Case> list;
  for (bool before : {false, true}) {
    for (int64_t dim : {8, 24, 256, 264, 1536, 2560, 5112, 5120, 5128, 8192, 8200}) {
      list.push_back({dim % 3 + 1, dim, 1, before, true, 0, false, true});
    }
    list.push_back({5, 96, 4, before, false, 8, true, true});
    list.push_back({3, 2048, 8, before, true, 16, false, true});
    list.push_back({2400, 24, 1, before, true, 8, true, true});
    list.push_back({900, 776, 1, before, true, 0, false, true});
    list.push_back({300, 1280, 2, before, true, 1792, true, true});
    list.push_back({0, 8, 1, before, true, 0, false, true});
  }
  return list;
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (bool before : {false, true}) {
    for (int64_t dim : {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257}) {
      list.push_back({dim % 3 + 1, dim, 1, before});
    }
    list.push_back({5, 99, 3, before});
    list.push_back({5, 64, 64, before});
    list.push_back({5, 37, 1, before, false});
    list.push_back({5, 37, 1, before, true, 7});
    list.push_back({5, 37, 1, before, true, 0, true});
    list.push_back({4, 88, 4, before, false, 3, true});
    list.push_back({0, 8, 1, before});
    list.push_back({600, 20, 2, before});  // blocks of 10 rows
    list.push_back({37, 1536, 1, before, true, 1792});
  }
  for (const Case& c : aligned_cases()) list.push_back(c);
  return list;
}

TEST(GatedNorm, ForwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c);
      const Inputs in(c, 1);
      const Forward<double> want = reference_forward(c, in);
      const Forward<float> got = run_forward<StridedRows>(device, c, in);
      // x silu(z) is good to 9 roundings and its square to 19; at least 16 partial sums of n / 16
      // terms, 8 to join them, halved by the root; then 9 again and 4 for the products.
      const double rtol = (c.dim / 16.0 + 36) * kRounding;
      EXPECT_TRUE(close(got.y, want.y, 0, rtol));
      if (c.rstd) {
        EXPECT_TRUE(close(got.rstd, want.rstd, 0, rtol));
      }
    }
  });
}

TEST(GatedNorm, BackwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c);
      const Inputs in(c, 2);
      const std::vector<double> rstd = saved(c, in, true);
      const Backward<double> want = reference_backward(c, in, rstd);
      const Backward<float> got = run_backward<StridedRows>(device, c, in, rstd);
      // |silu(z)| <= Z = 3, |silu'| <= 1.1; v = x or x silu(z), n = v s, |g| <= 1.5 (times Z).
      const double s = max_abs(rstd), gate = kMaxZ;
      const double n = s * kMaxX * (c.before ? 1 : gate);
      const double g = kMaxWeight * (c.before ? gate : 1);
      const double dv = s * (g + g * n * n);
      const double dx = dv * (c.before ? 1 : gate);
      const double dz = 1.1 * (c.before ? kMaxWeight * n : dv * kMaxX);
      // The mean has dim / 16 + 8 roundings; the factors 9 each; silu' is good to 20 of 1.1.
      const double roundings = c.dim / 16.0 + 48;
      EXPECT_TRUE(close(got.dx, want.dx, roundings * kRounding * dx, 0));
      EXPECT_TRUE(close(got.dz, want.dz, roundings * kRounding * dz, 0));
      // A sum passes through a block of rows and then at most 64 blocks.
      const double sums = static_cast<double>(std::min(c.rows, c.rows / 64 + 72)) + 24;
      const double bound = static_cast<double>(c.rows) * n * (c.before ? gate : 1) + 1;
      EXPECT_TRUE(close(got.dweight, want.dweight, sums * kRounding * bound, 0));
    }
  });
}

// In bf16, which kernels of a GPU take: one rounding of what is written more, and sigmoid to 2^-18.
TEST(GatedNorm, Bf16OfEveryGpuIsTheReference) {
  for_each_backend([](Device& device) {
    if (device.kernels().name != std::string("cuda")) return;
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c);
      Inputs in(c, 5);
      for (std::vector<double>* v : {&in.x, &in.z, &in.dy}) round_to_bf16(*v);
      const Forward<double> want = reference_forward(c, in);
      const Forward<float> got = run_forward<HalfRows>(device, c, in);
      EXPECT_TRUE(close(got.y, want.y, 0, 0x1p-8));
      if (c.rstd) {
        EXPECT_TRUE(close(got.rstd, want.rstd, 0, 0x1p-14));
      }
      const std::vector<double> rstd = saved(c, in, true);
      const Backward<double> want_back = reference_backward(c, in, rstd);
      const Backward<float> back = run_backward<HalfRows>(device, c, in, rstd);
      // As in f32, with a rounding of 2^-9 relative to dx and dz themselves.
      const double s = max_abs(rstd), n = s * kMaxX * (c.before ? 1 : kMaxZ);
      const double g = kMaxWeight * (c.before ? kMaxZ : 1), dv = s * (g + g * n * n);
      const double dx = dv * (c.before ? 1 : kMaxZ);
      const double dz = 1.1 * (c.before ? kMaxWeight * n : dv * kMaxX);
      EXPECT_TRUE(close(back.dx, want_back.dx, 0x1p-14 * dx, 0x1p-8));
      EXPECT_TRUE(close(back.dz, want_back.dz, 0x1p-14 * dz, 0x1p-8));
      const double bound = static_cast<double>(c.rows) * n * (c.before ? kMaxZ : 1) + 1;
      EXPECT_TRUE(close(back.dweight, want_back.dweight, 0x1p-14 * bound, 0));
      const Backward<float> again = run_backward<HalfRows>(device, c, in, rstd);
      EXPECT_TRUE(same_bits(again.dx.data(), back.dx.data(), c.rows * c.dim));
      EXPECT_TRUE(same_bits(again.dweight.data(), back.dweight.data(), c.dim));
    }
  });
}

TEST(GatedNorm, ReferenceBackwardIsTheFiniteDifference) {
  for (const Case& c :
       {Case{3, 8, 1, false}, Case{3, 8, 1, true}, Case{2, 12, 3, false}, Case{2, 12, 3, true}}) {
    SCOPED_TRACE(testing::Message() << c);
    Inputs in(c, 3);
    const Backward<double> got = reference_backward(c, in, saved(c, in, false));
    const auto loss = [&] { return dot(reference_forward(c, in).y, in.dy); };
    // The loss is below 100 and good to 1e-12 of it; x silu(z) / rms is less smooth where all of a
    // group is small, which costs two digits.
    EXPECT_TRUE(close(got.dx, numeric_gradient(in.x, loss), 1e-8, 0));
    EXPECT_TRUE(close(got.dz, numeric_gradient(in.z, loss), 1e-8, 0));
    std::vector<double> dweight = numeric_gradient(in.weight, loss);
    for (size_t i = 0; i < dweight.size(); ++i) dweight[i] += in.dweight[i];
    EXPECT_TRUE(close(got.dweight, dweight, 1e-8, 0));
  }
}

TEST(GatedNorm, ResultsDoNotDependOnThreadsOrRuns) {
  for (bool before : {false, true}) {
    const Case c{300, 258, 2, before};  // large enough for a parallel region
    const Inputs in(c, 4);
    const std::vector<double> rstd = saved(c, in, true);
    std::optional<Forward<float>> forward;
    std::optional<Backward<float>> backward;
    for (int threads : {1, 2, 3, 2}) {
      std::unique_ptr<Device> device = Device::create({"cpu", threads});
      const Forward<float> f = run_forward<StridedRows>(*device, c, in);
      const Backward<float> d = run_backward<StridedRows>(*device, c, in, rstd);
      if (!forward) forward = f, backward = d;
      EXPECT_TRUE(same_bits(f.y.data(), forward->y.data(), c.rows * c.dim));
      EXPECT_TRUE(same_bits(d.dx.data(), backward->dx.data(), c.rows * c.dim));
      EXPECT_TRUE(same_bits(d.dz.data(), backward->dz.data(), c.rows * c.dim));
      EXPECT_TRUE(same_bits(d.dweight.data(), backward->dweight.data(), c.dim));
    }
  }
}

}  // namespace
}  // namespace mamba::test
