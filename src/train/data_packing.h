// SPDX-License-Identifier: Apache-2.0
// Whole documents packed into rows of equal length. No token of a row sees, and no loss in it
// crosses into, another document.
#pragma once

#include <cstdint>
#include <vector>

#include "mamba/train.h"
#include "train/data_order.h"
#include "train/data_stream.h"

namespace mamba {

// One row of a batch; each has seq_len elements.
struct DataRow {
  int32_t* ids;        // -1: padding
  int32_t* targets;    // -1: no loss
  int32_t* documents;  // rises by one from document to document, -1 in padding; may be null
};

// Documents are cut into pieces of at most seq_len inputs; a piece is a fresh sequence. An EOS at
// the end of a document is a target only. An epoch takes the pieces in an order of its own and
// fills row after row: the next piece goes into the row if it fits whole, else the row is padded
// and a new one begins. Pieces without a target are left out. Borrows the stream.
class DocumentPacking {
 public:
  DocumentPacking(const TokenStream& stream, int64_t seq_len, DataOrder order, uint64_t seed);

  // Sample 0 is the first of the run. Fast for samples in rising order; going back to an earlier
  // epoch walks through all before it.
  void read(int64_t sample, const DataRow& row);

  int64_t rows() const { return rows_of_first_; }  // of the first epoch
  int64_t pieces() const { return static_cast<int64_t>(pieces_.size()); }
  int64_t inputs() const { return inputs_; }      // tokens of all pieces
  int64_t targets() const { return targets_; }    // of an epoch
  int64_t left_out() const { return left_out_; }  // documents without a target
  double padding() const;                         // share of the first epoch's rows

 private:
  struct Piece {
    int64_t begin;   // in the stream
    int32_t length;  // inputs
    bool goes_on;    // the token behind is the target of the last input
  };
  void cut_document(int64_t begin, int64_t end);
  int64_t count_targets(const Piece& piece);
  void enter_epoch(int64_t epoch, int64_t first_sample);
  const Piece& piece_at(int64_t position) const;

  const TokenStream& stream_;
  int64_t seq_len_;
  DataOrder order_;
  uint64_t seed_;
  std::vector<Piece> pieces_;
  int64_t inputs_ = 0, targets_ = 0, left_out_ = 0, rows_of_first_ = 0;
  std::vector<int32_t> scratch_;
  // The running epoch.
  int64_t epoch_ = 0, first_sample_ = 0;
  IndexPermutation permutation_;
  std::vector<int64_t> row_begins_;  // positions in the epoch's order, and their end
};

}  // namespace mamba
