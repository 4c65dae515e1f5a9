// SPDX-License-Identifier: Apache-2.0
// Biases, bans and history around the sample kernel and the counter-based generator.
#include "generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/rng.h"

namespace mamba {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

SampleStep kernel_step(SamplerStep step) {
  switch (step) {
    case SamplerStep::kPenalties:
      return SampleStep::kPenalties;
    case SamplerStep::kTopK:
      return SampleStep::kTopK;
    case SamplerStep::kTypicalP:
      return SampleStep::kTypicalP;
    case SamplerStep::kTopP:
      return SampleStep::kTopP;
    case SamplerStep::kMinP:
      return SampleStep::kMinP;
    case SamplerStep::kTemperature:
      return SampleStep::kTemperature;
  }
  MAMBA_CHECK(!"a step of the sampler");
  return SampleStep::kTemperature;
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options, int64_t vocab, std::vector<int32_t> ends,
                 int64_t sample, const std::vector<int32_t>& history)
    : options_(options), vocab_(vocab), sample_(sample), ends_(std::move(ends)) {
  const int64_t all = static_cast<int64_t>(history.size());
  const int64_t needed = history_needed(options);
  const int64_t taken = needed < 0 ? all : std::min(needed, all);
  for (int64_t i = all - taken; i < all; ++i) remember(history[static_cast<size_t>(i)]);
}

void Sampler::remember(int32_t id) {
  if (history_needed(options_) == 0) return;
  tokens_.push_back(id);
  ++times_[id];
  const int64_t last_n = options_.repeat_last_n;
  if (last_n < 0 || static_cast<int64_t>(tokens_.size() - window_) <= last_n) return;
  const auto left = times_.find(tokens_[window_++]);
  if (--left->second == 0) times_.erase(left);
}

bool Sampler::has_bans() const {
  return !options_.logit_bias.empty() || options_.no_repeat_ngram > 0 ||
         (drawn_ < options_.min_tokens && !ends_.empty());
}

// A token is banned that would end an n-gram whose first n - 1 tokens stand at the end and, with
// it, somewhere before.
void Sampler::ban_ngrams(float* logits) const {
  const int64_t n = options_.no_repeat_ngram, count = static_cast<int64_t>(tokens_.size());
  if (n == 0 || count < n) return;
  const auto last = tokens_.end() - (n - 1);
  for (auto at = tokens_.begin(); at + (n - 1) != tokens_.end(); ++at) {
    const int32_t next = at[n - 1];
    if (next < vocab_ && std::equal(last, tokens_.end(), at)) logits[next] = kBanned;
  }
}

const float* Sampler::allowed(const float* logits) {
  if (!has_bans()) return logits;
  biased_.assign(logits, logits + vocab_);
  for (const LogitBias& b : options_.logit_bias) {
    float& logit = biased_[static_cast<size_t>(b.id)];
    logit = static_cast<float>(logit + b.bias);
  }
  if (drawn_ < options_.min_tokens) {
    for (const int32_t id : ends_) {
      if (id < vocab_) biased_[static_cast<size_t>(id)] = kBanned;
    }
  }
  ban_ngrams(biased_.data());
  return biased_.data();
}

int32_t Sampler::draw(Device& device, const float* logits, int64_t position) {
  const float* row = allowed(logits);
  if (row != logits && std::none_of(row, row + vocab_, [](float x) { return x > kBanned; })) {
    return -1;
  }
  std::vector<SampleStep> steps;
  for (const SamplerStep step : options_.order) steps.push_back(kernel_step(step));
  seen_.clear();
  seen_times_.clear();
  for (const auto& [id, times] : times_) {
    seen_.push_back(id);
    seen_times_.push_back(times);
  }
  const CounterRng rng(options_.seed, static_cast<uint64_t>(sample_));
  int32_t token = 0;
  SampleArgs args{};
  args.vocab = vocab_;
  args.logits = CBuf(row);
  args.steps = steps.data();
  args.step_count = static_cast<int64_t>(steps.size());
  args.temperature = options_.temperature;
  args.top_k = options_.top_k;
  args.typical_p = options_.typical_p;
  args.top_p = options_.top_p;
  args.min_p = options_.min_p;
  args.repeat = options_.repeat_penalty;
  args.presence = options_.presence_penalty;
  args.frequency = options_.frequency_penalty;
  args.seen = seen_.data();
  args.seen_times = seen_times_.data();
  args.seen_count = static_cast<int64_t>(seen_.size());
  args.uniform = rng.uniform(static_cast<uint64_t>(position));
  args.token = &token;
  if (device.memory().on_host()) {
    device.kernels().sample(device.stream(), args);
    device.sync();
  } else {  // the logits are the host's
    Stream host;
    ref_kernels().sample(host, args);
  }
  ++drawn_;
  remember(token);
  return token;
}

TokenLogprobs logprobs_of(const float* logits, int64_t vocab, int64_t drawable, int32_t id,
                          int64_t count) {
  const auto value = [&](int64_t i) {
    return std::isnan(logits[i]) ? double{kBanned} : double{logits[i]};
  };
  double most = kBanned, sum = 0;
  for (int64_t i = 0; i < vocab; ++i) most = std::max(most, value(i));
  // Equal logits are equal even when infinite.
  const auto below = [&](int64_t i) { return value(i) == most ? 0.0 : value(i) - most; };
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(below(i));
  const double log_sum = std::log(sum);
  TokenLogprobs result;
  result.logprob = below(id) - log_sum;
  std::vector<int32_t> order(static_cast<size_t>(drawable));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto kept = order.begin() + std::min(count, drawable);
  std::partial_sort(order.begin(), kept, order.end(), [&](int32_t a, int32_t b) {
    return value(a) > value(b) || (value(a) == value(b) && a < b);
  });
  for (auto at = order.begin(); at != kept; ++at) {
    result.top.push_back({*at, below(*at) - log_sum});
  }
  return result;
}

}  // namespace mamba
