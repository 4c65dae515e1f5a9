// SPDX-License-Identifier: Apache-2.0
// mamba2_step: one token of Mamba-2 between in_proj and out_proj, for each of B sequences.
#pragma once

#include "base/buf.h"
#include "device/stream.h"
#include "kernels/linear.h"

namespace mamba {

//   [x; B; C] = act(conv([x; B; C]));  S <- exp(d A) S + d x (outer) B;  y = S C + D x;
//   out = [silu(z0) x0; gated_norm(y, z) or y silu(z)];  with `product` also linear_forward of out
// The formulas, and on the CPU the bits, of conv1d_forward (L = 1), ssd_step, gated_norm_forward
// and gate_forward. Both states are updated in place. A row depends on that row alone.
struct Mamba2StepArgs {
  int64_t B, H, P, N, G, K;
  int64_t M;  // width of the gated MLP beside the heads, or 0
  bool conv_silu;
  double dt_min, dt_max;
  CBuf zx;  // (B, 2M + 2HP + 2GN + H): z0 (M), x0 (M), z (HP), x (HP), B (GN), C (GN), dt (H)
  int64_t zx_stride;
  CBuf conv_weight, conv_taps;  // (HP + 2GN, K), and the same transposed
  CBuf conv_bias;               // (HP + 2GN) or null
  CBuf dt_bias, A;              // (H); A negative
  CBuf D;                       // (H) or (H, P)
  bool D_has_hdim;
  bool gated_norm, norm_before_gate;
  int64_t norm_groups;
  double norm_eps;
  CBuf norm_weight;  // (HP) with gated_norm
  Buf conv_state;    // (B, K-1, HP + 2GN), oldest first; f32, or bf16 that is rounded after use
  Buf ssm_state;     // (B, H, P, N), of the same type
  int64_t state_stride;
  // Room for what is between the parts: (B, HP + 2GN) and (B, HP) of the type of zx; what they hold
  // after the call is undefined.
  Buf conv_xbc, y;
  Buf out;  // (B, M + HP), row stride out_stride; of the type of zx
  int64_t out_stride;
  // The product of `out` to be done behind this; none where its y is null. What `out` holds after
  // one is undefined.
  LinearArgs product;
};

}  // namespace mamba
