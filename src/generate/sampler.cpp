// SPDX-License-Identifier: Apache-2.0
// Lists of biases, bans and history for the sample kernel and the counter-based generator.
#include "generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/rng.h"

namespace mamba {
namespace {

constexpr double kBanned = -std::numeric_limits<double>::infinity();

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
  for (const SamplerStep step : options.order) steps_.push_back(kernel_step(step));
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

// A token is banned that would end an n-gram whose first n - 1 tokens stand at the end and, with
// it, somewhere before.
void Sampler::ban_ngrams() {
  const int64_t n = options_.no_repeat_ngram, count = static_cast<int64_t>(tokens_.size());
  if (n == 0 || count < n) return;
  const auto last = tokens_.end() - (n - 1);
  for (auto at = tokens_.begin(); at + (n - 1) != tokens_.end(); ++at) {
    const int32_t next = at[n - 1];
    if (next < vocab_ && std::equal(last, tokens_.end(), at)) biased_.push_back(next);
  }
}

void Sampler::list_biases() {
  biased_.clear();
  bias_.clear();
  for (const LogitBias& b : options_.logit_bias) {
    biased_.push_back(b.id);
    bias_.push_back(b.bias);
  }
  if (drawn_ < options_.min_tokens) {
    std::copy_if(ends_.begin(), ends_.end(), std::back_inserter(biased_),
                 [&](int32_t id) { return id < vocab_; });
  }
  ban_ngrams();
  bias_.resize(biased_.size(), kBanned);
}

SampleRow Sampler::ask(CBuf logits, int64_t position) {
  list_biases();
  seen_.clear();
  seen_times_.clear();
  for (const auto& [id, times] : times_) {
    seen_.push_back(id);
    seen_times_.push_back(times);
  }
  SampleRow row{};
  row.vocab = vocab_;
  row.logits = logits;
  row.steps = steps_.data();
  row.step_count = static_cast<int64_t>(steps_.size());
  row.temperature = options_.temperature;
  row.top_k = options_.top_k;
  row.typical_p = options_.typical_p;
  row.top_p = options_.top_p;
  row.min_p = options_.min_p;
  row.repeat = options_.repeat_penalty;
  row.presence = options_.presence_penalty;
  row.frequency = options_.frequency_penalty;
  row.biased = biased_.data();
  row.bias = bias_.data();
  row.biased_count = static_cast<int64_t>(biased_.size());
  row.seen = seen_.data();
  row.seen_times = seen_times_.data();
  row.seen_count = static_cast<int64_t>(seen_.size());
  const CounterRng rng(options_.seed, static_cast<uint64_t>(sample_));
  row.uniform = rng.uniform(static_cast<uint64_t>(position));
  return row;
}

void Sampler::take(int32_t token) {
  if (token < 0) return;
  ++drawn_;
  remember(token);
}

// The lists of all rows in one copy: biases first, as they are wider.
void TokenDrawer::lists_to_device(std::vector<SampleRow>& rows) {
  std::vector<double> biases;
  std::vector<int32_t> ids;
  for (const SampleRow& row : rows) {
    biases.insert(biases.end(), row.bias, row.bias + row.biased_count);
    ids.insert(ids.end(), row.biased, row.biased + row.biased_count);
    ids.insert(ids.end(), row.seen, row.seen + row.seen_count);
    ids.insert(ids.end(), row.seen_times, row.seen_times + row.seen_count);
  }
  const auto wide = static_cast<int64_t>(biases.size() * sizeof(double));
  const auto narrow = static_cast<int64_t>(ids.size() * sizeof(int32_t));
  if (wide + narrow == 0) return;
  if (wide + narrow > lists_.size()) {
    lists_ = AlignedBlock();
    lists_ = AlignedBlock(2 * (wide + narrow), "lists of the sampler", device_.memory());
  }
  auto* bias = static_cast<double*>(lists_.data());
  auto* id = reinterpret_cast<int32_t*>(static_cast<char*>(lists_.data()) + wide);
  device_.memory().copy_in(bias, biases.data(), wide);
  device_.memory().copy_in(id, ids.data(), narrow);
  for (SampleRow& row : rows) {
    row.bias = bias, bias += row.biased_count;
    row.biased = id, id += row.biased_count;
    row.seen = id, id += row.seen_count;
    row.seen_times = id, id += row.seen_count;
  }
}

void TokenDrawer::draw(std::vector<SampleRow> rows, bool on_host, int32_t* tokens) {
  const auto count = static_cast<int64_t>(rows.size());
  DeviceMemory& memory = device_.memory();
  if (on_host) {
    for (int64_t i = 0; i < count; ++i) rows[static_cast<size_t>(i)].token = tokens + i;
    if (memory.on_host()) {
      device_.kernels().sample(device_.stream(), {count, rows.data()});
      return device_.sync();
    }
    Stream host;  // the logits of a session, once before its first step
    return ref_kernels().sample(host, {count, rows.data()});
  }
  const int64_t bytes = count * static_cast<int64_t>(sizeof(int32_t));
  if (bytes > tokens_.size()) {
    tokens_ = AlignedBlock();
    tokens_ = AlignedBlock(bytes, "tokens drawn", memory);
  }
  for (int64_t i = 0; i < count; ++i) {
    rows[static_cast<size_t>(i)].token = static_cast<int32_t*>(tokens_.data()) + i;
  }
  lists_to_device(rows);
  device_.kernels().sample(device_.stream(), {count, rows.data()});
  memory.copy_out(tokens, tokens_.data(), bytes);
  device_.sync();
}

TokenLogprobs logprobs_of(const float* logits, int64_t vocab, int64_t drawable, int32_t id,
                          int64_t count) {
  const auto value = [&](int64_t i) { return std::isnan(logits[i]) ? kBanned : double{logits[i]}; };
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
