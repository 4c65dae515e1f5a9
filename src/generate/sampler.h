// SPDX-License-Identifier: Apache-2.0
// From logits to a token by SamplingOptions, reproducible by (seed, sample, position) and history.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "device/device.h"
#include "mamba/generate.h"

namespace mamba {

// Draws the tokens of one sequence. `options` must outlive it.
class Sampler {
 public:
  // Draws from the first `vocab` of each row of logits. `history`: the tokens so far, of which the
  // last history_needed(options) must be there. `ends`: banned before min_tokens were drawn.
  Sampler(const SamplingOptions& options, int64_t vocab, std::vector<int32_t> ends, int64_t sample,
          const std::vector<int32_t>& history);

  // `position` counts the tokens before the one drawn, so that neither batch nor threads nor a
  // saved session in between changes the draw. -1: every token is banned.
  int32_t draw(Device& device, const float* logits, int64_t position);

 private:
  bool has_bans() const;
  // The logits with biases and bans, or `logits` itself where there are none.
  const float* allowed(const float* logits);
  void ban_ngrams(float* logits) const;
  void remember(int32_t id);

  const SamplingOptions& options_;
  int64_t vocab_, sample_;
  std::vector<int32_t> ends_;
  int64_t drawn_ = 0;
  std::vector<int32_t> tokens_;  // as many as the options look back on, and those drawn
  size_t window_ = 0;            // first of tokens_ that penalties count
  std::unordered_map<int32_t, int32_t> times_;  // of each token from there on
  std::vector<float> biased_;                   // (vocab)
  std::vector<int32_t> seen_, seen_times_;      // times_ as the kernel takes them
};

// log softmax over `vocab` logits in f64: of `id`, and the `count` best below `drawable`. NaN
// counts as -infinity.
TokenLogprobs logprobs_of(const float* logits, int64_t vocab, int64_t drawable, int32_t id,
                          int64_t count);

}  // namespace mamba
