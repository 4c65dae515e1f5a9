// SPDX-License-Identifier: Apache-2.0
// mamba1_step, mamba2_step and norm_linear as sequences of a table's other kernels: what they mean,
// and how backends run what they do not fuse. Included by *_ref, *_cpu and *_cuda files.
#pragma once

#include "kernels/choices.h"
#include "kernels/kernels.h"
#include "kernels/linear_packed.h"

#define MAMBA_TABLE_OF_(isa) isa##_kernels
#define MAMBA_TABLE_OF(isa) MAMBA_TABLE_OF_(isa)

namespace mamba {
namespace {

MAMBA_INLINE void step_in_sequence(const Kernels& k, Stream& stream, const NormLinearArgs& a) {
  k.rms_norm_forward(stream, a.norm);
  k.linear_forward(stream, a.product);
}

MAMBA_INLINE void step_linear(const Kernels& k, Stream& stream, const Mamba1StepArgs& a, CBuf x,
                              int64_t x_stride, CBuf weight, const PackedLinear* packed, int64_t N,
                              int64_t K, Buf y) {
  if (packed != nullptr && is_quantized(packed->dtype)) {
    k.linear_q_forward(stream, {a.B, N, K, x, x_stride, packed, CBuf(), y, N});
    return;
  }
  LinearArgs args{};
  args.M = a.B, args.N = N, args.K = K, args.product = a.product;
  args.x = x, args.x_stride = x_stride;
  args.weight = weight, args.packed = packed;
  args.y = y, args.y_stride = N;
  k.linear_forward(stream, args);
}

// dt, B and C of x_dbl, each over the root of its mean square.
MAMBA_INLINE void step_norms(const Kernels& k, Stream& stream, const Mamba1StepArgs& a) {
  const int64_t W = a.R + 2 * a.N;
  const int64_t at[] = {0, a.R, a.R + a.N}, dims[] = {a.R, a.N, a.N};
  for (int i = 0; i < 3; ++i) {
    RmsNormArgs norm{};
    norm.rows = a.B, norm.dim = dims[i], norm.eps = a.norm_eps;
    norm.x = a.x_dbl + at[i], norm.x_stride = W;
    norm.y = a.normed + at[i], norm.y_stride = W;
    k.rms_norm_forward(stream, norm);
  }
}

MAMBA_INLINE void step_in_sequence(const Kernels& k, Stream& stream, const Mamba1StepArgs& a) {
  if (a.input.product.y) k.norm_linear(stream, a.input);
  const int64_t W = a.R + 2 * a.N;
  Conv1dArgs conv{};
  conv.B = a.B, conv.L = 1, conv.C = a.E, conv.K = a.K, conv.silu = a.conv_silu;
  conv.x = a.xz, conv.x_stride = a.xz_stride;
  conv.weight = a.conv_weight, conv.taps = a.conv_taps, conv.bias = a.conv_bias;
  conv.state_in = a.conv_state, conv.state_out = a.conv_state, conv.state_stride = a.state_stride;
  conv.y = a.conv_x, conv.y_stride = a.E;
  k.conv1d_forward(stream, conv);
  step_linear(k, stream, a, a.conv_x, a.E, a.x_weight, a.x_packed, W, a.E, a.x_dbl);
  if (a.norms) step_norms(k, stream, a);
  const CBuf dbl = a.norms ? a.normed : a.x_dbl;
  step_linear(k, stream, a, dbl, W, a.dt_weight, a.dt_packed, a.E, a.R, a.delta);
  ScanStepArgs scan{};
  scan.B = a.B, scan.E = a.E, scan.N = a.N, scan.G = 1;
  scan.bc = ScanBC::kGrouped, scan.delta_softplus = true;
  scan.u = a.conv_x, scan.u_stride = a.E;
  scan.delta = a.delta, scan.delta_stride = a.E;
  scan.delta_bias = a.dt_bias, scan.A_t = a.A_t;
  scan.Bm = dbl + a.R, scan.Cm = dbl + (a.R + a.N), scan.B_stride = scan.C_stride = W;
  scan.D = a.D;
  scan.z = a.xz + a.E, scan.z_stride = a.xz_stride;
  scan.h = a.ssm_state, scan.h_stride = a.state_stride;
  scan.y = a.y, scan.y_stride = a.y_stride;
  k.scan_step(stream, scan);
}

// y silu(z) of both parts, or the gated norm of the second: out.
MAMBA_INLINE void step_gates(const Kernels& k, Stream& stream, const Mamba2StepArgs& a) {
  const int64_t S = a.H * a.P;
  GateArgs gate{};
  gate.rows = a.B;
  gate.a_stride = gate.z_stride = a.zx_stride, gate.y_stride = a.out_stride;
  if (a.M > 0) {
    gate.dim = a.M, gate.a = a.zx + a.M, gate.z = a.zx, gate.y = a.out;
    k.gate_forward(stream, gate);
  }
  if (!a.gated_norm) {
    gate.dim = S, gate.a = a.y, gate.a_stride = S;
    gate.z = a.zx + 2 * a.M, gate.y = a.out + a.M;
    k.gate_forward(stream, gate);
    return;
  }
  GatedNormArgs norm{};
  norm.rows = a.B, norm.dim = S, norm.groups = a.norm_groups, norm.eps = a.norm_eps;
  norm.norm_before_gate = a.norm_before_gate;
  norm.x = a.y, norm.x_stride = S;
  norm.z = a.zx + 2 * a.M, norm.z_stride = a.zx_stride;
  norm.weight = a.norm_weight;
  norm.y = a.out + a.M, norm.y_stride = a.out_stride;
  k.gated_norm_forward(stream, norm);
}

MAMBA_INLINE void step_in_sequence(const Kernels& k, Stream& stream, const Mamba2StepArgs& a) {
  const int64_t S = a.H * a.P, GN = a.G * a.N, C = S + 2 * GN;
  Conv1dArgs conv{};
  conv.B = a.B, conv.L = 1, conv.C = C, conv.K = a.K, conv.silu = a.conv_silu;
  conv.x = a.zx + (2 * a.M + S), conv.x_stride = a.zx_stride;
  conv.weight = a.conv_weight, conv.taps = a.conv_taps, conv.bias = a.conv_bias;
  conv.state_in = a.conv_state, conv.state_out = a.conv_state, conv.state_stride = a.state_stride;
  conv.y = a.conv_xbc, conv.y_stride = C;
  k.conv1d_forward(stream, conv);
  SsdStepArgs ssd{};
  ssd.B = a.B, ssd.H = a.H, ssd.P = a.P, ssd.N = a.N, ssd.G = a.G;
  ssd.dt_min = a.dt_min, ssd.dt_max = a.dt_max;
  ssd.x = a.conv_xbc, ssd.x_stride = C;
  ssd.dt = a.zx + (2 * a.M + S + C), ssd.dt_stride = a.zx_stride;
  ssd.dt_bias = a.dt_bias, ssd.A = a.A;
  ssd.Bm = a.conv_xbc + S, ssd.Cm = a.conv_xbc + (S + GN), ssd.B_stride = ssd.C_stride = C;
  ssd.D = a.D, ssd.D_has_hdim = a.D_has_hdim;
  ssd.S = a.ssm_state, ssd.s_stride = a.state_stride;
  ssd.y = a.y, ssd.y_stride = S;
  k.ssd_step(stream, ssd);
  step_gates(k, stream, a);
  if (a.product.y) k.linear_forward(stream, a.product);
}

// The same of backends that have no other way.
template <class Args>
MAMBA_INLINE void only_in_sequence(const Kernels& k, Stream& stream, const Args& a) {
  only_way(stream, a, Way::kSequence);
  step_in_sequence(k, stream, a);
}

}  // namespace
}  // namespace mamba
