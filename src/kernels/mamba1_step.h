// SPDX-License-Identifier: Apache-2.0
// mamba1_step: one token of Mamba-1 between in_proj and out_proj, for each of B sequences.
#pragma once

#include "kernels/norm_linear.h"

namespace mamba {

//   with `input` first norm_linear, which makes xz;
//   x = act(conv(x));  [dt; B; C] = W_x x;  each through its weightless rms norm where norms;
//   delta = softplus(W_dt dt + dt_bias);  h <- exp(delta A) h + delta B x;
//   y = (C . h + D x) silu(z)
// The formulas, and on the CPU the bits, of conv1d_forward (L = 1), linear_forward or
// linear_q_forward, rms_norm_forward and scan_step. Both states are updated in place. A row depends
// on that row alone; on a GPU its bits may depend on the number of rows too, by which kernels are
// chosen. Every combination of types that those kernels take is taken; backends differ
// in how much of it they fuse.
struct Mamba1StepArgs {
  int64_t B, E, N, R, K;
  bool conv_silu, norms;
  double norm_eps;
  Product product;
  CBuf xz;  // (B, 2E): x, z; row stride xz_stride
  int64_t xz_stride;
  CBuf conv_weight, conv_taps;  // (E, K), and (K, E) the same transposed
  CBuf conv_bias;               // (E) or null
  CBuf x_weight;                // (R + 2N, E), or null with x_packed
  const PackedLinear* x_packed;
  CBuf dt_weight;  // (E, R), or null with dt_packed
  const PackedLinear* dt_packed;
  CBuf dt_bias;    // (E)
  CBuf A_t;        // (N, E), negative
  CBuf D;          // (E)
  Buf conv_state;  // (B, K-1, E), oldest first; f32, or bf16 that is rounded after use
  Buf ssm_state;   // (B, N, E), of the same type
  int64_t state_stride;
  // Room for what is between the parts: (B, E), twice (B, R + 2N), (B, E) of the type of xz; what
  // they hold after the call is undefined. normed is null without norms.
  Buf conv_x, x_dbl, normed, delta;
  Buf y;  // (B, E), row stride y_stride; of the type of xz
  int64_t y_stride;
  // What is to be done in front of this and writes xz; none where its product's y is null.
  NormLinearArgs input;
};

}  // namespace mamba
