// SPDX-License-Identifier: Apache-2.0
// rms_norm: every backend against the f64 reference, and the reference against finite differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>

#include "support/backends.h"
#include "support/close.h"
#include "support/half_rows.h"
#include "support/random.h"
#include "support/strided.h"

namespace mamba::test {
namespace {

enum class Alias { kNone, kInput, kResidual };  // what y / dr and residual_out are

struct Case {
  int64_t rows, dim;
  bool residual = true, weight = true, residual_out = true, rstd = true;
  int64_t gap = 0;
  Alias alias = Alias::kNone;
  bool aligned = false;  // every row begins at a multiple of 16 bytes, if the gap is one too

  // Where a buffer begins, and what its stride is beyond that of others.
  int misalign(int elements) const { return aligned ? 0 : elements; }
  int64_t more(int64_t elements) const { return aligned ? 8 * elements : elements; }
};

struct Inputs {
  std::vector<double> x, residual, weight, dy, dresidual_out, dweight;
  Inputs(const Case& c, uint64_t seed) {
    Random random(seed);
    x = random.vector(c.rows * c.dim, -2, 2);
    residual = random.vector(c.rows * c.dim, -2, 2);
    weight = random.vector(c.dim, 0.5, 1.5);
    dy = random.vector(c.rows * c.dim, -1, 1);
    dresidual_out = random.vector(c.rows * c.dim, -1, 1);
    dweight = random.vector(c.dim, -1, 1);
  }
};

template <class T>
struct Forward {
  std::vector<T> y, residual_out, rstd;
};
template <class T>
struct Backward {
  std::vector<T> dr, dweight;
};

constexpr double kEps = 1e-5;

Forward<double> reference_forward(const Case& c, const Inputs& in) {
  const size_t n = in.x.size();
  Forward<double> out{std::vector<double>(n), std::vector<double>(n),
                      std::vector<double>(static_cast<size_t>(c.rows))};
  RmsNormArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.eps = kEps;
  a.x = in.x.data(), a.x_stride = c.dim;
  if (c.residual) a.residual = in.residual.data();
  if (c.weight) a.weight = in.weight.data();
  a.residual_out = out.residual_out.data();
  a.y = out.y.data(), a.y_stride = c.dim;
  a.rstd = out.rstd.data();
  Stream stream;
  ref_kernels().rms_norm_forward(stream, a);
  return out;
}

// r and rstd as the backward gets them: rounded to f32, so that every backend sees the same.
Forward<double> saved(const Case& c, const Inputs& in, bool rounded) {
  Forward<double> f = reference_forward(c, in);
  if (rounded) {
    for (double& v : f.residual_out) v = static_cast<float>(v);
    for (double& v : f.rstd) v = static_cast<float>(v);
  }
  return f;
}

Backward<double> reference_backward(const Case& c, const Inputs& in, const Forward<double>& f) {
  Backward<double> out{std::vector<double>(in.x.size()), in.dweight};
  RmsNormBackwardArgs a{};
  a.rows = c.rows, a.dim = c.dim;
  a.r = f.residual_out.data(), a.r_stride = c.dim;
  if (c.weight) a.weight = in.weight.data();
  a.rstd = f.rstd.data();
  a.dy = in.dy.data(), a.dy_stride = c.dim;
  if (c.residual_out) a.dresidual_out = in.dresidual_out.data();
  a.dr = out.dr.data(), a.dr_stride = c.dim;
  if (c.weight) a.dweight = out.dweight.data();
  Stream stream;
  ref_kernels().rms_norm_backward(stream, a);
  return out;
}

// Rows: StridedRows, or HalfRows for activations in bf16.
template <class Rows>
Forward<float> run_forward(Device& device, const Case& c, const Inputs& in) {
  const int64_t stride = c.dim + c.gap;
  Rows x(c.rows, c.dim, stride, c.misalign(1), in.x);
  Rows y(c.rows, c.dim, stride + c.more(2), c.misalign(2));
  StridedRows residual(c.rows, c.dim, c.dim, c.misalign(2), in.residual);
  StridedRows weight(1, c.dim, c.dim, c.misalign(3), in.weight);
  StridedRows residual_out(c.rows, c.dim, c.dim, c.misalign(3)), rstd(c.rows, 1, 1, 1);
  RmsNormArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.eps = kEps;
  a.x = x.data(), a.x_stride = stride;
  if (c.residual) a.residual = residual.data();
  if (c.weight) a.weight = weight.data();
  if (c.residual_out) {
    a.residual_out = c.alias == Alias::kResidual ? residual.data() : residual_out.data();
  }
  a.y = c.alias == Alias::kInput ? x.data() : y.data();
  a.y_stride = c.alias == Alias::kInput ? stride : y.stride();
  if (c.rstd) a.rstd = rstd.data();
  device.kernels().rms_norm_forward(device.stream(), a);
  device.sync();
  for (const Rows* b : {&x, &y}) EXPECT_TRUE(b->intact());
  for (const StridedRows* b : {&residual, &weight, &residual_out, &rstd}) EXPECT_TRUE(b->intact());
  return {(c.alias == Alias::kInput ? x : y).values(),
          (c.alias == Alias::kResidual ? residual : residual_out).values(), rstd.values()};
}

// dr is the gradient of the residual, in f32.
template <class Rows>
Backward<float> run_backward(Device& device, const Case& c, const Inputs& in,
                             const Forward<double>& f) {
  const int64_t stride = c.dim + c.gap;
  StridedRows r(c.rows, c.dim, stride, c.misalign(1), f.residual_out);
  StridedRows weight(1, c.dim, c.dim, c.misalign(2), in.weight), rstd(c.rows, 1, 1, 3, f.rstd);
  Rows dy(c.rows, c.dim, stride, c.misalign(1), in.dy);
  StridedRows dresidual_out(c.rows, c.dim, c.dim, c.misalign(3), in.dresidual_out);
  StridedRows dr(c.rows, c.dim, stride + c.more(1), c.misalign(2));
  StridedRows dweight(1, c.dim, c.dim, 1, in.dweight);
  RmsNormBackwardArgs a{};
  a.rows = c.rows, a.dim = c.dim;
  a.r = r.data(), a.r_stride = stride;
  if (c.weight) a.weight = weight.data();
  a.rstd = rstd.data();
  a.dy = dy.data(), a.dy_stride = stride;
  if (c.residual_out) a.dresidual_out = dresidual_out.data();
  StridedRows* out = c.alias == Alias::kResidual ? &dresidual_out : &dr;
  if constexpr (std::is_same_v<Rows, StridedRows>) {
    if (c.alias == Alias::kInput) out = &dy;
  }
  a.dr = out->data(), a.dr_stride = out->stride();
  if (c.weight) a.dweight = dweight.data();
  device.kernels().rms_norm_backward(device.stream(), a);
  device.sync();
  EXPECT_TRUE(dy.intact());
  for (const StridedRows* b : {&r, &weight, &rstd, &dresidual_out, &dr, &dweight}) {
    EXPECT_TRUE(b->intact());
  }
  return {out->values(), dweight.values()};
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (int64_t dim : {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 256, 257}) {
    list.push_back({dim % 3 + 1, dim});
  }
  const Case base{5, 37};
  for (int option = 0; option < 7; ++option) {
    Case c = base;
    if (option == 0) c.residual = false;
    if (option == 1) c.weight = false;
    if (option == 2) c.residual_out = false;
    if (option == 3) c.rstd = false;
    if (option == 4) c.gap = 5;
    if (option == 5) c.alias = Alias::kInput;
    if (option == 6) c.alias = Alias::kResidual;
    list.push_back(c);
  }
  list.push_back({9, 50, false, false, false, false, 3, Alias::kInput});
  list.push_back({0, 8});
  list.push_back({600, 20});  // blocks of 10 rows
  list.push_back({97, 768, true, true, true, true, 11});
  // Rows that begin at multiples of 16 bytes: one to three of a block, borders of what a block
  // holds at once and longer ones, more rows than blocks.
  for (int64_t dim : {8, 24, 256, 768, 776, 1536, 2560, 4096, 4104, 5120, 8192, 8200}) {
    list.push_back({dim % 3 + 1, dim, true, true, true, true, 0, Alias::kNone, true});
  }
  list.push_back({2400, 24, true, true, true, true, 8, Alias::kResidual, true});
  list.push_back({900, 776, true, true, true, true, 16, Alias::kInput, true});
  list.push_back({300, 4120, true, true, true, true, 8, Alias::kResidual, true});
  list.push_back({300, 4120, false, false, false, false, 0, Alias::kInput, true});
  list.push_back({900, 768, false, false, false, false, 0, Alias::kNone, true});
  list.push_back({0, 8, true, true, true, true, 0, Alias::kNone, true});
  return list;
}

TEST(RmsNorm, ForwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << " gap " << c.gap);
      const Inputs in(c, 1);
      const Forward<double> want = reference_forward(c, in);
      const Forward<float> got = run_forward<StridedRows>(device, c, in);
      // r: 1 rounding, its square 2 more, at least 16 partial sums of dim / 16 terms plus 8 to join
      // them; the root halves that, and r, s, weight and their products add 5.
      const double rtol = (c.dim / 16.0 + 16) * kRounding;
      EXPECT_TRUE(close(got.y, want.y, 0, rtol));
      if (c.residual_out) {
        EXPECT_TRUE(close(got.residual_out, want.residual_out, 0, kRounding));
      }
      if (c.rstd) {
        EXPECT_TRUE(close(got.rstd, want.rstd, 0, rtol));
      }
    }
  });
}

TEST(RmsNorm, BackwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << " gap " << c.gap);
      const Inputs in(c, 2);
      const Forward<double> f = saved(c, in, true);
      const Backward<double> want = reference_backward(c, in, f);
      const Backward<float> got = run_backward<StridedRows>(device, c, in, f);
      // |g| <= 1.5, |n| <= N = max |r| max s: |dr| <= S = s (1.5 + 1.5 N^2) + 1; the mean has
      // dim / 16 + 8 roundings, the rest at most 8.
      const double s = max_abs(f.rstd), n = max_abs(f.residual_out) * s;
      const double scale = s * (1.5 + 1.5 * n * n) + 1;
      EXPECT_TRUE(close(got.dr, want.dr, (c.dim / 16.0 + 16) * kRounding * scale, 0));
      // Terms |dy n| <= N; a sum passes through a block of rows and then at most 64 blocks.
      const double roundings = static_cast<double>(std::min(c.rows, c.rows / 64 + 72)) + 4;
      const double bound = static_cast<double>(c.rows) * n + 1;
      EXPECT_TRUE(close(got.dweight, want.dweight, roundings * kRounding * bound, 0));
    }
  });
}

// In bf16 with the residual in f32, which kernels of a GPU take: one rounding of y more.
TEST(RmsNorm, Bf16OfEveryGpuIsTheReference) {
  for_each_backend([](Device& device) {
    if (device.kernels().name != std::string("cuda")) return;
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim << " gap " << c.gap);
      Inputs in(c, 6);
      for (std::vector<double>* v : {&in.x, &in.dy}) round_to_bf16(*v);
      const Forward<double> want = reference_forward(c, in);
      const Forward<float> got = run_forward<HalfRows>(device, c, in);
      EXPECT_TRUE(close(got.y, want.y, 0, 0x1p-8));
      if (c.residual_out) {
        EXPECT_TRUE(close(got.residual_out, want.residual_out, 0, kRounding));
      }
      const Forward<double> f = saved(c, in, true);
      const Backward<double> want_back = reference_backward(c, in, f);
      const Backward<float> back = run_backward<HalfRows>(device, c, in, f);
      const double s = max_abs(f.rstd), n = max_abs(f.residual_out) * s;
      const double scale = s * (1.5 + 1.5 * n * n) + 1;
      EXPECT_TRUE(close(back.dr, want_back.dr, (c.dim / 16.0 + 16) * kRounding * scale, 0));
      const double roundings = static_cast<double>(std::min(c.rows, c.rows / 64 + 72)) + 4;
      const double bound = static_cast<double>(c.rows) * n + 1;
      EXPECT_TRUE(close(back.dweight, want_back.dweight, roundings * kRounding * bound, 0));
      const Backward<float> again = run_backward<HalfRows>(device, c, in, f);
      EXPECT_TRUE(same_bits(again.dr.data(), back.dr.data(), c.rows * c.dim));
      EXPECT_TRUE(same_bits(again.dweight.data(), back.dweight.data(), c.dim));
    }
  });
}

TEST(RmsNorm, ResidualOutMayBeTheInput) {
  for_each_backend([](Device& device) {
    const Case c{4, 37};
    const Inputs in(c, 3);
    const Forward<double> want = reference_forward(c, in);
    StridedRows x(4, 37, 37, 1, in.x), y(4, 37, 37, 2), residual(4, 37, 37, 3, in.residual);
    RmsNormArgs a{};
    a.rows = 4, a.dim = 37, a.eps = kEps;
    a.x = x.data(), a.x_stride = 37;
    a.residual = residual.data(), a.residual_out = x.data();
    a.y = y.data(), a.y_stride = 37;
    StridedRows weight(1, 37, 37, 1, in.weight);
    a.weight = weight.data();
    device.kernels().rms_norm_forward(device.stream(), a);
    device.sync();
    EXPECT_TRUE(close(y.values(), want.y, 0, 20 * kRounding));
    EXPECT_TRUE(close(x.values(), want.residual_out, 0, kRounding));
  });
}

TEST(RmsNorm, ReferenceBackwardIsTheFiniteDifference) {
  for (bool weight : {true, false}) {
    Case c{3, 11};
    c.weight = weight;
    Inputs in(c, 4);
    const Backward<double> got = reference_backward(c, in, saved(c, in, false));
    const auto loss = [&] {
      const Forward<double> f = reference_forward(c, in);
      return dot(f.y, in.dy) + dot(f.residual_out, in.dresidual_out);
    };
    // The loss is below 100, the differences are good to 1e-12 of it.
    EXPECT_TRUE(close(got.dr, numeric_gradient(in.x, loss), 1e-9, 0));
    EXPECT_TRUE(close(got.dr, numeric_gradient(in.residual, loss), 1e-9, 0));
    if (!weight) continue;
    std::vector<double> want = numeric_gradient(in.weight, loss);
    for (size_t i = 0; i < want.size(); ++i) want[i] += in.dweight[i];
    EXPECT_TRUE(close(got.dweight, want, 1e-9, 0));
  }
}

TEST(RmsNorm, ResultsDoNotDependOnThreadsOrRuns) {
  const Case c{300, 257};  // large enough for a parallel region
  const Inputs in(c, 5);
  const Forward<double> f = saved(c, in, true);
  std::optional<Forward<float>> forward;
  std::optional<Backward<float>> backward;
  for (int threads : {1, 2, 3, 2}) {
    std::unique_ptr<Device> device = Device::create({"cpu", threads});
    const Forward<float> y = run_forward<StridedRows>(*device, c, in);
    const Backward<float> d = run_backward<StridedRows>(*device, c, in, f);
    if (!forward) forward = y, backward = d;
    EXPECT_TRUE(same_bits(y.y.data(), forward->y.data(), c.rows * c.dim));
    EXPECT_TRUE(same_bits(y.rstd.data(), forward->rstd.data(), c.rows));
    EXPECT_TRUE(same_bits(d.dr.data(), backward->dr.data(), c.rows * c.dim));
    EXPECT_TRUE(same_bits(d.dweight.data(), backward->dweight.data(), c.dim));
  }
}

}  // namespace
}  // namespace mamba::test
