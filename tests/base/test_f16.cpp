// SPDX-License-Identifier: Apache-2.0
// Half precision: every value there and back, and rounding against the nearest of all halves.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/f16.h"

namespace mamba {
namespace {

uint16_t rounded(float value) { return to_f16(value).bits; }

TEST(f16, every_half_survives_the_way_there_and_back) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 half{static_cast<uint16_t>(bits)};
    const float wide = to_f32(half);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(to_f32(to_f16(wide)))) << bits;
    } else {
      ASSERT_EQ(to_f16(wide).bits, bits);
    }
  }
  EXPECT_EQ(to_f32(f16{0x3c00}), 1.0f);
  EXPECT_EQ(to_f32(f16{0x0001}), 0x1p-24f);
  EXPECT_EQ(to_f32(f16{0x7bff}), 65504.0f);
}

// Between two neighbours a and b: the midpoint goes to the even one, what is beyond it to its side.
TEST(f16, rounds_to_the_nearest_and_ties_to_even) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float a = to_f32(f16{static_cast<uint16_t>(bits)});
    const float b = to_f32(f16{static_cast<uint16_t>(bits + 1)});
    const float middle = a + (b - a) / 2;  // exact: f32 has 13 more bits
    ASSERT_EQ(rounded(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(rounded(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(rounded(std::nextafter(middle, 1e9f)), bits + 1);
    ASSERT_EQ(rounded(-middle), 0x8000u | (bits % 2 == 0 ? bits : bits + 1));
  }
}

TEST(f16, overflows_from_65520_on) {
  EXPECT_EQ(rounded(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(rounded(65520.0f), 0x7c00);
  EXPECT_EQ(rounded(-1e30f), 0xfc00);
  EXPECT_EQ(rounded(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_EQ(rounded(-0.0f), 0x8000);
  EXPECT_EQ(rounded(1e-30f), 0);
}

}  // namespace
}  // namespace mamba
