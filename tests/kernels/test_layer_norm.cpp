// SPDX-License-Identifier: Apache-2.0
// layer_norm: every backend against the f64 reference, and the reference against finite
// differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "support/backends.h"
#include "support/close.h"
#include "support/random.h"
#include "support/strided.h"

namespace mamba::test {
namespace {

// What residual_out (kInput: x, kResidual: residual) or dr (kInput: dy, kResidual: dresidual_out)
// is.
enum class Alias { kNone, kInput, kResidual };

struct Case {
  int64_t rows, dim;
  bool residual = true, residual_out = true, statistics = true;
  Alias alias = Alias::kNone;
};

constexpr double kEps = 1e-5, kMaxX = 2, kMaxWeight = 1.5;

struct Inputs {
  std::vector<double> x, residual, weight, bias, dy, dresidual_out, dweight, dbias;
  Inputs(const Case& c, uint64_t seed) {
    Random random(seed);
    x = random.vector(c.rows * c.dim, -kMaxX, kMaxX);
    residual = random.vector(c.rows * c.dim, -kMaxX, kMaxX);
    weight = random.vector(c.dim, 0.5, kMaxWeight);
    bias = random.vector(c.dim, -1, 1);
    dy = random.vector(c.rows * c.dim, -1, 1);
    dresidual_out = random.vector(c.rows * c.dim, -1, 1);
    dweight = random.vector(c.dim, -1, 1);
    dbias = random.vector(c.dim, -1, 1);
  }
};

template <class T>
struct Forward {
  std::vector<T> y, residual_out, mean, rstd;
};
template <class T>
struct Backward {
  std::vector<T> dr, dweight, dbias;
};

Forward<double> reference_forward(const Case& c, const Inputs& in) {
  const std::vector<double> matrix(in.x.size()), column(static_cast<size_t>(c.rows));
  Forward<double> out{matrix, matrix, column, column};
  LayerNormArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.eps = kEps;
  a.x = in.x.data();
  if (c.residual) a.residual = in.residual.data();
  a.weight = in.weight.data(), a.bias = in.bias.data();
  a.residual_out = out.residual_out.data(), a.y = out.y.data();
  a.mean = out.mean.data(), a.rstd = out.rstd.data();
  Stream stream;
  ref_kernels().layer_norm_forward(stream, a);
  return out;
}

// r, mean and rstd as the backward gets them, rounded to f32 if every backend is to see the same.
Forward<double> saved(const Case& c, const Inputs& in, bool rounded) {
  Forward<double> f = reference_forward(c, in);
  for (std::vector<double>* v : {&f.residual_out, &f.mean, &f.rstd}) {
    for (double& x : *v) x = rounded ? static_cast<float>(x) : x;
  }
  return f;
}

Backward<double> reference_backward(const Case& c, const Inputs& in, const Forward<double>& f) {
  Backward<double> out{std::vector<double>(in.x.size()), in.dweight, in.dbias};
  LayerNormBackwardArgs a{};
  a.rows = c.rows, a.dim = c.dim;
  a.r = f.residual_out.data(), a.weight = in.weight.data();
  a.mean = f.mean.data(), a.rstd = f.rstd.data();
  a.dy = in.dy.data();
  if (c.residual_out) a.dresidual_out = in.dresidual_out.data();
  a.dr = out.dr.data(), a.dweight = out.dweight.data(), a.dbias = out.dbias.data();
  Stream stream;
  ref_kernels().layer_norm_backward(stream, a);
  return out;
}

Forward<float> run_forward(Device& device, const Case& c, const Inputs& in) {
  StridedRows x(c.rows, c.dim, c.dim, 1, in.x), residual(c.rows, c.dim, c.dim, 2, in.residual);
  StridedRows weight(1, c.dim, c.dim, 3, in.weight), bias(1, c.dim, c.dim, 1, in.bias);
  StridedRows residual_out(c.rows, c.dim, c.dim, 3), y(c.rows, c.dim, c.dim, 2);
  StridedRows mean(c.rows, 1, 1, 1), rstd(c.rows, 1, 1, 2);
  LayerNormArgs a{};
  a.rows = c.rows, a.dim = c.dim, a.eps = kEps;
  a.x = x.data();
  if (c.residual) a.residual = residual.data();
  a.weight = weight.data(), a.bias = bias.data(), a.y = y.data();
  StridedRows& r = c.alias == Alias::kInput      ? x
                   : c.alias == Alias::kResidual ? residual
                                                 : residual_out;
  if (c.residual_out) a.residual_out = r.data();
  if (c.statistics) a.mean = mean.data(), a.rstd = rstd.data();
  device.kernels().layer_norm_forward(device.stream(), a);
  device.sync();
  for (const StridedRows* b : {&x, &residual, &weight, &bias, &residual_out, &y, &mean, &rstd}) {
    EXPECT_TRUE(b->intact());
  }
  return {y.values(), r.values(), mean.values(), rstd.values()};
}

Backward<float> run_backward(Device& device, const Case& c, const Inputs& in,
                             const Forward<double>& f) {
  StridedRows r(c.rows, c.dim, c.dim, 1, f.residual_out), weight(1, c.dim, c.dim, 2, in.weight);
  StridedRows mean(c.rows, 1, 1, 3, f.mean), rstd(c.rows, 1, 1, 1, f.rstd);
  StridedRows dy(c.rows, c.dim, c.dim, 2, in.dy), dr(c.rows, c.dim, c.dim, 3);
  StridedRows dresidual_out(c.rows, c.dim, c.dim, 1, in.dresidual_out);
  StridedRows dweight(1, c.dim, c.dim, 2, in.dweight), dbias(1, c.dim, c.dim, 3, in.dbias);
  LayerNormBackwardArgs a{};
  a.rows = c.rows, a.dim = c.dim;
  a.r = r.data(), a.weight = weight.data(), a.mean = mean.data(), a.rstd = rstd.data();
  a.dy = dy.data();
  if (c.residual_out) a.dresidual_out = dresidual_out.data();
  StridedRows& out = c.alias == Alias::kInput      ? dy
                     : c.alias == Alias::kResidual ? dresidual_out
                                                   : dr;
  a.dr = out.data(), a.dweight = dweight.data(), a.dbias = dbias.data();
  device.kernels().layer_norm_backward(device.stream(), a);
  device.sync();
  for (const StridedRows* b :
       {&r, &weight, &mean, &rstd, &dy, &dr, &dresidual_out, &dweight, &dbias}) {
    EXPECT_TRUE(b->intact());
  }
  return {out.values(), dweight.values(), dbias.values()};
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (int64_t dim : {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 257}) {
    list.push_back({dim % 3 + 1, dim});
  }
  list.push_back({5, 37, false});
  list.push_back({5, 37, true, false});
  list.push_back({5, 37, true, true, false});
  list.push_back({5, 37, true, true, true, Alias::kInput});
  list.push_back({5, 37, true, true, true, Alias::kResidual});
  list.push_back({5, 37, false, true, false, Alias::kInput});
  list.push_back({0, 8});
  list.push_back({600, 20});  // blocks of 10 rows
  list.push_back({97, 768});
  return list;
}

TEST(LayerNorm, ForwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim);
      const Inputs in(c, 1);
      const Forward<double> want = reference_forward(c, in);
      const Forward<float> got = run_forward(device, c, in);
      // |r| <= 4. A sum has dim / 16 + 8 roundings of at most its absolute terms, r one more.
      const double roundings = c.dim / 16.0 + 12;
      const double mean = roundings * kRounding * 2 * kMaxX;
      // (r - m) s with an error of the mean in r - m, and in s through the variance: |n|^2 of that.
      const double s = max_abs(want.rstd), n = s * 4 * kMaxX;
      const double y =
          kMaxWeight * (2 * mean * s * (1 + n) + roundings * kRounding * n) + 4 * kRounding;
      EXPECT_TRUE(close(got.y, want.y, y, 0));
      if (c.residual_out) {
        EXPECT_TRUE(close(got.residual_out, want.residual_out, 0, kRounding));
      }
      if (!c.statistics) continue;
      EXPECT_TRUE(close(got.mean, want.mean, mean, 0));
      EXPECT_TRUE(close(got.rstd, want.rstd, 0, roundings * kRounding + 2 * mean * s));
    }
  });
}

TEST(LayerNorm, BackwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.dim);
      const Inputs in(c, 2);
      const Forward<double> f = saved(c, in, true);
      const Backward<double> want = reference_backward(c, in, f);
      const Backward<float> got = run_backward(device, c, in, f);
      // |g| <= 1.5; n^2 has mean 1 in a row (and 0 for dim = 1), |n| <= sqrt(dim). The sum of g has
      // one accumulator of at least 4 lanes: dim / 4 + 4 roundings; g n has fewer.
      const double s = max_abs(f.rstd), n = std::sqrt(static_cast<double>(c.dim));
      const double scale = s * kMaxWeight * (2 + n) + 1;
      EXPECT_TRUE(close(got.dr, want.dr, (c.dim / 4.0 + 16) * kRounding * scale, 0));
      // A sum passes through a block of rows and then at most 64 blocks.
      const double sums = static_cast<double>(std::min(c.rows, c.rows / 64 + 72)) + 6;
      const double bound = static_cast<double>(c.rows) * std::min(n, 4 * s * kMaxX) + 1;
      EXPECT_TRUE(close(got.dweight, want.dweight, sums * kRounding * bound, 0));
      EXPECT_TRUE(close(got.dbias, want.dbias, sums * kRounding * (c.rows + 1.0), 0));
    }
  });
}

TEST(LayerNorm, LargeMeanKeepsTheVariance) {
  for_each_backend([](Device& device) {
    Case c{2, 100, false};
    Inputs in(c, 3);
    for (double& x : in.x) x = static_cast<float>(x + 1000);
    const Forward<double> want = reference_forward(c, in);
    // The mean is good to 16 roundings of 1000, 1e-3, and the deviations are of order 1.
    EXPECT_TRUE(close(run_forward(device, c, in).y, want.y, 16 * 1000 * kRounding * 2, 1e-5));
  });
}

TEST(LayerNorm, ReferenceBackwardIsTheFiniteDifference) {
  const Case c{3, 11};
  Inputs in(c, 4);
  const Backward<double> got = reference_backward(c, in, saved(c, in, false));
  const auto loss = [&] {
    const Forward<double> f = reference_forward(c, in);
    return dot(f.y, in.dy) + dot(f.residual_out, in.dresidual_out);
  };
  // The loss is below 100, the differences are good to 1e-12 of it.
  EXPECT_TRUE(close(got.dr, numeric_gradient(in.x, loss), 1e-9, 0));
  EXPECT_TRUE(close(got.dr, numeric_gradient(in.residual, loss), 1e-9, 0));
  std::vector<double> dweight = numeric_gradient(in.weight, loss);
  std::vector<double> dbias = numeric_gradient(in.bias, loss);
  for (size_t i = 0; i < dweight.size(); ++i) {
    dweight[i] += in.dweight[i];
    dbias[i] += in.dbias[i];
  }
  EXPECT_TRUE(close(got.dweight, dweight, 1e-9, 0));
  EXPECT_TRUE(close(got.dbias, dbias, 1e-9, 0));
}

TEST(LayerNorm, ResultsDoNotDependOnThreadsOrRuns) {
  const Case c{300, 257};  // large enough for a parallel region
  const Inputs in(c, 5);
  const Forward<double> f = saved(c, in, true);
  std::optional<Forward<float>> forward;
  std::optional<Backward<float>> backward;
  for (int threads : {1, 2, 3, 2}) {
    std::unique_ptr<Device> device = Device::create({"cpu", threads});
    const Forward<float> y = run_forward(*device, c, in);
    const Backward<float> d = run_backward(*device, c, in, f);
    if (!forward) forward = y, backward = d;
    EXPECT_TRUE(same_bits(y.y.data(), forward->y.data(), c.rows * c.dim));
    EXPECT_TRUE(same_bits(y.rstd.data(), forward->rstd.data(), c.rows));
    EXPECT_TRUE(same_bits(d.dr.data(), backward->dr.data(), c.rows * c.dim));
    EXPECT_TRUE(same_bits(d.dweight.data(), backward->dweight.data(), c.dim));
    EXPECT_TRUE(same_bits(d.dbias.data(), backward->dbias.data(), c.dim));
  }
}

}  // namespace
}  // namespace mamba::test
