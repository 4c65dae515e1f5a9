// SPDX-License-Identifier: Apache-2.0
// column_sum: every backend against the f64 reference, over strided rows; equal bits again.
#include <gtest/gtest.h>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

TEST(ColumnSum, EqualsTheReference) {
  constexpr int64_t kShapes[][2] = {{0, 3}, {1, 1}, {2, 5}, {9, 33}, {100, 17}, {9001, 40}};
  for (const auto& [rows, N] : kShapes) {
    const int64_t stride = N + 3;
    Random random(rows + N);
    const std::vector<double> x = random.vector(rows * stride, -1, 1),
                              before = random.vector(N, -1, 1);
    std::vector<double> want = before;
    Stream stream;
    ref_kernels().column_sum(stream, {rows, N, x.data(), stride, want.data()});
    for (int64_t n = 0; n < N; ++n) {
      double sum = before[static_cast<size_t>(n)];
      for (int64_t r = 0; r < rows; ++r) sum += x[static_cast<size_t>(r * stride + n)];
      ASSERT_EQ(want[static_cast<size_t>(n)], sum);
    }
    for_each_backend([&](Device& device) {
      Guarded from(rows * stride, 1);
      for (int64_t i = 0; i < from.size(); ++i) {
        from[i] = static_cast<float>(x[static_cast<size_t>(i)]);
      }
      const auto run = [&] {
        Guarded sums(N, 2);
        for (int64_t n = 0; n < N; ++n)
          sums[n] = static_cast<float>(before[static_cast<size_t>(n)]);
        device.kernels().column_sum(device.stream(), {rows, N, from.data(), stride, sums.data()});
        device.sync();
        EXPECT_TRUE(sums.intact() && from.intact());
        return sums.values();
      };
      const std::vector<float> got = run();
      // Each addition rounds a sum of at most rows + 1.
      const double most = static_cast<double>(rows + 1);
      EXPECT_TRUE(close(got, want, most * most * 0x1p-24, 0));
      EXPECT_EQ(run(), got);
    });
  }
}

}  // namespace
}  // namespace mamba::test
