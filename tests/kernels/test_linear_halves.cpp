// SPDX-License-Identifier: Apache-2.0
// linear of 16-bit operands on GPUs, in each way that has kernels of its own for few rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ostream>
#include <type_traits>
#include <vector>

#include "base/bf16.h"
#include "base/f16.h"
#include "kernels/choices.h"
#include "support/backends.h"
#include "support/random.h"

namespace mamba::test {
namespace {

// x, weight and y of 16 bits.
struct Halves {
  int64_t M, N, K;
  bool f16_operands = false, packed = false, bias = false, accumulate = false;
  int64_t gap = 0;  // of x; rows of y are one element longer
};

std::ostream& operator<<(std::ostream& out, const Halves& c) {
  return out << "M " << c.M << " N " << c.N << " K " << c.K << " f16 " << c.f16_operands
             << " packed " << c.packed << " bias " << c.bias << " accumulate " << c.accumulate
             << " gap " << c.gap;
}

// Around 8 and 16 rows, and around the rows and columns of tiles and of clusters' slices.
std::vector<Halves> cases_of_halves() {
  std::vector<Halves> all;
  for (int64_t M : {1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65}) {
    all.push_back({M, 80, 136});
  }
  for (int64_t N : {1, 2, 7, 8, 15, 16, 17, 31, 33, 47, 48, 49, 79, 81, 97, 161, 400}) {
    all.push_back({37, N, 72});
  }
  for (int64_t K : {8, 16, 24, 48, 56, 64, 72, 120, 128, 136, 512, 584, 1544, 4104}) {
    all.push_back({13, 50, K});
    all.push_back({64, 33, K});
  }
  for (const auto& [N, K] : {std::array<int64_t, 2>{3072, 768}, {768, 1536}, {80, 1536}}) {
    for (int64_t M : {5, 20, 64}) all.push_back({M, N, K});
  }
  Random random(8);
  for (Halves& c : all) {
    c.f16_operands = random.below(2);
    c.packed = random.below(2);
    c.bias = random.below(2);
    c.accumulate = random.below(2);
    c.gap = random.below(2) * 8;
  }
  return all;
}

// A sum of n products of numbers in [-1, 1]: its partial sums are below 2 sqrt(n) (6 sigma), each
// of n roundings errs by 2^-24 of that, and they add like a random walk with 3 sigma to 6 n 2^-24.
double bound(int64_t n) { return 6.0 * static_cast<double>(n + 4) * 0x1p-24; }

template <class T>
void expect_halves(Device& device, const Halves& c, DType y_type) {
  constexpr DType type = std::is_same_v<T, bf16> ? DType::kBF16 : DType::kF16;
  const auto narrow = [](float v) {
    if constexpr (std::is_same_v<T, bf16>) {
      return to_bf16(v);
    } else {
      return to_f16(v);
    }
  };
  Random random(9);
  std::vector<double> in_x = random.vector(c.M * c.K, -1, 1), want(static_cast<size_t>(c.M * c.N));
  std::vector<double> in_w = random.vector(c.N * c.K, -1, 1),
                      in_y = random.vector(c.M * c.N, -1, 1);
  const int64_t x_stride = c.K + c.gap, y_stride = c.N + 1;
  // Rows of 16 bytes, with what lies behind them.
  std::vector<T> x(static_cast<size_t>(c.M * x_stride), narrow(NAN)), weight;
  for (int64_t i = 0; i < c.M * c.K; ++i) {
    const T v = narrow(static_cast<float>(in_x[static_cast<size_t>(i)]));
    x[static_cast<size_t>(i / c.K * x_stride + i % c.K)] = v;
    in_x[static_cast<size_t>(i)] = to_f32(v);
  }
  for (double& w : in_w) {
    weight.push_back(narrow(static_cast<float>(w)));
    w = to_f32(weight.back());
  }
  std::vector<float> bias;
  for (int64_t n = 0; n < c.N; ++n) bias.push_back(static_cast<float>(random.uniform(-1, 1)));
  std::vector<uint16_t> y16(static_cast<size_t>(c.M * y_stride), 0x7fff);  // NaN
  std::vector<float> y32(y16.size(), NAN);
  const auto value = [&](size_t i) {
    return y_type == DType::kF32    ? y32[i]
           : y_type == DType::kBF16 ? to_f32(bf16{y16[i]})
                                    : to_f32(f16{y16[i]});
  };
  for (int64_t i = 0; i < c.M * c.N && c.accumulate; ++i) {
    const size_t at = static_cast<size_t>(i / c.N * y_stride + i % c.N);
    y32[at] = static_cast<float>(in_y[static_cast<size_t>(i)]);
    y16[at] = y_type == DType::kF16 ? to_f16(y32[at]).bits : to_bf16(y32[at]).bits;
    in_y[static_cast<size_t>(i)] = value(at);
  }
  for (int64_t i = 0; i < c.M * c.N; ++i) {
    const int64_t m = i / c.N, n = i % c.N;
    double sum = c.accumulate ? in_y[static_cast<size_t>(i)] : 0;
    if (c.bias) sum += static_cast<double>(bias[static_cast<size_t>(n)]);
    for (int64_t k = 0; k < c.K; ++k) {
      sum += in_x[static_cast<size_t>(m * c.K + k)] * in_w[static_cast<size_t>(n * c.K + k)];
    }
    want[static_cast<size_t>(i)] = sum;
  }
  const Product product = type == DType::kF16 ? Product::kF32 : Product::kBF16;
  const Kernels& k = device.kernels();
  const CBuf w(weight.data(), type);
  PackedLinear* packed = nullptr;
  if (c.packed) k.linear_pack(device.stream(), {c.N, c.K, product, w, &packed});
  const Buf y = y_type == DType::kF32 ? Buf(y32.data()) : Buf(y16.data(), y_type);
  k.linear_forward(device.stream(),
                   {c.M, c.N, c.K, product, CBuf(x.data(), type), x_stride, c.packed ? CBuf() : w,
                    packed, c.bias ? CBuf(bias.data()) : CBuf(), c.accumulate, y, y_stride});
  k.linear_unpack(device.stream(), {packed});
  device.sync();
  // One rounding of y.
  const double unit = y_type == DType::kF32 ? 0x1p-22 : y_type == DType::kBF16 ? 0x1p-8 : 0x1p-11;
  for (size_t i = 0; i < y32.size(); ++i) {
    const int64_t m = static_cast<int64_t>(i) / y_stride, n = static_cast<int64_t>(i) % y_stride;
    if (n == c.N) {
      ASSERT_TRUE(std::isnan(value(i))) << c << " behind row " << m;
      continue;
    }
    const double right = want[static_cast<size_t>(m * c.N + n)];
    ASSERT_NEAR(value(i), right, bound(c.K) + unit * (std::fabs(right) + 0.01)) << c << " at " << m;
  }
}

TEST(LinearHalves, EveryWayEqualsSumsInF64) {
  for_each_backend([&](Device& device) {
    if (device.memory().on_host()) return;
    uint32_t& forced = device.choices().forced[static_cast<int>(Operation::kLinear)];
    const DType types[] = {DType::kF32, DType::kBF16, DType::kF16};
    size_t next = 0;
    for (const Halves& c : cases_of_halves()) {
      for (const Way way : {Way::kTensor, Way::kTiles}) {
        if (c.M > (way == Way::kTensor ? kMostTensorRows : kMostTileRows)) continue;
        SCOPED_TRACE(name_of(way));
        forced = bit(way);
        const DType y = types[next++ % 3];
        if (c.f16_operands) {
          expect_halves<f16>(device, c, y == DType::kBF16 ? DType::kF16 : y);
        } else {
          expect_halves<bf16>(device, c, y == DType::kF16 ? DType::kBF16 : y);
        }
      }
    }
    forced = 0;
  });
}

// Neither its place nor its neighbours change a row's bits, nor does a repetition.
TEST(LinearHalves, ARowDoesNotDependOnItsPlace) {
  for_each_backend([&](Device& device) {
    if (device.memory().on_host()) return;
    uint32_t& forced = device.choices().forced[static_cast<int>(Operation::kLinear)];
    for (const Way way : {Way::kTensor, Way::kTiles}) {
      forced = bit(way);
      for (const int64_t M : {3, 16, 33, 64}) {
        constexpr int64_t N = 104, K = 1112;
        Random random(10);
        std::vector<bf16> x, weight;
        for (int64_t i = 0; i < M * K; ++i) x.push_back(to_bf16(random.uniform(-1, 1)));
        for (int64_t i = 0; i < N * K; ++i) weight.push_back(to_bf16(random.uniform(-1, 1)));
        std::vector<bf16> turned(x.size());
        for (int64_t m = 0; m < M; ++m) {
          std::copy_n(x.begin() + (M - 1 - m) * K, K, turned.begin() + m * K);
        }
        const auto run = [&](const std::vector<bf16>& from) {
          std::vector<float> y(static_cast<size_t>(M * N));
          device.kernels().linear_forward(
              device.stream(), {M, N, K, Product::kBF16, from.data(), K, weight.data(), nullptr,
                                CBuf(), false, y.data(), N});
          device.sync();
          return y;
        };
        const std::vector<float> y = run(x), again = run(x), other = run(turned);
        EXPECT_EQ(y, again);
        for (int64_t i = 0; i < M * N; ++i) {
          const int64_t m = i / N, at = (M - 1 - m) * N + i % N;
          ASSERT_EQ(y[static_cast<size_t>(i)], other[static_cast<size_t>(at)]) << name_of(way) << M;
        }
      }
    }
    forced = 0;
  });
}

}  // namespace
}  // namespace mamba::test
