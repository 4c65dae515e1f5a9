// SPDX-License-Identifier: Apache-2.0
// From logits to a token by SamplingOptions, reproducible by (seed, sample, position) and history.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "kernels/sample.h"
#include "mamba/generate.h"

namespace mamba {

// The logits of a token (vocab_size): the host's, or in the memory of the device.
struct LogitRow {
  CBuf data;
  bool on_host = true;
};

// Draws the tokens of one sequence. `options` must outlive it.
class Sampler {
 public:
  // Draws from the first `vocab` of each row of logits. `history`: the tokens so far, of which the
  // last history_needed(options) must be there. `ends`: banned before min_tokens were drawn.
  Sampler(const SamplingOptions& options, int64_t vocab, std::vector<int32_t> ends, int64_t sample,
          const std::vector<int32_t>& history);

  // What the kernel needs for the next draw; its lists are this object's until the next call.
  // `position` counts the tokens before the one drawn, so that neither batch nor threads nor a
  // saved session in between changes the draw.
  SampleRow ask(CBuf logits, int64_t position);
  // Takes the token that was drawn (or kNoToken) into the history.
  void take(int32_t token);

 private:
  // The biases and bans of the next draw.
  void list_biases();
  void ban_ngrams();
  void remember(int32_t id);

  const SamplingOptions& options_;
  int64_t vocab_, sample_;
  std::vector<int32_t> ends_;
  int64_t drawn_ = 0;
  std::vector<int32_t> tokens_;  // as many as the options look back on, and those drawn
  size_t window_ = 0;            // first of tokens_ that penalties count
  std::unordered_map<int32_t, int32_t> times_;  // of each token from there on
  std::vector<SampleStep> steps_;
  std::vector<int32_t> biased_;  // ids, and what is added to their logits
  std::vector<double> bias_;
  std::vector<int32_t> seen_, seen_times_;  // times_ as the kernel takes them
};

// Runs the kernel over the rows of a step.
class TokenDrawer {
 public:
  explicit TokenDrawer(Device& device) : device_(device) {}
  // tokens[i] from rows[i] (their `token` is overwritten), whose logits are all the host's or all
  // the device's; waits for them.
  void draw(std::vector<SampleRow> rows, bool on_host, int32_t* tokens);

 private:
  void lists_to_device(std::vector<SampleRow>& rows);

  Device& device_;
  AlignedBlock lists_, tokens_;  // in the memory of the device
};

// log softmax over `vocab` logits in f64: of `id`, and the `count` best below `drawable`. NaN
// counts as -infinity.
TokenLogprobs logprobs_of(const float* logits, int64_t vocab, int64_t drawable, int32_t id,
                          int64_t count);

}  // namespace mamba
