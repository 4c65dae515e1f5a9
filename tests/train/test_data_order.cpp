// SPDX-License-Identifier: Apache-2.0
// The order of windows of a stream.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "support/expect_error.h"
#include "train/data_order.h"

namespace mamba {
namespace {

using test::fails_with;

TEST(IndexPermutation, IsABijectionForEveryCount) {
  for (const int64_t count : {1, 2, 3, 4, 5, 7, 8, 16, 17, 63, 64, 65, 1000, 4095, 4096, 4097}) {
    const IndexPermutation permutation(count, 42, 7);
    std::vector<bool> seen(static_cast<size_t>(count), false);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = permutation(i);
      ASSERT_GE(j, 0);
      ASSERT_LT(j, count);
      ASSERT_FALSE(seen[static_cast<size_t>(j)]) << j << " twice of " << count;
      seen[static_cast<size_t>(j)] = true;
    }
  }
}

TEST(IndexPermutation, DependsOnSeedAndStream) {
  const IndexPermutation a(1000, 1, 0), b(1000, 2, 0), c(1000, 1, 1);
  int same_b = 0, same_c = 0, fixed = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    same_b += a(i) == b(i);
    same_c += a(i) == c(i);
    fixed += a(i) == i;
  }
  // Random permutations agree in one place on average; more than 10 has a chance below 1e-7.
  EXPECT_LE(same_b, 10);
  EXPECT_LE(same_c, 10);
  EXPECT_LE(fixed, 10);
}

TEST(IndexPermutation, SpreadsNeighbours) {
  const int64_t count = 10000;
  const IndexPermutation permutation(count, 3, 3);
  double sum = 0;
  for (int64_t i = 0; i + 1 < count; ++i) {
    sum += std::abs(static_cast<double>(permutation(i + 1) - permutation(i)));
  }
  // Of two random places: a third of the count, standard deviation of the mean 0.24 % of the count;
  // neighbours are not quite independent, 2 % is far outside of chance in any case.
  EXPECT_NEAR(sum / static_cast<double>(count - 1) / static_cast<double>(count), 1.0 / 3, 0.02);
}

TEST(WindowOrder, EachEpochCoversItsWindowsOnce) {
  const int64_t size = 1003, L = 10;
  WindowOrder order(size, L, DataOrder::kShuffled, 5, "--data");
  std::set<int64_t> offsets;
  int64_t sample = 0;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::vector<int64_t> begins;
    while (order.begin(sample), order.epoch() == epoch) begins.push_back(order.begin(sample++));
    std::sort(begins.begin(), begins.end());
    const int64_t offset = begins.front();
    offsets.insert(offset);
    ASSERT_LT(offset, L);
    ASSERT_EQ(static_cast<int64_t>(begins.size()), (size - 1 - offset) / L);
    for (size_t i = 0; i < begins.size(); ++i) {
      ASSERT_EQ(begins[i], offset + static_cast<int64_t>(i) * L);
    }
    ASSERT_LE(begins.back() + L + 1, size);
  }
  EXPECT_GT(offsets.size(), 5u);  // of 10 possible, in 20 epochs
}

TEST(WindowOrder, GoesOnAtAnySample) {
  WindowOrder whole(503, 7, DataOrder::kShuffled, 9, "--data");
  std::vector<int64_t> begins;
  for (int64_t s = 0; s < 400; ++s) begins.push_back(whole.begin(s));
  EXPECT_GE(whole.epoch(), 4);
  for (const int64_t from : {0, 1, 70, 71, 72, 143, 399}) {
    WindowOrder resumed(503, 7, DataOrder::kShuffled, 9, "--data");
    for (int64_t s = from; s < 400; ++s) {
      ASSERT_EQ(resumed.begin(s), begins[static_cast<size_t>(s)]) << "from " << from;
    }
    ASSERT_EQ(resumed.begin(0), begins[0]);  // and backwards
  }
}

TEST(WindowOrder, SequentialWalksTheStream) {
  WindowOrder order(32, 10, DataOrder::kSequential, 1, "--data");
  const std::vector<int64_t> want = {0, 10, 20, 0, 10, 20, 0};
  for (size_t s = 0; s < want.size(); ++s) {
    EXPECT_EQ(order.begin(static_cast<int64_t>(s)), want[s]);
  }
}

TEST(WindowOrder, TakesAStreamOfExactlyOneWindow) {
  WindowOrder order(11, 10, DataOrder::kShuffled, 1, "--data");
  for (int64_t s = 0; s < 5; ++s) EXPECT_EQ(order.begin(s), 0);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"--data", "at least 11 tokens", "got 10"},
                         [] { WindowOrder(10, 10, DataOrder::kShuffled, 1, "--data"); }));
}

}  // namespace
}  // namespace mamba
