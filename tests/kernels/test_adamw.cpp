// SPDX-License-Identifier: Apache-2.0
// adamw: every backend against the f64 reference, and the reference against numbers done by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

struct Settings {
  double lr = 1e-2, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, grad_scale = 1;
  int64_t step = 1;
};

struct Tensors {
  std::vector<double> g, p, m, v;
};

Tensors make(int64_t count, uint64_t seed) {
  Random random(seed);
  return {random.vector(count, -1, 1), random.vector(count, -1, 1), random.vector(count, -0.1, 0.1),
          random.vector(count, 0, 0.1)};
}

AdamwArgs args(const Settings& s, int64_t count, CBuf g, Buf p, Buf m, Buf v) {
  return {count, s.lr, s.beta1, s.beta2, s.eps, s.weight_decay, s.grad_scale, s.step, g, p, m, v};
}

void reference(const Settings& s, Tensors& t) {
  Stream stream;
  ref_kernels().adamw(stream, args(s, static_cast<int64_t>(t.g.size()), t.g.data(), t.p.data(),
                                   t.m.data(), t.v.data()));
}

struct Floats {
  std::vector<float> p, m, v;
};

Floats run(Device& device, const Settings& s, const Tensors& t) {
  const int64_t count = static_cast<int64_t>(t.g.size());
  Guarded g(count, 1), p(count, 2), m(count, 3), v(count, 1);
  for (int64_t i = 0; i < count; ++i) {
    g[i] = static_cast<float>(t.g[i]);
    p[i] = static_cast<float>(t.p[i]);
    m[i] = static_cast<float>(t.m[i]);
    v[i] = static_cast<float>(t.v[i]);
  }
  device.kernels().adamw(device.stream(), args(s, count, g.data(), p.data(), m.data(), v.data()));
  device.sync();
  EXPECT_TRUE(g.intact() && p.intact() && m.intact() && v.intact());
  return {p.values(), m.values(), v.values()};
}

TEST(Adamw, EqualsTheReference) {
  std::vector<Settings> all(8);
  all[1].step = 1000;
  all[2].grad_scale = 0.03125;
  all[3].weight_decay = 0;
  all[4].eps = 1e-3;
  all[5].beta1 = 0;
  all[6].beta2 = 0.999;
  all[7].lr = 0;
  for (int64_t count : {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 16385, 70001}) {
    for (const Settings& s : all) {
      if (count > 200 && &s != &all[0]) continue;
      const Tensors start = make(count, count + 1);
      Tensors want = start;
      reference(s, want);
      for_each_backend([&](Device& device) {
        const Floats got = run(device, s, start);
        // Constants and four operations: 6 roundings relative to terms below |m|, |g| <= 1 and v.
        // The update m / sqrt(v) errs by 16 roundings of its own size, which m / bias1 <= 1.1 (or
        // 10 m in step 1) over sqrt(v / bias2) bounds: v holds at least (1 - beta2) g'^2.
        EXPECT_TRUE(close(got.m, want.m, 6 * 0x1p-24, 0));
        EXPECT_TRUE(close(got.v, want.v, 0, 8 * 0x1p-24));
        for (int64_t i = 0; i < count; ++i) {
          const double root = std::sqrt(want.v[i] / (1 - std::pow(s.beta2, s.step))) + s.eps;
          const double largest =
              (std::fabs(want.m[i]) + 1) / (1 - std::pow(s.beta1, s.step)) / root;
          ASSERT_TRUE(close(&got.p[i], &want.p[i], 1, s.lr * largest * 16 * 0x1p-24, 4 * 0x1p-24))
              << "element " << i << " of " << count;
        }
      });
    }
  }
}

// beta1 = 0.5, beta2 = 0.75, step 2, m = 1, v = 1, g' = 3: m = 2, v = 3, bias1 = 0.75, bias2 =
// 0.4375.
TEST(Adamw, TheReferenceFollowsTheFormula) {
  Tensors t = {{1.5}, {4}, {1}, {1}};
  Settings s = {0.1, 0.5, 0.75, 0.01, 0.2, 2, 2};
  reference(s, t);
  EXPECT_DOUBLE_EQ(t.m[0], 2);
  EXPECT_DOUBLE_EQ(t.v[0], 3);
  const double update = 0.1 * (2 / 0.75) / (std::sqrt(3 / 0.4375) + 0.01);
  EXPECT_DOUBLE_EQ(t.p[0], 4 - 0.1 * 0.2 * 4 - update);
}

TEST(Adamw, FindsTheMinimumOfAQuadratic) {
  for_each_backend([&](Device& device) {
    Settings s;
    s.lr = 0.05;
    s.weight_decay = 0;
    std::vector<float> p = {3, -2, 0.5f, 7, -1}, m(5), v(5), g(5);
    const float goal[] = {1, 2, 3, 4, 5};
    for (s.step = 1; s.step <= 2000; ++s.step) {
      for (int i = 0; i < 5; ++i) g[i] = p[i] - goal[i];
      if (s.step > 1000) s.lr = 0.05 * (2000.0 - static_cast<double>(s.step)) / 1000.0;
      device.kernels().adamw(device.stream(), args(s, 5, g.data(), p.data(), m.data(), v.data()));
      device.sync();
    }
    for (int i = 0; i < 5; ++i) EXPECT_NEAR(p[i], goal[i], 1e-3);
  });
}

TEST(Adamw, ThreadsAndRepetitionDoNotChangeABit) {
  const Tensors start = make(100003, 9);
  for_each_backend([&](Device& device) {
    const Floats two = run(device, {}, start);
    for (int threads : {1, 2, 3}) {
      const Floats other = run(*Device::create({device.name(), threads}), {}, start);
      ASSERT_TRUE(same_bits(other.p.data(), two.p.data(), 100003));
      ASSERT_TRUE(same_bits(other.m.data(), two.m.data(), 100003));
      ASSERT_TRUE(same_bits(other.v.data(), two.v.data(), 100003));
    }
  });
}

TEST(Adamw, ANaNGradientSpoilsItsElementOnly) {
  Tensors t = make(50, 2);
  t.g[17] = NAN;
  for_each_backend([&](Device& device) {
    const Floats got = run(device, {}, t);
    for (int i = 0; i < 50; ++i) ASSERT_EQ(std::isnan(got.p[i]), i == 17);
  });
}

}  // namespace
}  // namespace mamba::test
