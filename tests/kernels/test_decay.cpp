// SPDX-License-Identifier: Apache-2.0
// decay: every backend against the f64 reference, and that against the formula.
#include <gtest/gtest.h>

#include <cmath>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr int64_t kShapes[][2] = {{0, 4}, {1, 1}, {3, 5}, {17, 16}, {33, 1}, {1536, 16}};

TEST(Decay, IsMinusTheExponentialTransposed) {
  for (const auto& [E, N] : kShapes) {
    Random random(E + N);
    const std::vector<double> A_log = random.vector(E * N, -4, 4);
    std::vector<double> want(A_log.size());
    Stream stream;
    ref_kernels().decay_forward(stream, {E, N, A_log.data(), want.data()});
    for (int64_t e = 0; e < E; ++e) {
      for (int64_t n = 0; n < N; ++n) {
        ASSERT_EQ(want[static_cast<size_t>(n * E + e)],
                  -std::exp(A_log[static_cast<size_t>(e * N + n)]));
      }
    }
    for_each_backend([&](Device& device) {
      Guarded in(E * N, 1), out(E * N, 3);
      for (int64_t i = 0; i < E * N; ++i) in[i] = static_cast<float>(A_log[static_cast<size_t>(i)]);
      device.kernels().decay_forward(device.stream(), {E, N, in.data(), out.data()});
      device.sync();
      // The argument's rounding, 4 * 2^-24, and that of an exp within 2 ulp.
      EXPECT_TRUE(close(out.values(), want, 0, 7 * 0x1p-24));
      EXPECT_TRUE(in.intact() && out.intact());
    });
  }
}

TEST(Decay, GradientIsAdded) {
  for (const auto& [E, N] : kShapes) {
    Random random(E * N + 1);
    const std::vector<double> dA = random.vector(E * N, -1, 1), A = random.vector(E * N, -9, 0),
                              before = random.vector(E * N, -1, 1);
    std::vector<double> want = before;
    Stream stream;
    ref_kernels().decay_backward(stream, {E, N, dA.data(), A.data(), want.data()});
    for (int64_t e = 0; e < E; ++e) {
      for (int64_t n = 0; n < N; ++n) {
        const auto from = static_cast<size_t>(n * E + e), to = static_cast<size_t>(e * N + n);
        ASSERT_EQ(want[to], before[to] + dA[from] * A[from]);
      }
    }
    for_each_backend([&](Device& device) {
      Guarded dA_t(E * N, 2), A_t(E * N, 1), dA_log(E * N, 3);
      for (int64_t i = 0; i < E * N; ++i) {
        const auto at = static_cast<size_t>(i);
        dA_t[i] = static_cast<float>(dA[at]);
        A_t[i] = static_cast<float>(A[at]);
        dA_log[i] = static_cast<float>(before[at]);
      }
      device.kernels().decay_backward(device.stream(),
                                      {E, N, dA_t.data(), A_t.data(), dA_log.data()});
      device.sync();
      EXPECT_TRUE(close(dA_log.values(), want, 5 * 9 * 0x1p-24, 0));  // 5 roundings of up to 9
      EXPECT_TRUE(dA_log.intact());
    });
  }
}

}  // namespace
}  // namespace mamba::test
