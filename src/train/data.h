// SPDX-License-Identifier: Apache-2.0
// Text files as one stream of tokens, and the order in which windows of it are trained on: a
// function of (seed, number of the sample) alone, so that a run can go on at any sample without a
// saved list.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/rng.h"
#include "mamba/tokenizer.h"
#include "mamba/train.h"

namespace mamba {

// The tokens of files, one behind the other. With the byte tokenizer the files stay mapped; others
// are encoded once.
class TokenStream {
 public:
  // `what` names the option in messages, e.g. "--data". Paths are files, or folders whose files
  // (those of their subfolders too, names that start with a dot left out) are taken in the order of
  // their paths. Throws bad_file for what is missing, not readable or has no text.
  TokenStream(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
              const std::string& what);

  int64_t size() const { return size_; }
  const std::vector<std::string>& files() const { return files_; }
  // Tokens [begin, begin + count) of the stream.
  void read(int64_t begin, int64_t count, int32_t* out) const;
  // 16 hex digits over the size and 256 blocks spread over the stream: tells data sets apart at the
  // cost of reading 1 MiB.
  std::string fingerprint() const;

 private:
  struct Part {
    int64_t begin;  // of its first token in the stream
    int64_t count;
    MappedFile file;           // byte tokenizer
    std::vector<int32_t> ids;  // any other
  };
  std::vector<std::string> files_;
  std::vector<Part> parts_;
  int64_t size_ = 0;
};

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
