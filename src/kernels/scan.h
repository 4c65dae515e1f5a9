// SPDX-License-Identifier: Apache-2.0
// scan: the selective scan of Mamba-1 (Gu & Dao 2023, algorithm 2), full and one token.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// How B and C vary.
enum class ScanBC : uint8_t {
  kGrouped,   // (B, L, G, N): channel c uses group c / (E / G); G = 1 shared by all, G = E per
              // channel
  kConstant,  // (E, N): the same for every token (time-invariant)
};

// With d = delta[t, c] + delta_bias[c], through softplus where delta_softplus (x itself above 20):
//   h_t[c, n] = exp(d * A[c, n]) * h_{t-1}[c, n] + d * B_t[n] * u_t[c]
//   y_t[c]    = sum_n C_t[n] * h_t[c, n] + D[c] * u_t[c],   then times silu(z_t[c]) where z is
//   given.
// Channels are the fast axis of A and of states, so that a SIMD lane is a channel: A_t is (N, E),
// states are (B, N, E). Accumulation in f32 (f64 in f64), in the order of n.
// doc_ids: where an id differs from the token before (padding skipped), h starts from 0 at that
// token; the first token of the call continues h0. A negative id is padding: y = 0 and h passes
// unchanged. hT may alias h0. L may be 0 (then hT = h0 or 0).
struct ScanArgs {
  int64_t B, L, E, N, G;
  ScanBC bc;
  bool delta_softplus;
  CBuf u;  // (B, L, E), token stride u_stride
  int64_t u_stride;
  CBuf delta;  // (B, L, E), token stride delta_stride
  int64_t delta_stride;
  CBuf delta_bias;  // (E) or null
  CBuf A_t;         // (N, E), negative
  CBuf Bm, Cm;      // (B, L, G, N), token strides B_stride / C_stride; or (E, N) when kConstant
  int64_t B_stride, C_stride;
  CBuf D;  // (E) or null
  CBuf z;  // (B, L, E), token stride z_stride, or null
  int64_t z_stride;
  CBuf h0;  // (B, N, E) or null (zero); sequence stride h_stride
  Buf hT;   // (B, N, E) or null; sequence stride h_stride
  int64_t h_stride;
  CBuf doc_ids;  // (B, L) i32 or null
  Buf y;         // (B, L, E), token stride y_stride
  int64_t y_stride;
};

// Gradients by the reverse scan g_t = C_t dy_t + a_{t+1} g_{t+1} (spec of the formula: Gu & Dao
// 2023, appendix). The states are recomputed from h0 in blocks. dy is the gradient of the gated y
// where z is given. Outputs marked "accumulated" are added to; all sums over b, t and c run in a
// fixed order.
struct ScanBackwardArgs {
  int64_t B, L, E, N, G;
  ScanBC bc;
  bool delta_softplus;
  CBuf u;
  int64_t u_stride;
  CBuf delta;
  int64_t delta_stride;
  CBuf delta_bias, A_t, Bm, Cm;
  int64_t B_stride, C_stride;
  CBuf D, z;
  int64_t z_stride;
  CBuf h0;
  int64_t h_stride;
  CBuf doc_ids;
  CBuf dy;  // (B, L, E), token stride dy_stride
  int64_t dy_stride;
  CBuf dhT;  // (B, N, E) contiguous or null
  Buf du;    // (B, L, E), token stride du_stride, overwritten; may alias dy
  int64_t du_stride;
  Buf ddelta;  // (B, L, E), token stride ddelta_stride, overwritten
  int64_t ddelta_stride;
  Buf ddelta_bias;               // (E) or null, accumulated
  Buf dA_t;                      // (N, E) accumulated
  Buf dBm, dCm;                  // (B, L, G, N), token strides dB_stride / dC_stride, overwritten;
  int64_t dB_stride, dC_stride;  // or (E, N) accumulated when kConstant
  Buf dD;                        // (E) or null, accumulated
  Buf dz;                        // (B, L, E), token stride dz_stride, or null, overwritten
  int64_t dz_stride;
  Buf dh0;  // (B, N, E) contiguous or null, overwritten
};

// One token for each of B sequences, states updated in place; the formula of scan with L = 1.
// A row depends on that row alone, bit for bit.
struct ScanStepArgs {
  int64_t B, E, N, G;
  ScanBC bc;
  bool delta_softplus;
  CBuf u;  // (B, E), row strides as above
  int64_t u_stride;
  CBuf delta;
  int64_t delta_stride;
  CBuf delta_bias, A_t;
  CBuf Bm, Cm;  // (B, G, N) or (E, N)
  int64_t B_stride, C_stride;
  CBuf D, z;
  int64_t z_stride;
  Buf h;  // (B, N, E) f32, or bf16 that is rounded after y; sequence stride h_stride
  int64_t h_stride;
  Buf y;  // (B, E)
  int64_t y_stride;
};

}  // namespace mamba
