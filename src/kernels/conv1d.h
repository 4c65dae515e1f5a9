// SPDX-License-Identifier: Apache-2.0
// conv1d: causal depthwise convolution over time with carried state, documents and padding.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// y[b, t, c] = act(bias[c] + sum_{j=0}^{K-1} weight[c, j] * in[b, t - (K-1) + j, c]),  act = silu
// or id. Before the first token, in[] is state_in (oldest first), or 0 where state_in is null.
// doc_ids: a token whose id differs from the token before it (padding skipped) sees zeros before
// itself. A negative id is padding: its y is 0 and the window passes over it as if it were not
// there; so state_out is the window after the last token that is not padding. The first token of
// the call continues state_in. state_out may alias state_in. K >= 1; with K = 1 the state is empty.
// L may be 0 and less than K.
struct Conv1dArgs {
  int64_t B, L, C, K;
  bool silu;
  CBuf x;  // (B, L, C), token stride x_stride; row b starts at b * L * x_stride
  int64_t x_stride;
  CBuf weight;  // (C, K)
  CBuf taps;    // (K, C) the weight transposed, which saves doing that in each call; or null
  CBuf bias;    // (C) or null
  // f32 as x; or both in bf16 where L = 1 with taps and without doc_ids, rounded to nearest even.
  CBuf state_in;  // (B, K-1, C) or null; sequence stride state_stride
  Buf state_out;  // (B, K-1, C) or null; sequence stride state_stride
  int64_t state_stride;
  CBuf doc_ids;  // (B, L) i32 or null
  Buf y;         // (B, L, C), token stride y_stride; must not overlap x
  int64_t y_stride;
};

// Gradients; the pre-activation is recomputed from x and state_in.
struct Conv1dBackwardArgs {
  int64_t B, L, C, K;
  bool silu;
  CBuf x;  // as above
  int64_t x_stride;
  CBuf weight, bias, state_in;
  int64_t state_stride;
  CBuf doc_ids;
  CBuf dy;  // (B, L, C), token stride dy_stride
  int64_t dy_stride;
  CBuf dstate_out;  // (B, K-1, C) contiguous or null
  Buf dx;           // (B, L, C), token stride dx_stride, overwritten
  int64_t dx_stride;
  Buf dweight;    // (C, K) accumulated over b, then t, in order
  Buf dbias;      // (C) or null, accumulated
  Buf dstate_in;  // (B, K-1, C) contiguous or null, overwritten
};

}  // namespace mamba
