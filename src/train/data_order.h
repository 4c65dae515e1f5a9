// SPDX-License-Identifier: Apache-2.0
// The order in which a stream of tokens is trained on: a function of (seed, number of the sample)
// alone, so that a run can go on at any sample without a saved list.
#pragma once

#include <cstdint>
#include <string>

#include "base/rng.h"
#include "mamba/train.h"

namespace mamba {

// A bijection of [0, count) chosen by (seed, stream), in constant memory: a Feistel network over
// the next power of four, walked until it lands inside.
class IndexPermutation {
 public:
  IndexPermutation() : IndexPermutation(1, 0, 0) {}
  IndexPermutation(int64_t count, uint64_t seed, uint64_t stream);
  int64_t operator()(int64_t index) const;

 private:
  uint64_t feistel(uint64_t value) const;
  CounterRng rng_;
  uint64_t count_;
  int half_bits_;
};

// The order of `count` things in an epoch of a run.
IndexPermutation epoch_permutation(int64_t count, uint64_t seed, int64_t epoch);

// Where each sample starts. A sample is seq_len inputs and, one further on, seq_len targets. An
// epoch cuts the stream into windows that share one token with the next; the rest at its end is
// left out. Shuffled: each epoch starts its cut at a random offset below seq_len and permutes the
// windows. Sequential: sample i of an epoch starts at i * seq_len.
class WindowOrder {
 public:
  // Throws bad_file if the stream is shorter than one window.
  WindowOrder(int64_t stream_size, int64_t seq_len, DataOrder order, uint64_t seed,
              const std::string& what);

  // First token of sample `sample` (0 for the first of the run). Fast for samples in rising order.
  int64_t begin(int64_t sample);
  int64_t epoch() const { return epoch_; }                    // of the last begin()
  int64_t windows() const { return (size_ - 1) / seq_len_; }  // of an epoch without an offset

 private:
  void enter_epoch(int64_t epoch, int64_t first_sample);
  int64_t size_, seq_len_;
  DataOrder order_;
  uint64_t seed_;
  int64_t epoch_ = 0, first_sample_ = 0, offset_ = 0, count_ = 0;
  IndexPermutation permutation_;
};

}  // namespace mamba
