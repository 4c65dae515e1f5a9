// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/f16.h"
#include "quant/blocks.h"
#include "quant/dequantize.h"
#include "quant/quantize.h"
#include "support/random.h"

namespace mamba {
namespace {

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,  DType::kQ8_0,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL};

std::vector<float> round_trip(DType type, const std::vector<float>& x,
                              const std::vector<float>& importance = {}) {
  const int64_t count = static_cast<int64_t>(x.size());
  std::vector<char> blocks(static_cast<size_t>(dtype_bytes(type, count)) + 1);
  char* at = blocks.data() + 1;  // no alignment is promised
  EXPECT_TRUE(quantize(type, x.data(), importance.empty() ? nullptr : importance.data(), count, at))
      << dtype_name(type);
  std::vector<float> out(x.size());
  dequantize(type, at, count, out.data());
  return out;
}

// Sums of uniforms: close to a normal distribution of deviation `sigma`.
std::vector<float> normal(test::Random& random, size_t count, double sigma) {
  std::vector<float> values(count);
  for (float& v : values) {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += random.uniform(-0.5, 0.5);
    v = static_cast<float>(sum * sigma);
  }
  return values;
}

double weighted_error(const std::vector<float>& a, const std::vector<float>& b,
                      const std::vector<float>& w) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = static_cast<double>(a[i]) - b[i];
    sum += (w.empty() ? 1.0 : w[i]) * off * off;
  }
  return sum;
}

// What rounding to the nearest of evenly spread codes over the whole range of a block gives, the
// classical rule: scale = the value of largest magnitude / -half, or (max - min) / codes.
double plain_error(DType type, const std::vector<float>& x) {
  double sum = 0;
  for (size_t at = 0; at < x.size(); at += 32) {
    double low = 0, high = 0, largest = 0;
    for (size_t i = at; i < at + 32; ++i) {
      const double v = x[i];
      low = i == at ? v : std::min(low, v), high = i == at ? v : std::max(high, v);
      if (std::fabs(v) > std::fabs(largest)) largest = v;
    }
    const bool affine = type == DType::kQ4_1 || type == DType::kQ5_1;
    const double codes = type == DType::kQ4_0 || type == DType::kQ4_1 ? 16 : 32;
    const bool eight = type == DType::kQ8_0;
    const double scale = affine ? (high - low) / (codes - 1) : largest / (eight ? 127 : -codes / 2);
    for (size_t i = at; i < at + 32; ++i) {
      const double v = x[i] - (affine ? low : 0);
      double code = std::round(v / scale);
      if (!affine && !eight) code = std::min(std::max(code, -codes / 2), codes / 2 - 1);
      sum += (v - code * scale) * (v - code * scale);
    }
  }
  return sum;
}

TEST(Quantize, ErrorIsBelowThatOfPlainRounding) {
  test::Random random(1);
  const std::vector<float> x = normal(random, 64 * 256, 0.02);
  for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0}) {
    EXPECT_LT(weighted_error(x, round_trip(type, x), {}), plain_error(type, x)) << dtype_name(type);
  }
}

TEST(Quantize, ErrorFollowsTheBits) {
  test::Random random(2);
  const std::vector<float> x = normal(random, 64 * 256, 0.02);
  const double variance = weighted_error(x, std::vector<float>(x.size()), {});
  const auto relative = [&](DType type) {
    return weighted_error(x, round_trip(type, x), {}) / variance;
  };
  // What the search reaches on a normal distribution and 5 %: rounding to the nearest has 0.0074
  // for Q4_0, and each bit more a quarter of it.
  EXPECT_LT(relative(DType::kQ4_0), 0.0068);
  EXPECT_LT(relative(DType::kIQ4_NL), 0.0057);
  EXPECT_LT(relative(DType::kQ4_1), 0.0050);
  EXPECT_LT(relative(DType::kQ4_K), 0.0051);
  EXPECT_LT(relative(DType::kQ5_0), 0.00167);
  EXPECT_LT(relative(DType::kQ5_1), 0.00120);
  EXPECT_LT(relative(DType::kQ5_K), 0.00126);
  EXPECT_LT(relative(DType::kQ6_K), 0.00030);
  EXPECT_LT(relative(DType::kQ8_0), 2.75e-5);
}

TEST(Quantize, ImportanceLowersTheWeightedError) {
  test::Random random(3);
  const std::vector<float> x = normal(random, 32 * 256, 1);
  std::vector<float> importance(x.size());
  for (float& w : importance) w = static_cast<float>(std::pow(random.uniform(0, 1), 8)) * 1e-3f;
  for (const DType type : kTypes) {
    EXPECT_LT(weighted_error(x, round_trip(type, x, importance), importance),
              weighted_error(x, round_trip(type, x), importance))
        << dtype_name(type);
  }
}

TEST(Quantize, ValuesOnAGridComeBack) {
  test::Random random(4);
  for (const DType type : kTypes) {
    const bool five = type == DType::kQ5_0 || type == DType::kQ5_1 || type == DType::kQ5_K;
    const int64_t half = type == DType::kQ8_0 ? 127 : type == DType::kQ6_K ? 32 : five ? 16 : 8;
    const int64_t high = type == DType::kQ8_0 ? 127 : half - 1;
    std::vector<float> x(static_cast<size_t>(block_elements(type)));
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t pick = i % 16 == 0   ? -half  // every group spans the codes
                           : i % 16 == 1 ? high
                                         : random.below(half + high + 1) - half;
      const int64_t table = kIQ4_NLValues[static_cast<size_t>(pick + half) % 16];
      x[i] = 0.25f * static_cast<float>(type == DType::kIQ4_NL ? table : pick);
    }
    // Scales are rounded to 11 bits, and 63ths and 128ths of them are not exact.
    const std::vector<float> back = round_trip(type, x);
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(back[i], x[i], 0x1p-12 * static_cast<double>(type == DType::kIQ4_NL ? 127 : half))
          << dtype_name(type);
    }
  }
}

TEST(Quantize, ZerosConstantsAndExtremes) {
  for (const DType type : kTypes) {
    const size_t size = static_cast<size_t>(block_elements(type));
    EXPECT_EQ(round_trip(type, std::vector<float>(size)), std::vector<float>(size));
    for (const float v : {1.0f, -3.5f, 60000.0f, -60000.0f, 1e-5f, 1e-30f}) {
      const std::vector<float> back = round_trip(type, std::vector<float>(size, v));
      // Steps of f16 below 2^-14 are 2^-24 each; scales and minima have 6 bits in some types.
      for (const float b : back)
        EXPECT_NEAR(b, v, std::fabs(v) * 0.02 + 0x1p-18) << dtype_name(type);
    }
    // Dead inputs decide nothing.
    std::vector<float> x(size, 0.5f);
    x[3] = 0.25f;
    EXPECT_EQ(round_trip(type, x, std::vector<float>(size)), round_trip(type, x));
  }
}

TEST(Quantize, RefusesWhatNoScaleHolds) {
  for (const DType type : kTypes) {
    const int64_t size = block_elements(type);
    std::vector<char> blocks(static_cast<size_t>(block_bytes(type)));
    std::vector<float> x(static_cast<size_t>(size), 1.0f), w(x);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(), -1e30f, 70000.0f}) {
      x[5] = bad;
      EXPECT_FALSE(quantize(type, x.data(), nullptr, size, blocks.data()));
    }
    x[5] = 1;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -1.0f, std::numeric_limits<float>::infinity()}) {
      w[7] = bad;
      EXPECT_FALSE(quantize(type, x.data(), w.data(), size, blocks.data()));
    }
  }
}

TEST(Quantize, ABlockDependsOnItselfAlone) {
  test::Random random(5);
  const std::vector<float> x = normal(random, 1024, 1);
  for (const DType type : kTypes) {
    const int64_t size = block_elements(type), bytes = block_bytes(type);
    std::vector<char> all(static_cast<size_t>(dtype_bytes(type, 1024)));
    ASSERT_TRUE(quantize(type, x.data(), nullptr, 1024, all.data()));
    std::vector<char> one(static_cast<size_t>(bytes));
    for (int64_t b = 0; b < 1024 / size; ++b) {
      ASSERT_TRUE(quantize(type, x.data() + b * size, nullptr, size, one.data()));
      EXPECT_EQ(0, memcmp(one.data(), all.data() + b * bytes, one.size())) << dtype_name(type);
    }
  }
}

// The formulas of blocks.h, bit by bit, without a helper of the library.
TEST(Dequantize, FollowsTheFormulas) {
  test::Random random(6);
  std::vector<uint8_t> bytes(210);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.next());
  const uint16_t d_bits = 0x2c00, m_bits = 0x3400;  // 2^-4 and 1/4
  const float d = 0.0625f, m = 0.25f;
  const auto put = [&](size_t at, uint16_t bits) { memcpy(bytes.data() + at, &bits, 2); };
  float out[256];

  put(0, d_bits), put(2, m_bits);
  dequantize(DType::kQ5_1, bytes.data(), 32, out);
  for (size_t i = 0; i < 32; ++i) {
    const uint8_t qs = bytes[8 + i % 16];
    const int code = (i < 16 ? qs & 15 : qs >> 4) + 16 * (bytes[4 + i / 8] >> i % 8 & 1);
    EXPECT_EQ(out[i], static_cast<float>(code) * d + m) << i;
  }

  dequantize(DType::kQ5_K, bytes.data(), 256, out);
  for (size_t e = 0; e < 256; ++e) {
    const size_t g = e / 32, i = e % 32;
    const uint8_t* s = bytes.data() + 4;
    const int sc = g < 4 ? s[g] & 63 : (s[g + 4] & 15) + (s[g - 4] >> 6) * 16;
    const int mn = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) + (s[g] >> 6) * 16;
    const uint8_t qs = bytes[48 + g / 2 * 32 + i];
    const int code = (g % 2 == 0 ? qs & 15 : qs >> 4) + 16 * (bytes[16 + i] >> g & 1);
    EXPECT_EQ(out[e], d * static_cast<float>(sc * code) - m * static_cast<float>(mn)) << e;
  }

  put(208, d_bits);
  dequantize(DType::kQ6_K, bytes.data(), 256, out);
  for (size_t e = 0; e < 256; ++e) {
    const size_t half = e / 128, k = e % 128 / 32, i = e % 32;
    const uint8_t low = bytes[64 * half + 32 * (k % 2) + i];
    const int code =
        (k < 2 ? low & 15 : low >> 4) + 16 * (bytes[128 + 32 * half + i] >> (2 * k) & 3) - 32;
    const int scale = static_cast<int8_t>(bytes[192 + e / 16]);
    EXPECT_EQ(out[e], d * static_cast<float>(scale * code)) << e;
  }
}

}  // namespace
}  // namespace mamba
