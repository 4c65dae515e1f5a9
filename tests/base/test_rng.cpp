// SPDX-License-Identifier: Apache-2.0
// Philox against the known answers published with the paper's code, and the shapes of
// distributions.
#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"

namespace mamba {
namespace {

TEST(rng, philox_gives_the_known_answers) {
  EXPECT_EQ(philox({0, 0}, {0, 0, 0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox({ones, ones}, {ones, ones, ones, ones}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0xa4093822, 0x299f31d0}, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(rng, values_depend_on_seed_stream_and_index_alone) {
  const CounterRng a(7, 1), same(7, 1);
  EXPECT_EQ(a.normal(1000), same.normal(1000));
  std::set<uint64_t> seen;
  for (uint64_t seed : {0ull, 1ull, 1ull << 32}) {
    for (uint64_t stream : {0ull, 1ull, 1ull << 32}) {
      for (uint64_t i : {0ull, 1ull, 1ull << 32}) seen.insert(CounterRng(seed, stream).bits(i));
    }
  }
  EXPECT_EQ(seen.size(), 27u);  // all 64 bits of all three count
}

// Means over n = 100,000 independent draws lie within 5 standard errors (the draws are fixed, so
// the test cannot fail by chance): uniform sd = 1/sqrt(12), normal sd = 1, its square sd = sqrt(2),
// its fourth power sd = sqrt(96).
TEST(rng, distributions_have_the_right_moments) {
  const CounterRng rng(42, 3);
  const int n = 100000;
  double uniform = 0, mean = 0, square = 0, fourth = 0, lag = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const double u = rng.uniform(i), z = rng.normal(i);
    ASSERT_TRUE(u >= 0 && u < 1 && std::isfinite(z));
    uniform += u;
    mean += z;
    square += z * z;
    fourth += z * z * z * z;
    lag += z * rng.normal(i + 1);
  }
  const double error = 5 / std::sqrt(n);
  EXPECT_NEAR(uniform / n, 0.5, error / std::sqrt(12));
  EXPECT_NEAR(mean / n, 0, error);
  EXPECT_NEAR(square / n, 1, error * std::sqrt(2));
  EXPECT_NEAR(fourth / n, 3, error * std::sqrt(96));
  EXPECT_NEAR(lag / n, 0, error);
  EXPECT_GE(rng.uniform(5, -2, -1), -2);
  EXPECT_LT(rng.uniform(5, -2, -1), -1);
}

TEST(rng, below_covers_its_range) {
  const CounterRng rng(1);
  int counts[7] = {};
  for (uint64_t i = 0; i < 70000; ++i) ++counts[rng.below(i, 7)];
  // Binomial(70000, 1/7): sd = 92.6; 5 sd = 463.
  for (const int count : counts) EXPECT_NEAR(count, 10000, 463);
  EXPECT_EQ(rng.below(3, 1), 0u);
}

}  // namespace
}  // namespace mamba
