// SPDX-License-Identifier: Apache-2.0
// linear_q: every backend and every type against the f64 reference and against the weights as
// numbers, rows back, and the promise that a row of y depends on that row of x alone.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/f16.h"
#include "quant/dequantize.h"
#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,  DType::kQ8_0,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL};

// Random codes and small scales; d of a block is a power of two times 1 to 1.98.
std::vector<uint8_t> random_blocks(Random& random, DType type, int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(dtype_bytes(type, count)));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.next());
  const auto put_scale = [&](uint8_t* at) {
    const f16 value = to_f16(static_cast<float>(random.uniform(-1, 1) / 256));
    std::memcpy(at, &value, 2);
  };
  const bool two =
      type == DType::kQ4_1 || type == DType::kQ5_1 || type == DType::kQ4_K || type == DType::kQ5_K;
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(block_bytes(type))) {
    put_scale(bytes.data() + at + (type == DType::kQ6_K ? 208 : 0));
    if (two) put_scale(bytes.data() + at + 2);
  }
  return bytes;
}

std::vector<float> run(Device& device, DType type, int64_t M, int64_t N, int64_t K,
                       const std::vector<float>& x, const std::vector<uint8_t>& blocks,
                       const float* bias, int64_t gap = 0) {
  const Kernels& k = device.kernels();
  Guarded y(M * (N + gap), 3);
  PackedLinear* packed = nullptr;
  k.linear_q_pack(device.stream(), {N, K, CBuf(blocks.data(), type), &packed});
  LinearQArgs args{};
  args.M = M, args.N = N, args.K = K;
  args.x = x.data(), args.x_stride = K;
  args.packed = packed;
  if (bias != nullptr) args.bias = bias;
  args.y = y.data(), args.y_stride = N + gap;
  k.linear_q_forward(device.stream(), args);
  k.linear_unpack(device.stream(), {packed});
  device.sync();
  EXPECT_TRUE(y.intact());
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t g = 0; g < gap; ++g) EXPECT_TRUE(std::isnan(y[m * (N + gap) + N + g]));
  }
  return y.values();
}

std::vector<double> reference(DType type, int64_t M, int64_t N, int64_t K,
                              const std::vector<float>& x, const std::vector<uint8_t>& blocks,
                              const float* bias) {
  Stream stream;
  const Kernels& k = ref_kernels();
  PackedLinear* packed = nullptr;
  k.linear_q_pack(stream, {N, K, CBuf(blocks.data(), type), &packed});
  const std::vector<double> wide(x.begin(), x.end());
  std::vector<double> b, y(static_cast<size_t>(M * N));
  LinearQArgs args{};
  args.M = M, args.N = N, args.K = K;
  args.x = wide.data(), args.x_stride = K;
  args.packed = packed;
  if (bias != nullptr) {
    b.assign(bias, bias + N);
    args.bias = b.data();
  }
  args.y = y.data(), args.y_stride = N;
  k.linear_q_forward(stream, args);
  k.linear_unpack(stream, {packed});
  return y;
}

std::vector<float> floats(Random& random, int64_t count) {
  const std::vector<double> v = random.vector(count, -1, 1);
  return {v.begin(), v.end()};
}

// Sums of K / 16 or fewer rounded terms, each below 8 (weights to 8.1, x to 1, 16 columns and a
// minimum), with a few roundings of 2^-24 each.
double bound(int64_t K) { return 0x1p-24 * 8 * static_cast<double>(K + 64); }

TEST(LinearQ, EqualsTheReference) {
  const int64_t shapes[][3] = {{1, 1, 256},  {1, 16, 256},  {2, 17, 512},   {3, 40, 768},
                               {5, 33, 256}, {8, 100, 512}, {9, 15, 768},   {13, 64, 2560},
                               {16, 5, 256}, {70, 48, 768}, {300, 20, 256}, {0, 5, 256}};
  for (DType type : kTypes) {
    Random random(static_cast<uint64_t>(type));
    for (const auto& [M, N, K] : shapes) {
      const std::vector<uint8_t> blocks = random_blocks(random, type, N * K);
      const std::vector<float> x = floats(random, M * K), bias = floats(random, N);
      const float* b = random.below(2) != 0 ? bias.data() : nullptr;
      const std::vector<double> want = reference(type, M, N, K, x, blocks, b);
      for_each_backend([&](Device& device) {
        const std::vector<float> y = run(device, type, M, N, K, x, blocks, b);
        ASSERT_TRUE(close(y, want, bound(K), 0x1p-20))
            << dtype_name(type) << " " << M << " " << N << " " << K;
      });
    }
  }
}

TEST(LinearQ, TakesRowsOfWholeBlocksThatAreNoMultipleOf256) {
  for (DType type :
       {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kIQ4_NL}) {
    for (int64_t K : {32, 96, 288, 1056}) {
      Random random(static_cast<uint64_t>(K));
      const std::vector<uint8_t> blocks = random_blocks(random, type, 18 * K);
      const std::vector<float> x = floats(random, 11 * K);
      const std::vector<double> want = reference(type, 11, 18, K, x, blocks, nullptr);
      for_each_backend([&](Device& device) {
        const std::vector<float> y = run(device, type, 11, 18, K, x, blocks, nullptr);
        ASSERT_TRUE(close(y, want, bound(K), 0x1p-20)) << dtype_name(type) << " " << K;
      });
    }
  }
}

// Where x needs no rounding, the product is that of the weights as numbers.
TEST(LinearQ, IsThePlainProductWhereXIsIntegers) {
  constexpr int64_t M = 9, N = 35, K = 512;
  for (DType type : kTypes) {
    Random random(static_cast<uint64_t>(type) + 50);
    const std::vector<uint8_t> blocks = random_blocks(random, type, N * K);
    std::vector<float> x(M * K);
    for (int64_t i = 0; i < M * K; ++i) {
      x[i] = i % 32 == 0 ? 127.0f / 64 : static_cast<float>(random.below(255) - 127) / 64;
    }
    std::vector<float> w(N * K);
    dequantize(type, blocks.data(), N * K, w.data());
    std::vector<double> want(M * N);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t k = 0; k < K; ++k) {
          want[m * N + n] += static_cast<double>(x[m * K + k]) * static_cast<double>(w[n * K + k]);
        }
      }
    }
    for_each_backend([&](Device& device) {
      const std::vector<float> y = run(device, type, M, N, K, x, blocks, nullptr, 3);
      for (int64_t m = 0; m < M; ++m) {
        ASSERT_TRUE(close(y.data() + m * (N + 3), want.data() + m * N, N, 2 * bound(K), 0x1p-20))
            << dtype_name(type) << " row " << m;
      }
    });
  }
}

TEST(LinearQ, GivesRowsBack) {
  constexpr int64_t N = 37, K = 512;
  for (DType type : kTypes) {
    Random random(static_cast<uint64_t>(type) + 90);
    const std::vector<uint8_t> blocks = random_blocks(random, type, N * K);
    std::vector<float> w(N * K);
    dequantize(type, blocks.data(), N * K, w.data());
    const std::vector<int32_t> ids = {36, 0, -1, 15, 16, 17, 5};
    for_each_backend([&](Device& device) {
      const Kernels& k = device.kernels();
      PackedLinear* packed = nullptr;
      k.linear_q_pack(device.stream(), {N, K, CBuf(blocks.data(), type), &packed});
      Guarded y(static_cast<int64_t>(ids.size()) * K);
      k.linear_q_rows(device.stream(),
                      {packed, static_cast<int64_t>(ids.size()), ids.data(), y.data()});
      k.linear_unpack(device.stream(), {packed});
      device.sync();
      ASSERT_TRUE(y.intact());
      const std::vector<float> zero(K);
      for (size_t r = 0; r < ids.size(); ++r) {
        const float* want = ids[r] < 0 ? zero.data() : w.data() + ids[r] * K;
        for (int64_t i = 0; i < K; ++i) {  // -0 and 0 are equal
          ASSERT_EQ(y[static_cast<int64_t>(r) * K + i], want[i])
              << dtype_name(type) << " row " << r << " column " << i;
        }
      }
    });
  }
}

TEST(LinearQ, ARowDependsOnThatRowAloneOnAnyNumberOfThreads) {
  constexpr int64_t M = 300, N = 70, K = 768;
  for (DType type : kTypes) {
    Random random(static_cast<uint64_t>(type) + 130);
    const std::vector<uint8_t> blocks = random_blocks(random, type, N * K);
    const std::vector<float> x = floats(random, M * K);
    for_each_backend([&](Device& device) {
      if (device.name() == "ref") return;  // its rows are plainly independent, and slow
      const std::vector<float> all = run(device, type, M, N, K, x, blocks, nullptr);
      for (int64_t rows : {1, 2, 3, 7, 8, 9, 65, 257}) {
        for (int threads : {1, 3}) {
          const auto other = Device::create({device.name(), threads});
          const int64_t first = random.below(M - rows + 1);
          const std::vector<float> part(x.begin() + first * K, x.begin() + (first + rows) * K);
          const std::vector<float> y = run(*other, type, rows, N, K, part, blocks, nullptr);
          ASSERT_TRUE(same_bits(y.data(), all.data() + first * N, rows * N))
              << dtype_name(type) << " rows " << rows << " threads " << threads;
        }
      }
    });
  }
}

TEST(LinearQ, WhatIsNotFiniteStaysInItsRowAndZeroGivesTheBias) {
  constexpr int64_t M = 4, N = 20, K = 256;
  for (DType type : kTypes) {
    Random random(static_cast<uint64_t>(type) + 170);
    const std::vector<uint8_t> blocks = random_blocks(random, type, N * K);
    std::vector<float> x = floats(random, M * K);
    const std::vector<float> bias = floats(random, N);
    x[0 * K + 40] = NAN;
    x[1 * K + 255] = -INFINITY;
    for (int64_t k = 0; k < K; ++k) x[2 * K + k] = k % 2 != 0 ? 0.0f : 1e-38f;
    for_each_backend([&](Device& device) {
      const std::vector<float> y = run(device, type, M, N, K, x, blocks, bias.data());
      for (int64_t n = 0; n < N; ++n) {
        ASSERT_TRUE(std::isnan(y[n])) << dtype_name(type);
        ASSERT_TRUE(std::isnan(y[N + n])) << dtype_name(type);
        ASSERT_EQ(y[2 * N + n], bias[n]) << dtype_name(type);
        ASSERT_TRUE(std::isfinite(y[3 * N + n])) << dtype_name(type);
      }
    });
  }
}

}  // namespace
}  // namespace mamba::test
