// SPDX-License-Identifier: Apache-2.0
// cross_entropy: softmax cross-entropy of a block of rows of logits and, in place, its gradient.
// The model calls it on blocks of rows, so that the logits of a batch never exist at once.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// nll[r] = log(sum_v exp(logits[r, v])) - logits[r, target[r]]; 0 for target < 0 (ignored).
// With write_gradient: logits[r, v] <- (softmax(logits)[r, v] - [v == target[r]]) * scale, and 0
// for ignored rows. Max and sum per row in f32 (f64 in f64), in a fixed order.
struct CrossEntropyArgs {
  int64_t rows, vocab;
  CBuf targets;  // (rows) i32
  Buf logits;    // (rows, vocab), row stride logits_stride
  int64_t logits_stride;
  bool write_gradient;
  double scale;
  Buf nll;  // (rows)
};

}  // namespace mamba
