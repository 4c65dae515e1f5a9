// SPDX-License-Identifier: Apache-2.0
// Perplexity over sliding windows or in one pass with the state carried, at constant memory.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "mamba/evaluate.h"

namespace mamba {
namespace {

constexpr int64_t kMaxWindow = int64_t{1} << 24;

// Sums over scored targets; mean and variance by Welford's update, exact enough for 10^9 targets.
class Sums {
 public:
  void add(double nll, int64_t bytes) {
    result_.nll_sum += nll;
    result_.bytes += bytes;
    const double n = static_cast<double>(++result_.scored);
    const double before = nll - mean_;
    mean_ += before / n;
    squares_ += before * (nll - mean_);
  }
  int64_t scored() const { return result_.scored; }
  PerplexityResult finish(int64_t tokens) {
    result_.tokens = tokens;
    const double n = static_cast<double>(result_.scored);
    result_.nll_mean = result_.nll_sum / n;
    result_.perplexity = std::exp(result_.nll_mean);
    if (result_.scored > 1) result_.standard_error = std::sqrt(squares_ / (n - 1) / n);
    if (result_.bytes > 0) {
      result_.bits_per_byte = result_.nll_sum / std::log(2.0) / static_cast<double>(result_.bytes);
    }
    return result_;
  }

 private:
  PerplexityResult result_;
  double mean_ = 0, squares_ = 0;
};

// The tokens of one window and what they stand for.
struct Tokens {
  std::vector<int32_t> ids, bytes;

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  // Reads until `count` tokens are there or the source ends; returns how many came.
  int64_t fill(const TokenSource& source, int64_t count) {
    const int64_t before = size();
    while (size() < count) {
      const int64_t at = size();
      ids.resize(static_cast<size_t>(count));
      bytes.resize(static_cast<size_t>(count));
      const int64_t got = source(ids.data() + at, bytes.data() + at, count - at);
      MAMBA_CHECK(got >= 0 && got <= count - at);
      ids.resize(static_cast<size_t>(at + got));
      bytes.resize(static_cast<size_t>(at + got));
      if (got == 0) break;
    }
    return size() - before;
  }
  void drop_front(int64_t count) {
    ids.erase(ids.begin(), ids.begin() + count);
    bytes.erase(bytes.begin(), bytes.begin() + count);
  }
};

// Scores tokens first_target.. of `tokens` from `state`, which then stands before the last token.
void score(Model& model, const Tokens& tokens, int64_t first_target, State& state, Sums& sums) {
  const int64_t length = tokens.size() - 1;
  std::vector<int32_t> targets(tokens.ids.begin() + 1, tokens.ids.end());  // (1, length)
  std::fill(targets.begin(), targets.begin() + (first_target - 1), -1);
  std::vector<float> nll(static_cast<size_t>(length));  // (1, length)
  model.score(tokens.ids.data(), targets.data(), length, state, nll.data());
  for (int64_t i = first_target; i <= length; ++i) {
    sums.add(nll[static_cast<size_t>(i - 1)], tokens.bytes[static_cast<size_t>(i)]);
  }
}

void report(const PerplexityOptions& options, const Sums& sums) {
  if (!options.progress || options.progress(sums.scored())) return;
  fail(ErrorCode::kCancelled, "[eval ppl] stopped after {} tokens", sums.scored());
}

void expect_text(int64_t tokens) {
  if (tokens >= 2) return;
  fail(ErrorCode::kInvalidArgument,
       "[eval ppl] expected a text of at least 2 tokens, got {}; give a longer text", tokens);
}

PerplexityResult carried(Model& model, const TokenSource& source,
                         const PerplexityOptions& options) {
  Sums sums;
  Tokens tokens;
  State state = model.new_state(1);
  int64_t total = 0;
  for (;;) {
    // The last token of a chunk is a target there and the first input of the next chunk.
    const int64_t got = tokens.fill(source, options.chunk + 1);
    total += got;
    if (got == 0 || tokens.size() < 2) break;
    score(model, tokens, 1, state, sums);
    report(options, sums);
    tokens.drop_front(tokens.size() - 1);
  }
  expect_text(total);
  return sums.finish(total);
}

PerplexityResult windowed(Model& model, const TokenSource& source,
                          const PerplexityOptions& options) {
  Sums sums;
  Tokens tokens;
  int64_t total = 0;
  int64_t first_target = 1;  // of the window: all before it is scored already
  for (;;) {
    const int64_t got = tokens.fill(source, options.window);
    total += got;
    // A window without new tokens has nothing to score; one of a single token has no target.
    if (got == 0 || tokens.size() < 2) break;
    State state = model.new_state(1);
    score(model, tokens, first_target, state, sums);
    report(options, sums);
    if (tokens.size() < options.window) break;
    tokens.drop_front(options.stride);
    first_target = std::max<int64_t>(1, options.window - options.stride);
  }
  expect_text(total);
  return sums.finish(total);
}

}  // namespace

PerplexityResult evaluate_perplexity(Model& model, const TokenSource& source,
                                     const PerplexityOptions& options) {
  const auto expect = [](bool ok, const char* what, int64_t low, int64_t high, int64_t got) {
    if (ok) return;
    fail(ErrorCode::kInvalidArgument, "[eval ppl] expected {} in {}..{}, got {}", what, low, high,
         got);
  };
  if (options.carry_state) {
    expect(options.chunk >= 1 && options.chunk <= kMaxWindow, "chunk", 1, kMaxWindow,
           options.chunk);
    return carried(model, source, options);
  }
  expect(options.window >= 2 && options.window <= kMaxWindow, "window", 2, kMaxWindow,
         options.window);
  expect(options.stride >= 1 && options.stride <= options.window, "stride", 1, options.window,
         options.stride);
  return windowed(model, source, options);
}

}  // namespace mamba
