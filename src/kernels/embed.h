// SPDX-License-Identifier: Apache-2.0
// embed: rows of a matrix picked by token ids.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// y[r, :] = weight[ids[r], :]; rows whose id is negative (padding) are zero.
struct EmbedArgs {
  int64_t rows, dim, vocab;
  CBuf ids;     // (rows) i32, each in [-1, vocab)
  CBuf weight;  // (vocab, dim), as y or bf16
  Buf y;        // (rows, dim)
};

// dweight[ids[r], :] += dy[r, :], in the order of r whatever the thread count.
struct EmbedBackwardArgs {
  int64_t rows, dim, vocab;
  CBuf ids;     // (rows) i32
  CBuf dy;      // (rows, dim)
  Buf dweight;  // (vocab, dim), accumulated
};

}  // namespace mamba
