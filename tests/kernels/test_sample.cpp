// SPDX-License-Identifier: Apache-2.0
// sample: the distribution against a plain computation, the filters, ties and odd numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/backends.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr float kInf = INFINITY;

struct Options {
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1, min_p = 0;
};

int32_t draw(Device& device, const std::vector<float>& logits, const Options& o, double uniform) {
  int32_t token = -7;
  device.kernels().sample(
      device.stream(), {static_cast<int64_t>(logits.size()), logits.data(), o.temperature, o.top_k,
                        o.top_p, o.min_p, uniform, &token});
  device.sync();
  return token;
}

// The definition, by sorting everything.
std::vector<double> probabilities(const std::vector<float>& logits, const Options& o) {
  const size_t n = logits.size();
  std::vector<int> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<double> p(n);
  const auto renormalise = [&] {
    double sum = 0;
    for (double x : p) sum += x;
    for (double& x : p) x /= sum;
  };
  for (size_t i = 0; i < n; ++i) {
    p[i] = std::exp((logits[i] - static_cast<double>(logits[order[0]])) / o.temperature);
  }
  renormalise();
  for (size_t r = 0; r < n; ++r) {
    if (o.top_k > 0 && static_cast<int64_t>(r) >= o.top_k) p[order[r]] = 0;
  }
  renormalise();
  double reached = 0;
  for (size_t r = 0; r < n; ++r) {
    const double mass = p[order[r]];
    if (r > 0 && reached >= o.top_p) p[order[r]] = 0;
    reached += mass;
  }
  renormalise();
  const double least = o.min_p * p[order[0]];
  for (double& x : p) x = x < least ? 0 : x;
  renormalise();
  return p;
}

// Draws at evenly spread uniforms hit each token in proportion, within one draw at either end.
TEST(Sample, CoversEachTokenInProportion) {
  Random random(11);
  std::vector<float> logits(57);
  for (float& x : logits) x = static_cast<float>(random.uniform(-4, 4));
  const Options all[] = {{1, 0, 1, 0},      {0.5, 0, 1, 0},       {3, 0, 1, 0},
                         {1, 5, 1, 0},      {1, 0, 0.8, 0},       {1, 0, 1, 0.1},
                         {0.7, 20, 0.9, 0}, {1.5, 0, 0.95, 0.05}, {1, 30, 0.7, 0.2},
                         {1, 100, 0.99, 0}, {1, 57, 1.5, 0.01},   {2, 2, 0.999, 0}};
  constexpr int kDraws = 4000;
  for (const Options& o : all) {
    const std::vector<double> p = probabilities(logits, o);
    for_each_backend([&](Device& device) {
      std::vector<int> hits(logits.size());
      int32_t last = 0;
      for (int i = 0; i < kDraws; ++i) {
        const int32_t token = draw(device, logits, o, (i + 0.5) / kDraws);
        ASSERT_GE(token, last) << "the walk follows the index";
        last = token;
        ++hits[token];
      }
      for (size_t i = 0; i < p.size(); ++i) {
        ASSERT_LE(std::fabs(hits[i] - p[i] * kDraws), 1.0 + 1e-6) << "token " << i;
        if (p[i] == 0) {
          ASSERT_EQ(hits[i], 0) << "token " << i;
        }
      }
    });
  }
}

// Random draws: chi-square with 31 degrees of freedom is below 74.6 with probability 1 - 2e-5
// (fixed seed).
TEST(Sample, RandomDrawsPassAChiSquareTest) {
  Random random(12);
  std::vector<float> logits(32);
  for (float& x : logits) x = static_cast<float>(random.uniform(-1.5, 1.5));
  const Options o = {0.9, 0, 1, 0};
  const std::vector<double> p = probabilities(logits, o);
  for_each_backend([&](Device& device) {
    constexpr int kDraws = 40000;
    std::vector<int> hits(logits.size());
    for (int i = 0; i < kDraws; ++i) ++hits[draw(device, logits, o, random.uniform(0, 1))];
    double chi = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      const double expected = p[i] * kDraws;
      chi += (hits[i] - expected) * (hits[i] - expected) / expected;
    }
    EXPECT_LT(chi, 74.6);
  });
}

TEST(Sample, GreedyTakesTheFirstOfTheLargest) {
  const std::vector<float> logits = {1, 3, -2, 3, 3};
  for_each_backend([&](Device& device) {
    for (double u : {0.0, 0.5, 0.999999}) {
      EXPECT_EQ(draw(device, logits, {0, 0, 1, 0}, u), 1);
      EXPECT_EQ(draw(device, logits, {-1, 0, 1, 0}, u), 1);
      EXPECT_EQ(draw(device, logits, {1, 1, 1, 0}, u), 1);
      EXPECT_EQ(draw(device, logits, {NAN, 0, 1, 0}, u), 1);
    }
  });
}

TEST(Sample, TiesAtTheCutAreKeptByIndex) {
  const std::vector<float> logits = {1, 2, 2, 2, 1};
  for_each_backend([&](Device& device) {
    EXPECT_EQ(draw(device, logits, {1, 2, 1, 0}, 0.49), 1);
    EXPECT_EQ(draw(device, logits, {1, 2, 1, 0}, 0.51), 2);
    // Three equal tokens of 0.28 each: 0.5 needs two of them.
    EXPECT_EQ(draw(device, logits, {1, 0, 0.5, 0}, 0.999), 2);
    EXPECT_EQ(draw(device, logits, {1, 0, 0.5, 0}, 0.0), 1);
    EXPECT_EQ(draw(device, logits, {1, 0, 1, 1}, 0.999), 3);
  });
}

TEST(Sample, ExtremeFiltersKeepOneToken) {
  const std::vector<float> logits = {0, 5, 1, 4};
  for_each_backend([&](Device& device) {
    for (double u : {0.0, 0.5, 0.999999}) {
      EXPECT_EQ(draw(device, logits, {1, 0, 0, 0}, u), 1);
      EXPECT_EQ(draw(device, logits, {1, 0, 1e-300, 0}, u), 1);
      EXPECT_EQ(draw(device, logits, {1, 0, -1, 0}, u), 1);
      EXPECT_EQ(draw(device, logits, {1, 0, 1, 1}, u), 1);
      EXPECT_EQ(draw(device, logits, {1, 0, 1, 2}, u), 1);
      EXPECT_EQ(draw(device, logits, {1e-30, 0, 1, 0}, u), 1);
      EXPECT_EQ(draw(device, logits, {1e-308, 0, 1, 0}, u), 1);
    }
    EXPECT_EQ(draw(device, logits, {1e300, 1000, 1, 0}, 0.0), 0);
    EXPECT_EQ(draw(device, logits, {1e300, 1000, 1, 0}, 0.999), 3);
  });
}

TEST(Sample, NaNAndMinusInfinityAreNeverDrawn) {
  const std::vector<float> logits = {NAN, -kInf, 1, NAN, 1, -kInf};
  for_each_backend([&](Device& device) {
    for (const Options& o : {Options{}, Options{1, 5, 1, 0}, Options{1, 0, 0.9999, 0}}) {
      EXPECT_EQ(draw(device, logits, o, 0.0), 2);
      EXPECT_EQ(draw(device, logits, o, 0.49), 2);
      EXPECT_EQ(draw(device, logits, o, 0.51), 4);
      EXPECT_EQ(draw(device, logits, o, std::nextafter(1.0, 0.0)), 4);
    }
    EXPECT_EQ(draw(device, logits, {0, 0, 1, 0}, 0), 2);
  });
}

TEST(Sample, PlusInfinityTakesAll) {
  const std::vector<float> logits = {0, kInf, 1e30f, kInf, 3};
  for_each_backend([&](Device& device) {
    EXPECT_EQ(draw(device, logits, {}, 0.0), 1);
    EXPECT_EQ(draw(device, logits, {}, 0.499), 1);
    EXPECT_EQ(draw(device, logits, {}, 0.501), 3);
    EXPECT_EQ(draw(device, logits, {0, 0, 1, 0}, 0.9), 1);
  });
}

TEST(Sample, WithoutAnyLikelyTokenOneIsStillReturned) {
  for_each_backend([&](Device& device) {
    for (const std::vector<float>& logits : {std::vector<float>{NAN, NAN}, {-kInf, -kInf}, {NAN}}) {
      for (const Options& o : {Options{}, Options{0, 0, 1, 0}, Options{1, 0, 0.5, 0.5}}) {
        const int32_t token = draw(device, logits, o, 0.7);
        EXPECT_GE(token, 0);
        EXPECT_LT(token, static_cast<int32_t>(logits.size()));
      }
    }
  });
}

TEST(Sample, ALargeVocabularyAgreesWithTheDefinition) {
  Random random(3);
  std::vector<float> logits(128000);
  for (float& x : logits) x = static_cast<float>(random.uniform(-3, 3));
  for (const Options& o :
       {Options{1, 0, 0.9, 0}, Options{1, 50, 0.9, 0}, Options{0.2, 0, 0.5, 0.01}}) {
    const std::vector<double> p = probabilities(logits, o);
    for (double u : {0.1, 0.5, 0.9}) {
      double reached = 0;
      int32_t want = 0;
      while (want < 127999 && reached + p[want] <= u) reached += p[want++];
      for_each_backend([&](Device& device) {
        // Sums of 128000 doubles differ by 1e-12, which moves the walk by a token at most.
        const int32_t got = draw(device, logits, o, u);
        EXPECT_GT(p[got], 0);
        double before = 0;
        for (int32_t i = 0; i < got; ++i) before += p[i];
        EXPECT_LE(before, u + 1e-9);
        EXPECT_GE(before + p[got], u - 1e-9);
      });
    }
  }
}

TEST(Sample, WorksOnF64Logits) {
  const std::vector<double> logits = {0, std::log(3.0)};
  Stream stream;
  int32_t token = -1;
  ref_kernels().sample(stream, {2, logits.data(), 1, 0, 1, 0, 0.249, &token});
  EXPECT_EQ(token, 0);
  ref_kernels().sample(stream, {2, logits.data(), 1, 0, 1, 0, 0.251, &token});
  EXPECT_EQ(token, 1);
}

}  // namespace
}  // namespace mamba::test
