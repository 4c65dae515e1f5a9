// SPDX-License-Identifier: Apache-2.0
// Permutations without memory, and windows of a stream in their order.
#include "train/data_order.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace mamba {
namespace {

// Random streams of a run's seed; the numbers of weights are streams of their names' hashes.
constexpr uint64_t kPermutationStream = 0x7065726d00000000u;  // + epoch
constexpr uint64_t kOffsetStream = 0x6f66667365740000u;

}  // namespace

IndexPermutation::IndexPermutation(int64_t count, uint64_t seed, uint64_t stream)
    : rng_(seed, stream), count_(static_cast<uint64_t>(count)) {
  MAMBA_CHECK(count >= 1);
  half_bits_ = (static_cast<int>(std::bit_width(count_ - 1)) + 1) / 2;
}

// Rounds (l, r) -> (r, l ^ F(r)): invertible whatever F is. Four rounds make it pseudo-random (Luby
// & Rackoff 1988); six leave a margin for the few bits of small counts.
uint64_t IndexPermutation::feistel(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  for (uint64_t round = 0; round < 6; ++round) {
    const uint64_t next = left ^ (rng_.bits(right << 3 | round) & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

// The network permutes [0, 4^half_bits), at most four times [0, count); following a cycle from
// inside until it is inside again is a permutation of the inside.
int64_t IndexPermutation::operator()(int64_t index) const {
  auto value = static_cast<uint64_t>(index);
  do {
    value = feistel(value);
  } while (value >= count_);
  return static_cast<int64_t>(value);
}

IndexPermutation epoch_permutation(int64_t count, uint64_t seed, int64_t epoch) {
  return IndexPermutation(count, seed, kPermutationStream + static_cast<uint64_t>(epoch));
}

WindowOrder::WindowOrder(int64_t stream_size, int64_t seq_len, DataOrder order, uint64_t seed,
                         const std::string& what)
    : size_(stream_size), seq_len_(seq_len), order_(order), seed_(seed) {
  if (stream_size < seq_len + 1) {
    fail(ErrorCode::kBadFile,
         "[{}] expected at least {} tokens (--seq-len {} and one more as the last target), got {}; "
         "add text or use a smaller --seq-len",
         what, seq_len + 1, seq_len, stream_size);
  }
  enter_epoch(0, 0);
}

void WindowOrder::enter_epoch(int64_t epoch, int64_t first_sample) {
  epoch_ = epoch;
  first_sample_ = first_sample;
  offset_ = 0;
  if (order_ == DataOrder::kShuffled) {
    // At least one window must remain behind the offset.
    const int64_t offsets = std::min(seq_len_, size_ - seq_len_);
    offset_ = static_cast<int64_t>(
        CounterRng(seed_, kOffsetStream)
            .below(static_cast<uint64_t>(epoch), static_cast<uint64_t>(offsets)));
  }
  count_ = (size_ - 1 - offset_) / seq_len_;
  permutation_ = epoch_permutation(count_, seed_, epoch);
}

int64_t WindowOrder::begin(int64_t sample) {
  MAMBA_CHECK(sample >= 0);
  if (sample < first_sample_) enter_epoch(0, 0);
  while (sample - first_sample_ >= count_) enter_epoch(epoch_ + 1, first_sample_ + count_);
  const int64_t index = sample - first_sample_;
  return offset_ + seq_len_ * (order_ == DataOrder::kShuffled ? permutation_(index) : index);
}

}  // namespace mamba
