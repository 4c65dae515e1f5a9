// SPDX-License-Identifier: Apache-2.0
// grad_norm: against the f64 reference; squares of f32 are exact in f64, so only the order differs.
#include <gtest/gtest.h>

#include <cmath>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

double run(Device& device, const Guarded& g) {
  std::vector<double> sum = {-1};
  device.kernels().grad_norm(device.stream(), {g.size(), g.data(), sum.data()});
  device.sync();
  return sum[0];
}

TEST(GradNorm, EqualsTheReference) {
  for (int64_t count : {0, 1, 2, 7, 8, 9, 15, 16, 17, 33, 100, 16383, 16384, 16385, 200003}) {
    Random random(count);
    const std::vector<double> values = random.vector(count, -3, 3);
    Guarded g(count, 3);
    for (int64_t i = 0; i < count; ++i) g[i] = static_cast<float>(values[i]);
    double want = 0;
    Stream stream;
    ref_kernels().grad_norm(stream, {count, values.data(), &want});
    for_each_backend([&](Device& device) {
      // count additions of positive numbers in another order: count 2^-53 relative at most, twice.
      EXPECT_NEAR(run(device, g), want, 2 * want * static_cast<double>(count) * 0x1p-53) << count;
      EXPECT_TRUE(g.intact());
    });
  }
}

TEST(GradNorm, HugeValuesDoNotOverflowAndSmallOnesCount) {
  Guarded g(40, 1);
  for (int64_t i = 0; i < 40; ++i) g[i] = i < 20 ? 3e38f : 1e-30f;
  for_each_backend([&](Device& device) {
    const double big = static_cast<double>(3e38f);
    EXPECT_NEAR(run(device, g), 20 * big * big, 1e-14 * big * big * 20);
  });
  for (int64_t i = 0; i < 40; ++i) g[i] = 1e-30f;
  for_each_backend([&](Device& device) {
    const double small = static_cast<double>(1e-30f);
    EXPECT_NEAR(run(device, g), 40 * small * small, 1e-13 * small * small * 40);
  });
}

TEST(GradNorm, NaNAndInfinityPassThrough) {
  for (int64_t at : {0, 8, 50, 99}) {
    Guarded g(100, 1);
    for (int64_t i = 0; i < 100; ++i) g[i] = 1;
    g[at] = -INFINITY;
    for_each_backend([&](Device& device) { EXPECT_EQ(run(device, g), INFINITY); });
    g[at] = NAN;
    for_each_backend([&](Device& device) { EXPECT_TRUE(std::isnan(run(device, g))); });
  }
}

TEST(GradNorm, ThreadsAndRepetitionDoNotChangeABit) {
  Random random(1);
  Guarded g(300001, 2);
  for (int64_t i = 0; i < g.size(); ++i) g[i] = static_cast<float>(random.uniform(-1, 1));
  for_each_backend([&](Device& device) {
    const double two = run(device, g);
    for (int threads : {1, 2, 3}) {
      EXPECT_EQ(run(*Device::create({device.name(), threads}), g), two);
    }
  });
}

}  // namespace
}  // namespace mamba::test
