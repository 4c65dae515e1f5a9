// SPDX-License-Identifier: Apache-2.0
// ssd: Mamba-2's state space duality (Dao & Gu 2024), chunked, and one token.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// Per head h, with d_t = clamp(softplus(dt[t, h] + dt_bias[h]), dt_min, dt_max), g = h / (H / G):
//   S_t = exp(d_t * A[h]) * S_{t-1} + d_t * x_t (outer) B_t[g]        S is (P, N)
//   y_t = S_t C_t[g] + D * x_t                                       D per head (H) or channel (H,
//   P)
// Computed in chunks of at most `chunk` tokens by matrix products (Dao & Gu 2024, section 6; a
// backend may prefer shorter ones: on the CPU documents of up to 256 are one chunk where that saves
// work, longer ones go by 64); the result depends on `chunk` by rounding alone.
// softplus is x itself above 20. Any L >= 0, any chunk >= 1. doc_ids: where an id differs from the
// token before (padding skipped), S starts from S_reset at that token; the first token of the call
// continues S0. A negative id is padding: y = 0 and S passes unchanged. Chunks are counted from the
// start of each run of tokens of one document, so a row's result does not depend on its padding or
// neighbours by a bit. ST may alias S0.
struct SsdArgs {
  int64_t B, L, H, P, N, G, chunk;
  double dt_min, dt_max;  // dt_max may be infinity
  CBuf x;                 // (B, L, H, P), token stride x_stride
  int64_t x_stride;
  CBuf dt;  // (B, L, H), token stride dt_stride
  int64_t dt_stride;
  CBuf dt_bias;  // (H)
  CBuf A;        // (H), negative
  CBuf Bm, Cm;   // (B, L, G, N), token strides B_stride / C_stride
  int64_t B_stride, C_stride;
  CBuf D;  // (H) or (H, P) or null
  bool D_has_hdim;
  CBuf S0;  // (B, H, P, N) or null (zero); sequence stride s_stride
  Buf ST;   // (B, H, P, N) or null; sequence stride s_stride
  int64_t s_stride;
  CBuf S_reset;  // (H, P, N) or null (zero): where a further document starts
  CBuf doc_ids;  // (B, L) i32 or null
  Buf y;         // (B, L, H, P), token stride y_stride
  int64_t y_stride;
};

// Gradients (G_t = dy_t (outer) C_t + a_{t+1} G_{t+1}); chunk states are recomputed from S0.
// Outputs marked "accumulated" are added to; all sums run in a fixed order.
struct SsdBackwardArgs {
  int64_t B, L, H, P, N, G, chunk;
  double dt_min, dt_max;
  CBuf x;
  int64_t x_stride;
  CBuf dt;
  int64_t dt_stride;
  CBuf dt_bias, A, Bm, Cm;
  int64_t B_stride, C_stride;
  CBuf D;
  bool D_has_hdim;
  CBuf S0;
  int64_t s_stride;
  CBuf S_reset;
  CBuf doc_ids;
  CBuf dy;  // (B, L, H, P), token stride dy_stride
  int64_t dy_stride;
  CBuf dST;  // (B, H, P, N) contiguous or null
  Buf dx;    // (B, L, H, P), token stride dx_stride, overwritten
  int64_t dx_stride;
  Buf ddt;  // (B, L, H), token stride ddt_stride, overwritten (w.r.t. dt before the bias)
  int64_t ddt_stride;
  Buf ddt_bias;  // (H) accumulated
  Buf dA;        // (H) accumulated
  Buf dBm, dCm;  // (B, L, G, N), token strides dB_stride / dC_stride, overwritten
  int64_t dB_stride, dC_stride;
  Buf dD;        // (H) or (H, P) or null, accumulated
  Buf dS0;       // (B, H, P, N) contiguous or null, overwritten
  Buf dS_reset;  // (H, P, N) or null, accumulated
};

// One token for each of B sequences, states in place; the formula of ssd with L = 1, limits
// included. A row depends on that row alone, bit for bit.
struct SsdStepArgs {
  int64_t B, H, P, N, G;
  double dt_min, dt_max;
  CBuf x;  // (B, H, P), row strides as above
  int64_t x_stride;
  CBuf dt;  // (B, H)
  int64_t dt_stride;
  CBuf dt_bias, A;
  CBuf Bm, Cm;  // (B, G, N)
  int64_t B_stride, C_stride;
  CBuf D;
  bool D_has_hdim;
  Buf S;  // (B, H, P, N) f32, or bf16 that is rounded after y; sequence stride s_stride
  int64_t s_stride;
  Buf y;  // (B, H, P)
  int64_t y_stride;
};

}  // namespace mamba
