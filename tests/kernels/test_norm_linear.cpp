// SPDX-License-Identifier: Apache-2.0
// norm_linear on every backend beside the two kernels that it stands for: bit for bit on the CPU,
// within the roundings of another order of sums on a GPU, where x may be bf16.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <vector>

#include "base/bf16.h"
#include "support/backends.h"
#include "support/close.h"
#include "support/random.h"

namespace mamba::test {
namespace {

struct Options {
  int64_t M = 1, N = 48, K = 64;
  bool residual = true, norm_weight = true, bias = false, accumulate = false;
};

std::ostream& operator<<(std::ostream& out, const Options& o) {
  return out << "M " << o.M << " N " << o.N << " K " << o.K << " residual " << o.residual
             << " weight " << o.norm_weight << " bias " << o.bias << " accumulate " << o.accumulate;
}

std::vector<Options> cases() {
  std::vector<Options> list;
  for (const int64_t K : {1, 7, 8, 24, 256, 264, 768, 1000, 1024, 1032, 1536}) {
    for (const int64_t M : {1, 2, 5}) list.push_back({.M = M, .K = K});
  }
  for (const int64_t K : {2560, 2568, 4096, 5120, 8184, 8192, 8200}) list.push_back({.K = K});
  // Warps of a GPU's kernel that take one row, and more.
  for (const int64_t N : {1584, 1585, 3175}) list.push_back({.N = N, .K = 2560});
  for (const int64_t N : {1, 3, 5, 130}) list.push_back({.N = N, .K = 768});
  for (int bits = 0; bits < 16; ++bits) {
    for (const int64_t K : {768, 2560}) {
      list.push_back({.K = K,
                      .residual = (bits & 1) != 0,
                      .norm_weight = (bits & 2) != 0,
                      .bias = (bits & 4) != 0,
                      .accumulate = (bits & 8) != 0});
    }
  }
  return list;
}

std::vector<float> floats(const std::vector<double>& v) { return {v.begin(), v.end()}; }
std::vector<bf16> halves(const std::vector<float>& v) {
  std::vector<bf16> narrow;
  for (const float x : v) narrow.push_back(to_bf16(x));
  return narrow;
}
std::vector<float> widened(const std::vector<bf16>& v) {
  std::vector<float> wide;
  for (const bf16 x : v) wide.push_back(to_f32(x));
  return wide;
}

struct Problem {
  Options o;
  std::vector<float> x, residual, norm_weight, weight, bias, y_before;

  Problem(const Options& options, uint64_t seed) : o(options) {
    Random random(seed);
    x = widened(halves(floats(random.vector(o.M * o.K, -2, 2))));
    residual = floats(random.vector(o.M * o.K, -2, 2));
    norm_weight = floats(random.vector(o.K, 0.5, 1.5));
    weight = widened(halves(floats(random.vector(o.N * o.K, -1, 1))));
    bias = floats(random.vector(o.N, -1, 1));
    y_before = floats(random.vector(o.M * o.N, -1, 1));
  }
  // x, the normed values and weight in their types; y and r are written.
  NormLinearArgs args(Product product, CBuf x_in, Buf normed, CBuf w, Buf r, Buf y) const {
    NormLinearArgs a{};
    a.norm.rows = o.M, a.norm.dim = o.K, a.norm.eps = 1e-5;
    a.norm.x = x_in, a.norm.x_stride = o.K;
    if (o.residual) a.norm.residual = residual.data();
    if (o.norm_weight) a.norm.weight = norm_weight.data();
    a.norm.residual_out = r;
    a.norm.y = normed, a.norm.y_stride = o.K;
    a.product.M = o.M, a.product.N = o.N, a.product.K = o.K;
    a.product.product = product;
    a.product.x = normed, a.product.x_stride = o.K;
    a.product.weight = w;
    if (o.bias) a.product.bias = bias.data();
    a.product.accumulate = o.accumulate;
    a.product.y = y, a.product.y_stride = o.N;
    return a;
  }
};

struct Result {
  std::vector<float> r, y;
};

// In f32, or with bf16 activations and weights.
Result run(Device& device, const Problem& p, Product product, bool narrow, bool in_one) {
  const Options& o = p.o;
  const auto count = static_cast<size_t>(o.M * o.K);
  Result result{std::vector<float>(count), p.y_before};
  std::vector<float> normed(count);
  std::vector<bf16> normed16(count), x16 = halves(p.x), w16 = halves(p.weight);
  const NormLinearArgs a = narrow ? p.args(product, x16.data(), normed16.data(), w16.data(),
                                           result.r.data(), result.y.data())
                                  : p.args(product, p.x.data(), normed.data(), p.weight.data(),
                                           result.r.data(), result.y.data());
  const Kernels& k = device.kernels();
  if (in_one) {
    k.norm_linear(device.stream(), a);
  } else {
    k.rms_norm_forward(device.stream(), a.norm);
    k.linear_forward(device.stream(), a.product);
  }
  device.sync();
  return result;
}

// What y may be off by where a normed value falls on the other side of a rounding to bf16: twice
// in a row, each by a unit of 2^-8 of a value below 2.5 times 1.5 and a weight below 1; and the
// sums of f32 in another order.
double bound(const Options& o, bool narrow) {
  return (narrow ? 2 * 4.0 / 256 : 0) + static_cast<double>(o.K) * 4.0 / (1 << 24);
}

TEST(NormLinear, IsTheNormAndTheProduct) {
  for_each_backend([&](Device& device) {
    const bool host = device.memory().on_host();
    for (const Options& o : cases()) {
      const Problem p(o, 3);
      for (const Product product : {Product::kF32, Product::kBF16}) {
        for (const bool narrow : {false, true}) {
          if (narrow && (host || product == Product::kF32)) continue;
          SCOPED_TRACE(testing::Message()
                       << o << " bf16 " << (product == Product::kBF16) << " narrow " << narrow);
          const Result one = run(device, p, product, narrow, true);
          const Result two = run(device, p, product, narrow, false);
          EXPECT_EQ(one.r, two.r);
          if (host) {
            EXPECT_EQ(one.y, two.y);
            continue;
          }
          for (size_t i = 0; i < one.y.size(); ++i) {
            ASSERT_NEAR(one.y[i], two.y[i], bound(o, product == Product::kBF16)) << i;
          }
          EXPECT_EQ(one.y, run(device, p, product, narrow, true).y);
        }
      }
    }
  });
}

TEST(NormLinear, IsTheF64Reference) {
  std::unique_ptr<Device> reference = Device::create({"ref64", 1});
  for_each_backend([&](Device& device) {
    for (const Options& o : cases()) {
      SCOPED_TRACE(testing::Message() << o);
      const Problem p(o, 4);
      const auto wide = [](const std::vector<float>& v) {
        return std::vector<double>(v.begin(), v.end());
      };
      std::vector<double> x = wide(p.x), residual = wide(p.residual), scale = wide(p.norm_weight),
                          weight = wide(p.weight), bias = wide(p.bias), y = wide(p.y_before),
                          r(x.size()), normed(x.size());
      NormLinearArgs a =
          p.args(Product::kF32, x.data(), normed.data(), weight.data(), r.data(), y.data());
      if (o.residual) a.norm.residual = residual.data();
      if (o.norm_weight) a.norm.weight = scale.data();
      if (o.bias) a.product.bias = bias.data();
      reference->kernels().norm_linear(reference->stream(), a);
      const Result got = run(device, p, Product::kF32, false, true);
      EXPECT_TRUE(close(got.r, r, 1e-6, 0));
      EXPECT_TRUE(close(got.y, y, bound(o, false) + 4e-6, 0));
    }
  });
}

}  // namespace
}  // namespace mamba::test
