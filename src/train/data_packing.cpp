// SPDX-License-Identifier: Apache-2.0
// Cuts documents into pieces and pieces into rows.
#include "train/data_packing.h"

#include <algorithm>

#include "base/check.h"

namespace mamba {

DocumentPacking::DocumentPacking(const TokenStream& stream, int64_t seq_len, DataOrder order,
                                 uint64_t seed)
    : stream_(stream), seq_len_(seq_len), order_(order), seed_(seed) {
  const std::vector<int64_t>& documents = stream.documents();
  pieces_.reserve(documents.size());
  for (size_t d = 0; d + 1 < documents.size(); ++d) cut_document(documents[d], documents[d + 1]);
  scratch_ = {};
  if (pieces_.empty()) return;
  enter_epoch(0, 0);
  rows_of_first_ = static_cast<int64_t>(row_begins_.size()) - 1;
}

void DocumentPacking::cut_document(int64_t begin, int64_t end) {
  int32_t last = -1;
  stream_.read(end - 1, 1, &last);
  const int64_t inputs_end = stream_.eos_id() >= 0 && last == stream_.eos_id() ? end - 1 : end;
  const size_t before = pieces_.size();
  for (int64_t at = begin; at < inputs_end; at += seq_len_) {
    const int64_t length = std::min(seq_len_, inputs_end - at);
    const Piece piece{at, static_cast<int32_t>(length), at + length < end};
    const int64_t targets = count_targets(piece);
    if (targets == 0) continue;
    pieces_.push_back(piece);
    inputs_ += length;
    targets_ += targets;
  }
  if (pieces_.size() == before) ++left_out_;
}

int64_t DocumentPacking::count_targets(const Piece& piece) {
  const int64_t count = piece.length - 1 + (piece.goes_on ? 1 : 0);
  if (stream_.all_scored()) return count;
  scratch_.resize(static_cast<size_t>(count));
  stream_.read_targets(piece.begin + 1, count, scratch_.data());
  return std::count_if(scratch_.begin(), scratch_.end(), [](int32_t id) { return id >= 0; });
}

double DocumentPacking::padding() const {
  if (rows_of_first_ == 0) return 0;
  return 1 - static_cast<double>(inputs_) / static_cast<double>(rows_of_first_ * seq_len_);
}

const DocumentPacking::Piece& DocumentPacking::piece_at(int64_t position) const {
  const int64_t index = order_ == DataOrder::kShuffled ? permutation_(position) : position;
  return pieces_[static_cast<size_t>(index)];
}

void DocumentPacking::enter_epoch(int64_t epoch, int64_t first_sample) {
  epoch_ = epoch;
  first_sample_ = first_sample;
  permutation_ = epoch_permutation(pieces(), seed_, epoch);
  row_begins_.clear();
  int64_t used = seq_len_;
  for (int64_t position = 0; position < pieces(); ++position) {
    const int64_t length = piece_at(position).length;
    if (used + length > seq_len_) {
      row_begins_.push_back(position);
      used = 0;
    }
    used += length;
  }
  row_begins_.push_back(pieces());
}

void DocumentPacking::read(int64_t sample, const DataRow& row) {
  MAMBA_CHECK(sample >= 0 && !pieces_.empty());
  if (sample < first_sample_) enter_epoch(0, 0);
  const auto rows = [this] { return static_cast<int64_t>(row_begins_.size()) - 1; };
  while (sample - first_sample_ >= rows()) enter_epoch(epoch_ + 1, first_sample_ + rows());
  const auto at = static_cast<size_t>(sample - first_sample_);
  int64_t used = 0;
  int32_t document = 0;
  for (int64_t p = row_begins_[at]; p < row_begins_[at + 1]; ++p, ++document) {
    const Piece& piece = piece_at(p);
    const int64_t targets = piece.length - (piece.goes_on ? 0 : 1);
    stream_.read(piece.begin, piece.length, row.ids + used);
    stream_.read_targets(piece.begin + 1, targets, row.targets + used);
    if (!piece.goes_on) row.targets[used + targets] = -1;
    if (row.documents != nullptr) std::fill_n(row.documents + used, piece.length, document);
    used += piece.length;
  }
  std::fill(row.ids + used, row.ids + seq_len_, -1);
  std::fill(row.targets + used, row.targets + seq_len_, -1);
  if (row.documents != nullptr) std::fill(row.documents + used, row.documents + seq_len_, -1);
}

}  // namespace mamba
