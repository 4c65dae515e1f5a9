// SPDX-License-Identifier: Apache-2.0
// sample: one token from one row of logits.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// temperature <= 0 or top_k == 1: the smallest index among the largest logits (greedy).
// Otherwise, in this order: divide by temperature; keep the top_k largest (0: all; ties by index);
// keep the smallest set of most likely tokens whose probability reaches top_p (1: all); drop tokens
// below min_p times the largest probability (0: none); draw with `uniform` in [0, 1) by walking the
// kept tokens in the order of their index. Probabilities are renormalised after each cut.
// At least one token is always kept. NaN logits count as -infinity.
struct SampleArgs {
  int64_t vocab;
  CBuf logits;  // (vocab)
  double temperature;
  int64_t top_k;
  double top_p, min_p;
  double uniform;
  int32_t* token;  // out
};

}  // namespace mamba
