// SPDX-License-Identifier: Apache-2.0
// Pool: blocks do not overlap, are aligned, and what cannot be had is null.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "device/pool.h"

namespace mamba::test {
namespace {

TEST(Pool, BlocksAreAlignedAndApart) {
  Pool pool;
  const std::vector<int64_t> sizes = {0, 1, 63, 64, 65, 5 << 20, 40 << 20, 1000, 31 << 20, 7};
  std::vector<unsigned char*> blocks;
  for (const int64_t size : sizes) {
    auto* block = static_cast<unsigned char*>(pool.take(size));
    ASSERT_NE(block, nullptr) << size;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u) << size;
    std::memset(block, static_cast<int>(blocks.size() + 1), static_cast<size_t>(size));
    blocks.push_back(block);
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (int64_t at = 0; at < sizes[i]; at += 61) {
      ASSERT_EQ(blocks[i][at], i + 1) << "byte " << at << " of " << sizes[i];
    }
  }
  // In another order than they came, some before more is taken.
  pool.give(blocks[6]);
  pool.give(blocks[0]);
  void* again = pool.take(40 << 20);
  ASSERT_NE(again, nullptr);
  std::memset(again, 99, 40 << 20);
  for (const size_t i : {size_t{1}, size_t{5}, size_t{9}}) EXPECT_EQ(blocks[i][0], i + 1);
  for (const size_t i : {9, 8, 7, 5, 4, 3, 2, 1}) pool.give(blocks[i]);
  pool.give(again);
  pool.give(nullptr);
}

TEST(Pool, WhatCannotBeHadIsNull) {
  Pool pool;
  EXPECT_EQ(pool.take(-1), nullptr);
#ifndef __SANITIZE_ADDRESS__  // which aborts on such allocations
  EXPECT_EQ(pool.take(INT64_MAX), nullptr);
  EXPECT_EQ(pool.take(int64_t{1} << 60), nullptr);
#endif
  EXPECT_NE(pool.take(1), nullptr);
}

}  // namespace
}  // namespace mamba::test
