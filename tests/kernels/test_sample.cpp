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

constexpr SampleStep kPenalties = SampleStep::kPenalties, kTopK = SampleStep::kTopK,
                     kTypicalP = SampleStep::kTypicalP, kTopP = SampleStep::kTopP,
                     kMinP = SampleStep::kMinP, kTemperature = SampleStep::kTemperature;

struct Options {
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1, min_p = 0, typical_p = 1;
  double repeat = 1, presence = 0, frequency = 0;
  std::vector<int32_t> seen = {}, seen_times = {};
  std::vector<SampleStep> steps = {kPenalties, kTemperature, kTypicalP, kTopK, kTopP, kMinP};
};

template <class T>
SampleRow row_of(const std::vector<T>& logits, const Options& o, double uniform, int32_t* token) {
  SampleRow a{};
  a.vocab = static_cast<int64_t>(logits.size());
  a.logits = CBuf(logits.data());
  a.steps = o.steps.data();
  a.step_count = static_cast<int64_t>(o.steps.size());
  a.temperature = o.temperature;
  a.top_k = o.top_k;
  a.typical_p = o.typical_p, a.top_p = o.top_p, a.min_p = o.min_p;
  a.repeat = o.repeat, a.presence = o.presence, a.frequency = o.frequency;
  a.seen = o.seen.data(), a.seen_times = o.seen_times.data();
  a.seen_count = static_cast<int64_t>(o.seen.size());
  a.uniform = uniform;
  a.token = token;
  return a;
}

int32_t draw(Device& device, const std::vector<float>& logits, const Options& o, double uniform) {
  std::vector<int32_t> token = {-7};
  const SampleRow row = row_of(logits, o, uniform, token.data());
  device.kernels().sample(device.stream(), {1, &row});
  device.sync();
  return token[0];
}

// The definition: every step over the whole vocabulary, by sorting everything.
class Definition {
 public:
  explicit Definition(const std::vector<float>& logits)
      : x_(logits.begin(), logits.end()), kept_(logits.size(), true) {}

  void apply(SampleStep step, const Options& o) {
    const std::vector<double> p = probabilities();
    switch (step) {
      case kPenalties:
        for (size_t i = 0; i < o.seen.size(); ++i) {
          if (o.seen[i] >= static_cast<int32_t>(x_.size())) continue;
          double& x = x_[static_cast<size_t>(o.seen[i])];
          if (x > 0)
            x /= o.repeat;
          else
            x *= o.repeat;
          x = x - o.presence - o.frequency * o.seen_times[i];
        }
        return;
      case kTopK:
        return keep(p, x_, 2, o.top_k > 0 ? o.top_k : static_cast<int64_t>(x_.size()));
      case kTypicalP: {
        if (o.typical_p >= 1) return;
        double entropy = 0;
        for (const double q : p) entropy -= q > 0 ? q * std::log(q) : 0;
        std::vector<double> key(p.size());
        for (size_t i = 0; i < p.size(); ++i) key[i] = -std::fabs(-std::log(p[i]) - entropy);
        return keep(p, key, o.typical_p, static_cast<int64_t>(p.size()));
      }
      case kTopP:
        return keep(p, x_, o.top_p >= 1 ? 2 : o.top_p, static_cast<int64_t>(p.size()));
      case kMinP: {
        const double most = *std::max_element(p.begin(), p.end());
        for (size_t i = 0; i < p.size(); ++i) kept_[i] = kept_[i] && p[i] >= o.min_p * most;
        return;
      }
      case kTemperature:
        for (double& x : x_) x /= o.temperature;
        return;
    }
  }

  std::vector<double> probabilities() const {
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < x_.size(); ++i) most = kept_[i] ? std::max(most, x_[i]) : most;
    std::vector<double> p(x_.size());
    for (size_t i = 0; i < p.size(); ++i) sum += p[i] = kept_[i] ? std::exp(x_[i] - most) : 0;
    for (double& q : p) q /= sum;
    return p;
  }

 private:
  // Keeps the first tokens by key, largest first: `count` of them, or the fewest that reach `mass`.
  void keep(const std::vector<double>& p, const std::vector<double>& key, double mass,
            int64_t count) {
    std::vector<size_t> order;
    for (size_t i = 0; i < key.size(); ++i) {
      if (kept_[i]) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return key[a] > key[b]; });
    double reached = 0;
    for (size_t r = 0; r < order.size(); ++r) {
      if (static_cast<int64_t>(r) >= count || (r > 0 && reached >= mass)) kept_[order[r]] = false;
      reached += p[order[r]];
    }
  }

  std::vector<double> x_;
  std::vector<bool> kept_;
};

std::vector<double> probabilities(const std::vector<float>& logits, const Options& o) {
  Definition definition(logits);
  for (const SampleStep step : o.steps) definition.apply(step, o);
  return definition.probabilities();
}

// Draws at evenly spread uniforms hit each token in proportion, within one draw at either end.
void expect_proportions(const std::vector<float>& logits, const Options& o, int draws) {
  const std::vector<double> p = probabilities(logits, o);
  for_each_backend([&](Device& device) {
    std::vector<int> hits(logits.size());
    int32_t last = 0;
    for (int i = 0; i < draws; ++i) {
      const int32_t token = draw(device, logits, o, (i + 0.5) / draws);
      ASSERT_GE(token, last) << "the walk follows the index";
      last = token;
      ++hits[token];
    }
    for (size_t i = 0; i < p.size(); ++i) {
      ASSERT_LE(std::fabs(hits[i] - p[i] * draws), 1.0 + 1e-6) << "token " << i;
      if (p[i] == 0) {
        ASSERT_EQ(hits[i], 0) << "token " << i;
      }
    }
  });
}

TEST(Sample, CoversEachTokenInProportion) {
  Random random(11);
  std::vector<float> logits(57);
  for (float& x : logits) x = static_cast<float>(random.uniform(-4, 4));
  const Options all[] = {{1, 0, 1, 0},        {0.5, 0, 1, 0},       {3, 0, 1, 0},
                         {1, 5, 1, 0},        {1, 0, 0.8, 0},       {1, 0, 1, 0.1},
                         {0.7, 20, 0.9, 0},   {1.5, 0, 0.95, 0.05}, {1, 30, 0.7, 0.2},
                         {1, 100, 0.99, 0},   {1, 57, 1.5, 0.01},   {2, 2, 0.999, 0},
                         {1, 0, 1, 0, 0.2},   {1, 0, 1, 0, 0.7},    {0.6, 40, 0.9, 0.02, 0.95},
                         {3, 0, 0.9, 0, 0.5}, {1, 1, 1, 0, 0.3},    {1, 0, 1, 0, 1e-9}};
  for (const Options& o : all) expect_proportions(logits, o, 2000);
}

TEST(Sample, EveryOrderOfTheStepsIsTheirDefinition) {
  Random random(21);
  std::vector<float> logits(33);
  for (float& x : logits) x = static_cast<float>(random.uniform(-3, 3));
  Options o = {0.7, 12, 0.85, 0.04, 0.8, 1.3, 0.4, 0.25, {30, 2, 17, 900, 8}, {1, 3, 2, 5, 1}};
  o.steps = {kPenalties, kTopK, kTypicalP, kTopP, kMinP, kTemperature};
  int orders = 0;
  do {  // all 720, with every seventh also shortened
    Options shorter = o;
    if (orders % 7 == 0) shorter.steps.resize(static_cast<size_t>(orders % 6));
    expect_proportions(logits, shorter, 100);
    ++orders;
  } while (std::next_permutation(o.steps.begin(), o.steps.end()));
  EXPECT_EQ(orders, 720);
}

TEST(Sample, PenaltiesAreThoseOfTheFormula) {
  // 2 / 1.25 - 0.5 - 2 * 0.1 = 0.9;  -2 * 1.25 - 0.5 - 0.1 = -3.1;  0 * 1.25 - 0.5 - 0.3 = -0.8.
  const std::vector<float> logits = {2, -2, 0, 0.89f, -0.81f};
  Options o = {0, 0, 1, 0, 1, 1.25, 0.5, 0.1, {2, 0, 1}, {3, 2, 1}};
  o.steps = {kTemperature, kPenalties};
  const std::vector<double> want = {0.9, -3.1, -0.8, 0.89f, -0.81f};
  double total = 0;
  for (const double x : want) total += std::exp(x);
  for_each_backend([&](Device& device) {
    EXPECT_EQ(draw(device, logits, o, 0.5), 0);
    Options sampled = o;
    sampled.temperature = 1;
    double reached = 0;
    for (int32_t i = 0; i < 4; ++i) {  // the borders of the walk, to one part in 1e9
      reached += std::exp(want[static_cast<size_t>(i)]) / total;
      EXPECT_EQ(draw(device, logits, sampled, reached - 1e-9), i);
      EXPECT_EQ(draw(device, logits, sampled, reached + 1e-9), i + 1);
    }
  });
}

TEST(Sample, GreedyTakesPenaltiesAndNothingElse) {
  const std::vector<float> logits = {1, 3, 2.5f};
  Options o = {0, 2, 0.1, 0.9, 0.01, 2, 0, 0, {1}, {1}};
  for_each_backend([&](Device& device) {
    EXPECT_EQ(draw(device, logits, o, 0.9), 2);
    Options without = o;
    without.steps = {kTypicalP, kTopK, kTemperature};
    EXPECT_EQ(draw(device, logits, without, 0.9), 1);
    without.steps = {};
    EXPECT_EQ(draw(device, logits, without, 0.9), 1);
  });
}

// Random draws: chi-square with 31 degrees of freedom is below 74.6 with probability 1 - 2e-5
// (fixed seed).
TEST(Sample, RandomDrawsPassAChiSquareTest) {
  Random random(12);
  std::vector<float> logits(32);
  for (float& x : logits) x = static_cast<float>(random.uniform(-1.5, 1.5));
  const Options o = {0.9, 0, 1, 0, 1, 1.2, 0.3, 0.1, {3, 9}, {1, 4}};
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

// Biases, bans and checks, and that rows of one call do not mix.
TEST(Sample, BiasesBansAndChecksAreThoseOfTheRow) {
  for_each_backend([](Device& device) {
    const std::vector<float> plain = {1, 3, 2, 0}, broken = {1, NAN, 2, 0}, endless = {1, kInf, 2};
    const std::vector<int32_t> biased = {1, 0, 1}, all = {0, 1, 2, 3};
    const std::vector<double> bias = {-1.5, 0.75, -0.25}, ban(4, -kInf), nan = {NAN};
    std::vector<int32_t> token(8, -7);
    std::vector<SampleRow> rows;
    const Options greedy = {.temperature = 0};
    const auto add = [&](const std::vector<float>& logits, const std::vector<int32_t>& ids,
                         const std::vector<double>& values, bool check) {
      SampleRow row = row_of(logits, greedy, 0, token.data() + rows.size());
      row.check_finite = check;
      row.biased = ids.data(), row.bias = values.data();
      row.biased_count = static_cast<int64_t>(std::min(ids.size(), values.size()));
      rows.push_back(row);
    };
    add(plain, {}, {}, true);
    add(plain, biased, bias, true);  // 1.75, 1.25, 2, 0
    add(plain, all, ban, false);
    add(broken, {}, {}, true);
    add(broken, {}, {}, false);
    add(endless, {}, {}, true);
    add(endless, biased, ban, false);  // id 2 alone is left
    add(plain, biased, nan, false);    // NaN bans
    device.kernels().sample(device.stream(), {static_cast<int64_t>(rows.size()), rows.data()});
    device.sync();
    EXPECT_EQ(token, (std::vector<int32_t>{1, 2, kNoToken, kNotFinite, 2, kNotFinite, 2, 2}));
    // The same among random draws of other options, row by row and together.
    Random random(3);
    std::vector<std::vector<float>> logits(9);
    std::vector<Options> options(9);
    std::vector<int32_t> together(9), alone(9);
    rows.clear();
    for (size_t r = 0; r < logits.size(); ++r) {
      for (int i = 0; i < 500 + 100 * static_cast<int>(r); ++i) {
        logits[r].push_back(static_cast<float>(random.uniform(-4, 4)));
      }
      options[r].temperature = r % 3 == 0 ? 0 : 0.8;
      options[r].top_k = r % 2 == 0 ? 40 : 0;
      options[r].top_p = r % 4 == 0 ? 1 : 0.9;
      rows.push_back(row_of(logits[r], options[r], random.uniform(0, 1), together.data() + r));
    }
    device.kernels().sample(device.stream(), {9, rows.data()});
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r].token = alone.data() + r;
      device.kernels().sample(device.stream(), {1, &rows[r]});
    }
    device.sync();
    EXPECT_EQ(together, alone);
  });
}

TEST(Sample, WorksOnF64Logits) {
  const std::vector<double> logits = {0, std::log(3.0)};
  Stream stream;
  int32_t token = -1;
  const Options options;
  SampleRow row = row_of(logits, options, 0.249, &token);
  ref_kernels().sample(stream, {1, &row});
  EXPECT_EQ(token, 0);
  row.uniform = 0.251;
  ref_kernels().sample(stream, {1, &row});
  EXPECT_EQ(token, 1);
}

}  // namespace
}  // namespace mamba::test
