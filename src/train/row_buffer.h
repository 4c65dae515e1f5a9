// SPDX-License-Identifier: Apache-2.0
// The sequences of an update, or of a part of an evaluation, as the network takes them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "model/network.h"
#include "train/data_packing.h"

namespace mamba {

class RowBuffer {
 public:
  RowBuffer(int64_t rows, int64_t seq_len, bool with_documents)
      : seq_len_(seq_len),
        ids_(static_cast<size_t>(rows * seq_len)),
        targets_(ids_.size()),
        documents_(with_documents ? ids_.size() : 0) {}

  // Where row `row` goes.
  DataRow row(int64_t row) {
    const int64_t at = row * seq_len_;
    return {ids_.data() + at, targets_.data() + at,
            documents_.empty() ? nullptr : documents_.data() + at};
  }
  // Rows [first, first + count).
  Batch batch(int64_t first, int64_t count) const {
    const int64_t at = first * seq_len_;
    return {count, seq_len_, ids_.data() + at, targets_.data() + at,
            documents_.empty() ? nullptr : documents_.data() + at};
  }
  // Of all rows.
  int64_t targets() const { return at_least_zero(targets_); }
  double padding() const {
    return 1 - static_cast<double>(at_least_zero(ids_)) / static_cast<double>(ids_.size());
  }

 private:
  static int64_t at_least_zero(const std::vector<int32_t>& ids) {
    return std::count_if(ids.begin(), ids.end(), [](int32_t id) { return id >= 0; });
  }

  int64_t seq_len_;
  std::vector<int32_t> ids_, targets_, documents_;  // (rows, seq_len); documents_ may be empty
};

}  // namespace mamba
