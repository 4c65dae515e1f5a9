// SPDX-License-Identifier: Apache-2.0
// Distances between names, and the nearest of a list.
#include <gtest/gtest.h>

#include "base/near_names.h"

namespace mamba {
namespace {

TEST(NearNames, CountsLettersToChange) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("embedding", "embeddings"), 1u);
}

TEST(NearNames, ListsTheThreeNearest) {
  EXPECT_EQ(near_names("aab", {"zzzz", "aaa", "aab", "abb", "qqqqqq"}), "aab, aaa, abb");
  EXPECT_EQ(near_names("x", {"y"}), "y");
  EXPECT_EQ(near_names("x", {}), "");
  EXPECT_EQ(near_names("x", {"a\nb"}), "a?b");
}

}  // namespace
}  // namespace mamba
