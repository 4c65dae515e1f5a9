// SPDX-License-Identifier: Apache-2.0
// Perplexity: every target scored once with the context it should have, whatever the pieces.
#include <gtest/gtest.h>

#include <cmath>

#include "generate/support.h"
#include "mamba/evaluate.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::byte_model;
using test::prompt_ids;

// The ids in pieces of at most `piece` tokens, two bytes each.
TokenSource source_of(const std::vector<int32_t>& ids, int64_t piece) {
  auto at = std::make_shared<int64_t>(0);
  return [&ids, piece, at](int32_t* out, int32_t* bytes, int64_t count) {
    const int64_t left = static_cast<int64_t>(ids.size()) - *at;
    const int64_t n = std::min({left, count, piece});
    for (int64_t i = 0; i < n; ++i) {
      out[i] = ids[static_cast<size_t>(*at + i)];
      bytes[i] = 2;
    }
    *at += n;
    return n;
  };
}

// -log p of token `target` given tokens [begin, target), by the definition, in f64.
double nll_of(Model& model, const std::vector<int32_t>& ids, int64_t begin, int64_t target) {
  std::vector<float> logits(256);
  State state = model.new_state(1);
  model.forward(ids.data() + begin, target - begin, state, Logits::kLast, logits.data());
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l));
  return std::log(sum) - logits[static_cast<size_t>(ids[static_cast<size_t>(target)])];
}

PerplexityOptions windows(int64_t window, int64_t stride) {
  PerplexityOptions options;
  options.window = window;
  options.stride = stride;
  return options;
}

// f32 logits of size 10 at most: each nll is good to about 1e-5, and errors of a sum average out.
constexpr double kTolerance = 1e-5;

TEST(Perplexity, CarriedStateScoresEachTokenWithAllBeforeIt) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    Model model = byte_model(mixer);
    const std::vector<int32_t> ids = prompt_ids(41);
    double sum = 0, squares = 0;
    for (int64_t t = 1; t < 41; ++t) {
      const double nll = nll_of(model, ids, 0, t);
      sum += nll;
      squares += nll * nll;
    }
    for (const int64_t chunk : {1, 3, 40, 512}) {
      PerplexityOptions options;
      options.carry_state = true;
      options.chunk = chunk;
      const PerplexityResult r = evaluate_perplexity(model, source_of(ids, 7), options);
      EXPECT_EQ(r.tokens, 41);
      EXPECT_EQ(r.scored, 40);
      EXPECT_EQ(r.bytes, 80);
      EXPECT_NEAR(r.nll_sum, sum, 40 * kTolerance);
      EXPECT_NEAR(r.nll_mean, sum / 40, kTolerance);
      EXPECT_NEAR(r.perplexity, std::exp(sum / 40), std::exp(sum / 40) * kTolerance);
      EXPECT_NEAR(r.bits_per_byte, sum / std::log(2.0) / 80, kTolerance);
      const double variance = (squares - sum * sum / 40) / 39;
      EXPECT_NEAR(r.standard_error, std::sqrt(variance / 40), kTolerance);
    }
  }
}

TEST(Perplexity, OverlappingWindowsScoreEveryTargetOnce) {
  Model model = byte_model("mamba1");
  const std::vector<int32_t> ids = prompt_ids(40);
  // Windows [0, 12), [4, 16), ... [28, 40): targets 1..11, then the last 4 of each.
  double sum = 0;
  for (int64_t t = 1; t < 40; ++t) sum += nll_of(model, ids, t < 12 ? 0 : (t - 12) / 4 * 4 + 4, t);
  const PerplexityResult r = evaluate_perplexity(model, source_of(ids, 1000), windows(12, 4));
  EXPECT_EQ(r.scored, 39);
  EXPECT_NEAR(r.nll_sum, sum, 39 * kTolerance);
}

TEST(Perplexity, AdjoiningWindowsLeaveOutTheirFirstToken) {
  Model model = byte_model("mamba2");
  const std::vector<int32_t> ids = prompt_ids(26);  // 10, 10 and 6 tokens
  double sum = 0;
  for (int64_t t = 1; t < 26; ++t) {
    if (t % 10 != 0) sum += nll_of(model, ids, t / 10 * 10, t);
  }
  const PerplexityResult r = evaluate_perplexity(model, source_of(ids, 3), windows(10, 10));
  EXPECT_EQ(r.tokens, 26);
  EXPECT_EQ(r.scored, 23);
  EXPECT_NEAR(r.nll_sum, sum, 23 * kTolerance);
}

TEST(Perplexity, WindowsCanBeLimitedAndATailLeftOut) {
  Model model = byte_model("mamba1");
  const std::vector<int32_t> ids = prompt_ids(46);  // four windows of 10 tokens and a tail of 6
  const auto sum_of = [&](int64_t windows) {
    double sum = 0;
    for (int64_t t = 1; t < windows * 10; ++t) {
      if (t % 10 != 0) sum += nll_of(model, ids, t / 10 * 10, t);
    }
    return sum;
  };
  PerplexityOptions options = windows(10, 10);
  options.drop_tail = true;
  const PerplexityResult whole = evaluate_perplexity(model, source_of(ids, 7), options);
  EXPECT_EQ(whole.tokens, 46);
  EXPECT_EQ(whole.scored, 4 * 9);
  EXPECT_NEAR(whole.nll_sum, sum_of(4), 36 * kTolerance);
  options.max_windows = 3;
  const PerplexityResult three = evaluate_perplexity(model, source_of(ids, 7), options);
  EXPECT_EQ(three.scored, 3 * 9);
  EXPECT_NEAR(three.nll_sum, sum_of(3), 27 * kTolerance);
  const std::vector<int32_t> nine = prompt_ids(9);
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"at least 10 tokens", "got 9"},
                               [&] { evaluate_perplexity(model, source_of(nine, 7), options); }));
  options.max_windows = -1;
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"max_windows", "got -1"},
                               [&] { evaluate_perplexity(model, source_of(ids, 7), options); }));
}

TEST(Perplexity, TextShorterThanAWindowIsOneWindow) {
  Model model = byte_model("mamba1");
  const std::vector<int32_t> ids = prompt_ids(5);
  const PerplexityResult r = evaluate_perplexity(model, source_of(ids, 9), windows(1024, 512));
  EXPECT_EQ(r.scored, 4);
}

TEST(Perplexity, RefusesWhatIsOutOfRange) {
  Model model = byte_model("mamba1");
  const std::vector<int32_t> ids = prompt_ids(50), one = prompt_ids(1);
  const auto refuses = [&](std::initializer_list<std::string> parts,
                           const std::vector<int32_t>& text, const PerplexityOptions& options,
                           ErrorCode code = ErrorCode::kInvalidArgument) {
    return test::fails_with(code, parts,
                            [&] { evaluate_perplexity(model, source_of(text, 9), options); });
  };
  EXPECT_TRUE(refuses({"window", "got 1"}, ids, windows(1, 1)));
  EXPECT_TRUE(refuses({"stride", "1..10", "got 11"}, ids, windows(10, 11)));
  EXPECT_TRUE(refuses({"at least 2 tokens", "got 1"}, one, windows(10, 5), ErrorCode::kBadFile));
  EXPECT_TRUE(refuses({"at least 2 tokens", "got 0"}, {}, windows(10, 5), ErrorCode::kBadFile));
  PerplexityOptions carried;
  carried.carry_state = true;
  EXPECT_TRUE(refuses({"at least 2 tokens", "got 1"}, one, carried, ErrorCode::kBadFile));
  carried.chunk = 0;
  EXPECT_TRUE(refuses({"chunk", "got 0"}, ids, carried));
  PerplexityOptions stopped = windows(10, 5);
  stopped.progress = [](int64_t) { return false; };
  EXPECT_TRUE(test::fails_with(ErrorCode::kCancelled, {"stopped after 9"},
                               [&] { evaluate_perplexity(model, source_of(ids, 9), stopped); }));
}

}  // namespace
}  // namespace mamba
