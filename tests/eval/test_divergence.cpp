// SPDX-License-Identifier: Apache-2.0
// Divergence of two models: the definition over every target, and zero from a model to itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "generate/support.h"
#include "mamba/evaluate.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::byte_model;
using test::prompt_ids;

TokenSource source_of(const std::vector<int32_t>& ids) {
  auto at = std::make_shared<int64_t>(0);
  return [&ids, at](int32_t* out, int32_t* bytes, int64_t count) {
    const int64_t n = std::min<int64_t>(static_cast<int64_t>(ids.size()) - *at, count);
    std::copy_n(ids.begin() + *at, n, out);
    std::fill_n(bytes, n, 1);
    *at += n;
    return n;
  };
}

std::vector<double> log_probs(Model& model, const std::vector<int32_t>& ids, int64_t begin,
                              int64_t target) {
  std::vector<float> logits(256);
  State state = model.new_state(1);
  model.forward(ids.data() + begin, target - begin, state, Logits::kLast, logits.data());
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l));
  std::vector<double> out;
  for (const float l : logits) out.push_back(l - std::log(sum));
  return out;
}

TEST(Divergence, IsTheDefinitionOverEveryTarget) {
  Model base = byte_model("mamba1", 1), model = byte_model("mamba2", 2);
  const std::vector<int32_t> ids = prompt_ids(40);
  // Windows [0, 12), [4, 16), ... [28, 40): targets 1..11, then the last 4 of each.
  std::vector<double> kl;
  double nll_p = 0, nll_q = 0, same = 0, squares = 0;
  for (int64_t t = 1; t < 40; ++t) {
    const int64_t begin = t < 12 ? 0 : (t - 12) / 4 * 4 + 4;
    const std::vector<double> p = log_probs(base, ids, begin, t);
    const std::vector<double> q = log_probs(model, ids, begin, t);
    double sum = 0;
    for (size_t v = 0; v < 256; ++v) sum += std::exp(p[v]) * (p[v] - q[v]);
    kl.push_back(sum);
    const size_t id = static_cast<size_t>(ids[static_cast<size_t>(t)]);
    nll_p -= p[id] / 39, nll_q -= q[id] / 39;
    squares += std::pow(std::exp(q[id]) - std::exp(p[id]), 2) / 39;
    const auto top = [](const std::vector<double>& x) {
      return std::max_element(x.begin(), x.end()) - x.begin();
    };
    same += top(p) == top(q) ? 1 : 0;
  }
  std::sort(kl.begin(), kl.end());
  double mean = 0, variance = 0;
  for (const double x : kl) mean += x / 39;
  for (const double x : kl) variance += (x - mean) * (x - mean) / 38;
  PerplexityOptions options;
  options.window = 12;
  options.stride = 4;
  const DivergenceResult r = evaluate_divergence(base, model, source_of(ids), options);
  EXPECT_EQ(r.tokens, 40);
  EXPECT_EQ(r.scored, 39);
  constexpr double kTolerance = 2e-5;  // logits of size 10 in f32, two of them
  EXPECT_NEAR(r.kl_mean, mean, kTolerance);
  EXPECT_NEAR(r.kl_error, std::sqrt(variance / 39), kTolerance);
  EXPECT_NEAR(r.kl_min, kl[0], kTolerance);
  EXPECT_NEAR(r.kl_max, kl[38], kTolerance);
  EXPECT_NEAR(r.kl_median, kl[19], kTolerance);
  EXPECT_NEAR(r.kl_90, kl[34] + 0.2 * (kl[35] - kl[34]), kTolerance);     // 0.9 * 38 = 34.2
  EXPECT_NEAR(r.kl_95, kl[36] + 0.1 * (kl[37] - kl[36]), kTolerance);     // 36.1
  EXPECT_NEAR(r.kl_99, kl[37] + 0.62 * (kl[38] - kl[37]), kTolerance);    // 37.62
  EXPECT_NEAR(r.kl_999, kl[37] + 0.962 * (kl[38] - kl[37]), kTolerance);  // 37.962
  EXPECT_NEAR(r.same_top, same / 39, 1e-12);
  EXPECT_NEAR(r.nll_base, nll_p, kTolerance);
  EXPECT_NEAR(r.nll_model, nll_q, kTolerance);
  EXPECT_NEAR(r.perplexity_base, std::exp(nll_p), std::exp(nll_p) * kTolerance);
  EXPECT_NEAR(r.target_difference_rms, std::sqrt(squares), kTolerance);
  EXPECT_GT(r.kl_mean, 0.1);  // the models differ
}

TEST(Divergence, OfAModelFromItselfIsZero) {
  Model model = byte_model("mamba2");
  const std::vector<int32_t> ids = prompt_ids(300);
  Model same = byte_model("mamba2");
  for (const bool carry : {false, true}) {
    PerplexityOptions options;
    options.window = 100;
    options.carry_state = carry;
    options.stride = 100;
    const DivergenceResult r = evaluate_divergence(model, same, source_of(ids), options);
    EXPECT_EQ(r.scored, carry ? 299 : 297);
    EXPECT_NEAR(r.kl_max, 0, 1e-12);
    EXPECT_EQ(r.same_top, 1);
    EXPECT_EQ(r.nll_base, r.nll_model);
    const PerplexityResult alone = evaluate_perplexity(model, source_of(ids), options);
    EXPECT_NEAR(r.perplexity_base, alone.perplexity, 1e-5 * alone.perplexity);
  }
}

TEST(Divergence, RefusesModelsOfTwoVocabularies) {
  Model base = byte_model("mamba1");
  Config c = base.config();
  c.vocab_size = 264;
  Model model = Model::create(c, 1);
  const std::vector<int32_t> ids = prompt_ids(50), one = prompt_ids(1);
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"one vocabulary", "256", "264"},
                               [&] { evaluate_divergence(base, model, source_of(ids)); }));
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"[eval kl]", "2 tokens", "got 1"},
                               [&] { evaluate_divergence(base, base, source_of(one)); }));
  PerplexityOptions options;
  options.progress = [](int64_t) { return false; };
  EXPECT_TRUE(test::fails_with(ErrorCode::kCancelled, {"stopped after 49"},
                               [&] { evaluate_divergence(base, base, source_of(ids), options); }));
}

}  // namespace
}  // namespace mamba
