// SPDX-License-Identifier: Apache-2.0
// Steps on a bf16 state: exactly the f32 step from the widened state, whose result is rounded.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "base/bf16.h"
#include "support/backends.h"
#include "support/random.h"

namespace mamba::test {
namespace {

// Seeded floats.
struct Floats : Random {
  using Random::Random;
  std::vector<float> floats(int64_t count, double lo, double hi) {
    const std::vector<double> v = vector(count, lo, hi);
    return {v.begin(), v.end()};
  }
};

std::vector<bf16> rounded(const std::vector<float>& values) {
  std::vector<bf16> out;
  for (const float v : values) out.push_back(to_bf16(v));
  return out;
}

// run(state, y) takes one step. `gap` elements behind each sequence's state must stay.
void expect_rounded_step(Floats& random, int64_t B, int64_t count, int64_t gap, int64_t outputs,
                         const std::function<void(Buf state, int64_t stride, float* y)>& run) {
  const std::vector<bf16> start = rounded(random.floats(B * (count + gap), -2, 2));
  std::vector<float> wide;
  for (const bf16 v : start) wide.push_back(to_f32(v));
  std::vector<bf16> narrow = start;
  std::vector<float> y_wide(static_cast<size_t>(outputs)), y_narrow(y_wide);
  run(Buf(wide.data()), count + gap, y_wide.data());
  run(Buf(narrow.data()), count + gap, y_narrow.data());
  EXPECT_EQ(y_narrow, y_wide);
  int64_t changed = 0;
  for (size_t i = 0; i < narrow.size(); ++i) {
    const bool inside = static_cast<int64_t>(i) % (count + gap) < count;
    const bf16 expected = inside ? to_bf16(wide[i]) : start[i];
    ASSERT_EQ(narrow[i].bits, expected.bits) << "element " << i;
    changed += narrow[i].bits != start[i].bits;
  }
  EXPECT_GT(changed, 0);
}

TEST(StateBf16, Conv1d) {
  for_each_backend([](Device& device) {
    Floats random(1);
    for (const int64_t C : {1, 5, 16, 33, 100}) {
      for (const int64_t K : {2, 4, 5}) {
        const int64_t B = 3;
        const std::vector<float> x = random.floats(B * C, -2, 2), bias = random.floats(C, -1, 1);
        const std::vector<float> taps = random.floats(K * C, -1, 1);
        std::vector<float> weight(taps.size());
        for (int64_t k = 0; k < K; ++k) {
          for (int64_t c = 0; c < C; ++c) weight[c * K + k] = taps[k * C + c];
        }
        expect_rounded_step(random, B, (K - 1) * C, 3, B * C,
                            [&](Buf state, int64_t stride, float* y) {
                              Conv1dArgs a{};
                              a.B = B, a.L = 1, a.C = C, a.K = K, a.silu = true;
                              a.x = x.data(), a.x_stride = C;
                              a.weight = weight.data(), a.taps = taps.data(), a.bias = bias.data();
                              a.state_in = state, a.state_out = state, a.state_stride = stride;
                              a.y = y, a.y_stride = C;
                              device.kernels().conv1d_forward(device.stream(), a);
                              device.sync();
                            });
      }
    }
  });
}

TEST(StateBf16, Scan) {
  for_each_backend([](Device& device) {
    Floats random(2);
    for (const int64_t E : {1, 7, 16, 45, 130}) {
      for (const int64_t N : {1, 5, 16}) {
        const int64_t B = 2;
        const std::vector<float> u = random.floats(B * E, -2, 2), z = random.floats(B * E, -2, 2);
        const std::vector<float> delta = random.floats(B * E, -3, 1), D = random.floats(E, -1, 1);
        const std::vector<float> A = random.floats(N * E, -3, -0.1f), b = random.floats(E, -1, 1);
        const std::vector<float> Bm = random.floats(B * N, -1, 1), Cm = random.floats(B * N, -1, 1);
        expect_rounded_step(random, B, N * E, 5, B * E, [&](Buf state, int64_t stride, float* y) {
          ScanStepArgs a{};
          a.B = B, a.E = E, a.N = N, a.G = 1;
          a.bc = ScanBC::kGrouped, a.delta_softplus = true;
          a.u = u.data(), a.u_stride = E, a.delta = delta.data(), a.delta_stride = E;
          a.delta_bias = b.data(), a.A_t = A.data();
          a.Bm = Bm.data(), a.Cm = Cm.data(), a.B_stride = a.C_stride = N;
          a.D = D.data(), a.z = z.data(), a.z_stride = E;
          a.h = state, a.h_stride = stride, a.y = y, a.y_stride = E;
          device.kernels().scan_step(device.stream(), a);
          device.sync();
        });
      }
    }
  });
}

TEST(StateBf16, Ssd) {
  for_each_backend([](Device& device) {
    Floats random(3);
    for (const int64_t P : {1, 4, 6, 16}) {
      for (const int64_t N : {1, 16, 21, 64}) {
        const int64_t B = 2, H = 4, G = 2;
        const std::vector<float> x = random.floats(B * H * P, -2, 2), D = random.floats(H, -1, 1);
        const std::vector<float> dt = random.floats(B * H, -3, 1), bias = random.floats(H, -1, 1);
        const std::vector<float> A = random.floats(H, -2, -0.1f);
        const std::vector<float> Bm = random.floats(B * G * N, -1, 1);
        const std::vector<float> Cm = random.floats(B * G * N, -1, 1);
        expect_rounded_step(
            random, B, H * P * N, 7, B * H * P, [&](Buf state, int64_t stride, float* y) {
              SsdStepArgs a{};
              a.B = B, a.H = H, a.P = P, a.N = N, a.G = G;
              a.dt_max = 1e30;
              a.x = x.data(), a.x_stride = H * P, a.dt = dt.data(), a.dt_stride = H;
              a.dt_bias = bias.data(), a.A = A.data();
              a.Bm = Bm.data(), a.Cm = Cm.data(), a.B_stride = a.C_stride = G * N;
              a.D = D.data(), a.S = state, a.s_stride = stride, a.y = y, a.y_stride = H * P;
              device.kernels().ssd_step(device.stream(), a);
              device.sync();
            });
      }
    }
  });
}

}  // namespace
}  // namespace mamba::test
