// SPDX-License-Identifier: Apache-2.0
// transpose: every element of every backend.
#include <gtest/gtest.h>

#include "support/backends.h"
#include "support/poison.h"

namespace mamba::test {
namespace {

TEST(Transpose, EveryElementMoves) {
  constexpr int64_t kShapes[][2] = {{0, 3}, {3, 0}, {1, 1}, {5, 1}, {1, 7}, {33, 4}, {1536, 4}};
  for (const auto& [rows, columns] : kShapes) {
    for_each_backend([&](Device& device) {
      Guarded x(rows * columns, 1), y(rows * columns, 2);
      for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
      device.kernels().transpose(device.stream(), {rows, columns, x.data(), y.data()});
      device.sync();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          ASSERT_EQ(y[c * rows + r], static_cast<float>(r * columns + c));
        }
      }
      EXPECT_TRUE(y.intact());
    });
  }
}

}  // namespace
}  // namespace mamba::test
