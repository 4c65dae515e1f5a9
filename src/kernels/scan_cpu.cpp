// SPDX-License-Identifier: Apache-2.0
// scan on SIMD: a lane is a channel. The staging around the loops is in scan_stage.h; forward, step
// and backward share the recurrence, so that steps and any split of a sequence give the same bits.
#include <omp.h>

#include "kernels/scan.h"
#include "kernels/scan_stage.h"
#include "kernels/simd_bf16.h"

namespace mamba::MAMBA_ISA {
namespace {

// The recurrence over the tokens of a run, the lanes at channel c and kChunk states from n0 on:
//   ah = exp2(d A) h,  h = d u B + ah,  y += C h
// kSave keeps a and ah in (T, kChunk, lanes) for the backward. States stay in registers.
template <bool kShared, bool kOut, bool kSave>
void sweep(const Work& w, int64_t W, int64_t c, int64_t n0, const Run& run, float* a_out,
           float* ah_out) {
  const float* A = w.A + n0 * W + c;
  float* state = w.h + n0 * W + c;
  F32 h[kChunk];
#pragma GCC unroll 8
  for (int n = 0; n < kChunk; ++n) h[n] = run.reset ? F32::zero() : F32::load(state + n * W);
  for (int64_t t = run.begin; t < run.end; ++t) {
    const F32 d = F32::load(w.d + t * W + c), du = F32::load(w.du + t * W + c);
    const float* B = w.B + t * w.bc_time + (kShared ? n0 : n0 * W + c);
    const float* C = w.C + t * w.bc_time + (kShared ? n0 : n0 * W + c);
    F32 y = n0 > 0 ? F32::load(w.y + t * W + c) : F32::zero();
#pragma GCC unroll 8
    for (int n = 0; n < kChunk; ++n) {
      const F32 a = exp2(d * F32::load(A + n * W));
      const F32 ah = a * h[n];
      h[n] = fma(du, kShared ? F32::set(B[n]) : F32::load(B + n * W), ah);
      if (kOut) y = fma(kShared ? F32::set(C[n]) : F32::load(C + n * W), h[n], y);
      if (kSave) {
        a.store(a_out + (t * kChunk + n) * kLanes);
        ah.store(ah_out + (t * kChunk + n) * kLanes);
      }
    }
    if (kOut) y.store(w.y + t * W + c);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kChunk; ++n) h[n].store(state + n * W);
}

// sweep() over all lanes and states of a slab.
template <bool kShared, bool kOut>
void sweep_slab(const Work& w, const Plan& plan, int64_t channels, const Run* runs, int64_t count) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    for (int64_t n0 = 0; n0 < plan.states; n0 += kChunk) {
      for (int64_t r = 0; r < count; ++r) {
        sweep<kShared, kOut, false>(w, plan.width, c, n0, runs[r], nullptr, nullptr);
      }
    }
  }
}

// y = (sum_n C h + D u) silu(z); 0 for padding.
template <class Args>
MAMBA_INLINE F32 finish(const Args& p, F32 y, int64_t row, int64_t c, int64_t n) {
  if (p.D) {
    y = fma(load_part(p.D.template as<float>() + c, n),
            load_part(p.u.template as<float>() + row * p.u_stride + c, n), y);
  }
  if (p.z) {
    const F32 z = load_part(p.z.template as<float>() + row * p.z_stride + c, n);
    y = y * (z * sigmoid(z));
  }
  return y;
}

void forward_slab(const ScanArgs& p, const Plan& plan, const Slab& s, int64_t b,
                  const uint8_t* tokens, const Work& w) {
  Run runs[kTime];
  const int64_t W = plan.width;
  const float* h0 = p.h0 ? p.h0.as<float>() + b * p.h_stride : nullptr;
  stage_state(p.A_t.as<float>(), p.N, p.E, s, plan, kLog2E, w.A);
  stage_state(h0, p.N, p.E, s, plan, 1.0f, w.h);
  for (int64_t t0 = 0; t0 < p.L; t0 += kTime) {
    const int64_t row = b * p.L + t0, count = min64(kTime, p.L - t0);
    const int64_t found = find_runs(tokens ? tokens + row : nullptr, count, runs);
    stage_tokens(p, row, count, s, plan, w);
    if (!plan.constant || t0 == 0) {
      stage_bc(p.Bm.as<float>(), p.B_stride, row, count, p.N, s, plan, w.B);
      stage_bc(p.Cm.as<float>(), p.C_stride, row, count, p.N, s, plan, w.C);
    }
    if (plan.shared) {
      sweep_slab<true, true>(w, plan, s.count, runs, found);
    } else {
      sweep_slab<false, true>(w, plan, s.count, runs, found);
    }
    for (int64_t t = 0; t < count; ++t) {
      const bool padding = tokens && tokens[row + t] == kPadding;
      float* y = p.y.as<float>() + (row + t) * p.y_stride + s.c0;
      for (int64_t c = 0; c < s.count; c += kLanes) {
        const int64_t n = s.count - c;
        const F32 v = F32::load(w.y + t * W + c);
        store_part(padding ? F32::zero() : finish(p, v, row + t, s.c0 + c, n), y + c, n);
      }
    }
  }
  if (p.hT) unstage_state(w.h, p.N, p.E, s, plan, p.hT.as<float>() + b * p.h_stride);
}

// B or C of state n for the lanes at channel c of one token (or of all, where constant).
MAMBA_INLINE F32 bc_lanes(const float* token, int64_t c, int64_t lanes, int64_t n, int64_t N,
                          const Plan& plan) {
  if (plan.shared) return F32::set(token[c / plan.group * N + n]);
  float values[kLanes] = {};
  for (int64_t i = 0; i < min64(lanes, kLanes); ++i)
    values[i] = token[(c + i) / plan.group * N + n];
  return F32::load(values);
}

// The operations of sweep() in its order, so that steps give the bits of the full scan.
template <class State>
void step_slab(const ScanStepArgs& p, const Plan& plan, const Slab& s, int64_t row) {
  constexpr int64_t kSoon = 4 * kLanes;  // channels

  const float* A = p.A_t.as<float>();
  const float* B = p.Bm.as<float>() + (plan.constant ? 0 : row * p.B_stride);
  const float* C = p.Cm.as<float>() + (plan.constant ? 0 : row * p.C_stride);
  for (int64_t c = s.c0; c < s.c0 + s.count; c += kLanes) {
    const int64_t lanes = s.c0 + s.count - c;
    F32 d = raw_delta(p, row, c, lanes);
    if (p.delta_softplus) d = softplus(d);
    const F32 du = d * load_part(p.u.as<float>() + row * p.u_stride + c, lanes);
    F32 y = F32::zero();
    for (int64_t n = 0; n < p.N; ++n) {
      State* state = p.h.as<State>() + row * p.h_stride + n * p.E + c;
      const F32 a = exp2(d * (load_part(A + n * p.E + c, lanes) * F32::set(kLog2E)));
      const F32 ah = a * load_state(state, lanes);
      __builtin_prefetch(A + n * p.E + c + kSoon);  // too many rows for the hardware to follow
      __builtin_prefetch(state + kSoon, 1);
      const F32 h = fma(du, bc_lanes(B, c, lanes, n, p.N, plan), ah);
      y = fma(bc_lanes(C, c, lanes, n, p.N, plan), h, y);
      store_state(h, state, lanes);
    }
    store_part(finish(p, y, row, c, lanes), p.y.as<float>() + row * p.y_stride + c, lanes);
  }
}

// Partial gradients in scratch, in floats, unless one sequence alone needs more.
constexpr int64_t kWaveFloats = 1 << 24;
// States of walk_back(): it holds twice as many vectors as sweep() for each.
constexpr int kBackChunk = kLanes == 16 ? 8 : 4;

// What one thread works in for the backward, beside Work.
struct Adjoint {
  float* g;        // (N, W): gradient of the state, after the tokens that are done
  float* dout;     // (T, W): gradient of y before the gate
  float *gB, *gA;  // (T, W): sum_n g B, sum_n g A ah with w.A's log2 e
  float *a, *ah;   // (T, chunk, lanes) of sweep()
  float *dB, *dC;  // (T, N, lanes) where shared: summed over lanes at the end of a block; else as B
  int64_t bc_time, bc_row;
  float* checkpoints;  // (blocks, N, W): h before each block
};

// Sums of one task over its tokens, added over sequences in order.
struct Partial {
  float *dA, *dB, *dC;  // (N, W); dB and dC where constant
  float *dD, *dbias;    // (W)
};

Adjoint carve_adjoint(Carver& from, const Plan& plan, int64_t L) {
  const int64_t state = plan.states * plan.width, tokens = kTime * plan.width;
  Adjoint k;
  k.g = from.take(state);
  k.dout = from.take(tokens);
  k.gB = from.take(tokens);
  k.gA = from.take(tokens);
  k.a = from.take(kTime * kChunk * kLanes);
  k.ah = from.take(kTime * kChunk * kLanes);
  k.bc_row = plan.shared ? kLanes : plan.width;
  k.bc_time = plan.constant ? 0 : plan.states * k.bc_row;
  k.dB = from.take(kTime * k.bc_time);
  k.dC = from.take(kTime * k.bc_time);
  k.checkpoints = from.take((L + kTime - 1) / kTime * state);
  return k;
}

Partial carve_partial(Carver& from, const Plan& plan) {
  const int64_t state = plan.states * plan.width;
  Partial part;
  part.dA = from.take(state);
  part.dB = from.take(plan.constant ? state : 0);
  part.dC = from.take(plan.constant ? state : 0);
  part.dD = from.take(plan.width);
  part.dbias = from.take(plan.width);
  return part;
}

MAMBA_INLINE void add_to(float* p, F32 v) { (F32::load(p) + v).store(p); }

// The reverse of sweep() for kBackChunk states from n0 on, which k.a and k.ah hold from `at` on:
//   g += C dout;  dC += dout h;  dB += g d u;  gB += g B;  gA += A g ah;  dA += d g ah;  g = a g
template <bool kShared>
void walk_back(const Work& w, const Adjoint& k, float* dA_out, int64_t W, int64_t c, int64_t n0,
               int64_t at, const Run& run) {
  const float* A = w.A + n0 * W + c;
  F32 g[kBackChunk], dA[kBackChunk];
#pragma GCC unroll 8
  for (int n = 0; n < kBackChunk; ++n) {
    g[n] = F32::load(k.g + (n0 + n) * W + c);
    dA[n] = F32::zero();
  }
  for (int64_t t = run.end - 1; t >= run.begin; --t) {
    const F32 d = F32::load(w.d + t * W + c), du = F32::load(w.du + t * W + c);
    const F32 dout = F32::load(k.dout + t * W + c);
    const float* B = w.B + t * w.bc_time + (kShared ? n0 : n0 * W + c);
    const float* C = w.C + t * w.bc_time + (kShared ? n0 : n0 * W + c);
    float* dB = k.dB + t * k.bc_time + n0 * k.bc_row + (kShared ? 0 : c);
    float* dC = k.dC + t * k.bc_time + n0 * k.bc_row + (kShared ? 0 : c);
    const float* a = k.a + (t * kChunk + at) * kLanes;
    const float* ah = k.ah + (t * kChunk + at) * kLanes;
    F32 gB = n0 > 0 ? F32::load(k.gB + t * W + c) : F32::zero();
    F32 gA = n0 > 0 ? F32::load(k.gA + t * W + c) : F32::zero();
#pragma GCC unroll 8
    for (int n = 0; n < kBackChunk; ++n) {
      const F32 ah_n = F32::load(ah + n * kLanes);
      const F32 B_n = kShared ? F32::set(B[n]) : F32::load(B + n * W);
      const F32 C_n = kShared ? F32::set(C[n]) : F32::load(C + n * W);
      const int64_t row = n * (kShared ? kLanes : k.bc_row);
      g[n] = fma(C_n, dout, g[n]);
      fma(dout, fma(du, B_n, ah_n), F32::load(dC + row)).store(dC + row);
      fma(g[n], du, F32::load(dB + row)).store(dB + row);
      gB = fma(g[n], B_n, gB);
      const F32 gah = g[n] * ah_n;
      gA = fma(gah, F32::load(A + n * W), gA);
      dA[n] = fma(gah, d, dA[n]);
      g[n] = g[n] * F32::load(a + n * kLanes);
    }
    gB.store(k.gB + t * W + c);
    gA.store(k.gA + t * W + c);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kBackChunk; ++n) {
    (run.reset ? F32::zero() : g[n]).store(k.g + (n0 + n) * W + c);
    add_to(dA_out + (n0 + n) * W + c, dA[n]);
  }
}

// One chunk of states of one vector of channels: forward again over the block, then back.
template <bool kShared>
void chunk_backward(const Work& w, const Adjoint& k, float* dA, int64_t W, int64_t c, int64_t n0,
                    const Run* runs, int64_t found) {
  for (int64_t r = 0; r < found; ++r) {
    sweep<kShared, true, true>(w, W, c, n0, runs[r], k.a, k.ah);
  }
  for (int64_t at = 0; at < kChunk; at += kBackChunk) {
    for (int64_t r = found - 1; r >= 0; --r) {
      walk_back<kShared>(w, k, dA, W, c, n0 + at, at, runs[r]);
    }
  }
}

template <bool kShared>
void block_backward(const Work& w, const Adjoint& k, float* dA, const Plan& plan, int64_t channels,
                    const Run* runs, int64_t found) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    for (int64_t n0 = 0; n0 < plan.states; n0 += kChunk) {
      chunk_backward<kShared>(w, k, dA, plan.width, c, n0, runs, found);
    }
  }
}

// k.dout = dy silu(z).
void stage_dout(const ScanBackwardArgs& p, int64_t row, int64_t count, const Slab& s, int64_t W,
                float* dout) {
  for (int64_t t = 0; t < count; ++t) {
    const float* dy = p.dy.as<float>() + (row + t) * p.dy_stride + s.c0;
    for (int64_t c = 0; c < s.count; c += kLanes) {
      F32 v = load_part(dy + c, s.count - c);
      if (p.z) {
        const F32 z = load_part(p.z.as<float>() + (row + t) * p.z_stride + s.c0 + c, s.count - c);
        v = v * (z * sigmoid(z));
      }
      v.store(dout + t * W + c);
    }
  }
}

// Gradients of one token and one vector of channels; `at` is its place in (T, W).
void finish_gradients(const ScanBackwardArgs& p, int64_t row, int64_t c0, int64_t c, int64_t n,
                      int64_t at, const Work& w, const Adjoint& k, const Partial& part) {
  const int64_t ch = c0 + c;
  const F32 one = F32::set(1.0f);
  const F32 u = load_part(p.u.as<float>() + row * p.u_stride + ch, n);
  const F32 D = p.D ? load_part(p.D.as<float>() + ch, n) : F32::zero();
  const F32 dout = F32::load(k.dout + at), gB = F32::load(k.gB + at);
  // Read before du is written: du may alias dy.
  const F32 dy = load_part(p.dy.as<float>() + row * p.dy_stride + ch, n);
  if (p.z && p.dz) {
    const F32 z = load_part(p.z.as<float>() + row * p.z_stride + ch, n);
    const F32 s = sigmoid(z);
    const F32 y = fma(D, u, F32::load(w.y + at));
    store_part(dy * y * (s * fma(z, one - s, one)), p.dz.as<float>() + row * p.dz_stride + ch, n);
  }
  const F32 dd = fma(u, gB, F32::load(k.gA + at) * F32::set(kLn2));
  F32 draw = dd;
  if (p.delta_softplus) {
    const F32 raw = raw_delta(p, row, ch, n);
    draw = dd * select_gt(raw, F32::set(20.0f), one, sigmoid(raw));
  }
  store_part(fma(D, dout, F32::load(w.d + at) * gB), p.du.as<float>() + row * p.du_stride + ch, n);
  store_part(draw, p.ddelta.as<float>() + row * p.ddelta_stride + ch, n);
  add_to(part.dbias + c, draw);
  add_to(part.dD + c, dout * u);
}

void finish_block(const ScanBackwardArgs& p, int64_t row, int64_t count, const Slab& s, int64_t W,
                  const uint8_t* tokens, const Work& w, const Adjoint& k, const Partial& part) {
  const auto bytes = static_cast<size_t>(s.count) * sizeof(float);
  for (int64_t t = 0; t < count; ++t) {
    if (tokens && tokens[row + t] == kPadding) {
      memset(p.du.as<float>() + (row + t) * p.du_stride + s.c0, 0, bytes);
      memset(p.ddelta.as<float>() + (row + t) * p.ddelta_stride + s.c0, 0, bytes);
      if (p.dz) memset(p.dz.as<float>() + (row + t) * p.dz_stride + s.c0, 0, bytes);
      continue;
    }
    for (int64_t c = 0; c < s.count; c += kLanes) {
      finish_gradients(p, row + t, s.c0, c, s.count - c, t * W + c, w, k, part);
    }
  }
}

// dB or dC of a block from its sums by lane (shared) or by channel; `to` is the slab's first group
// of the block's first token.
void reduce_bc(const float* sums, const Adjoint& k, const Plan& plan, const Slab& s, int64_t count,
               int64_t N, float* to, int64_t stride) {
  for (int64_t t = 0; t < count; ++t, sums += k.bc_time, to += stride) {
    for (int64_t n = 0; n < N; ++n) {
      const float* row = sums + n * k.bc_row;
      if (plan.shared) {
        to[n] = reduce_add(F32::load(row));
        continue;
      }
      for (int64_t c = 0; c < s.count; c += plan.group) {
        float sum = 0;
        for (int64_t i = c; i < c + plan.group; ++i) sum += row[i];
        to[c / plan.group * N + n] = sum;
      }
    }
  }
}

// Where a task writes dB and dC by token: row 0 of its sequence, its first group.
struct TokenGradients {
  float *dB, *dC;  // null where constant
  int64_t dB_stride, dC_stride;
};

void stage_block(const ScanBackwardArgs& p, const Plan& plan, const Slab& s, int64_t row,
                 int64_t count, const Work& w) {
  stage_tokens(p, row, count, s, plan, w);
  if (plan.constant) return;
  stage_bc(p.Bm.as<float>(), p.B_stride, row, count, p.N, s, plan, w.B);
  stage_bc(p.Cm.as<float>(), p.C_stride, row, count, p.N, s, plan, w.C);
}

// h before every block into k.checkpoints.
void save_checkpoints(const ScanBackwardArgs& p, const Plan& plan, const Slab& s, int64_t b,
                      const uint8_t* tokens, const Work& w, const Adjoint& k) {
  Run runs[kTime];
  const int64_t state = plan.states * plan.width;
  float* to = k.checkpoints;
  for (int64_t t0 = 0; t0 < p.L; t0 += kTime, to += state) {
    memcpy(to, w.h, static_cast<size_t>(state) * sizeof *to);
    if (t0 + kTime >= p.L) break;
    const int64_t row = b * p.L + t0;
    const int64_t found = find_runs(tokens ? tokens + row : nullptr, kTime, runs);
    stage_block(p, plan, s, row, kTime, w);
    if (plan.shared) {
      sweep_slab<true, false>(w, plan, s.count, runs, found);
    } else {
      sweep_slab<false, false>(w, plan, s.count, runs, found);
    }
  }
}

void backward_slab(const ScanBackwardArgs& p, const Plan& plan, const Slab& s, int64_t b,
                   const uint8_t* tokens, const Work& w, Adjoint k, const Partial& part,
                   const TokenGradients& to) {
  Run runs[kTime];
  const int64_t state = plan.states * plan.width;
  stage_state(p.A_t.as<float>(), p.N, p.E, s, plan, kLog2E, w.A);
  stage_state(p.h0 ? p.h0.as<float>() + b * p.h_stride : nullptr, p.N, p.E, s, plan, 1.0f, w.h);
  stage_state(p.dhT ? p.dhT.as<float>() + b * p.N * p.E : nullptr, p.N, p.E, s, plan, 1.0f, k.g);
  if (plan.constant) {
    stage_bc(p.Bm.as<float>(), 0, 0, 1, p.N, s, plan, w.B);
    stage_bc(p.Cm.as<float>(), 0, 0, 1, p.N, s, plan, w.C);
    k.dB = part.dB;
    k.dC = part.dC;
  }
  save_checkpoints(p, plan, s, b, tokens, w, k);
  for (int64_t block = (p.L + kTime - 1) / kTime - 1; block >= 0; --block) {
    const int64_t t0 = block * kTime, row = b * p.L + t0, count = min64(kTime, p.L - t0);
    const int64_t found = find_runs(tokens ? tokens + row : nullptr, count, runs);
    memcpy(w.h, k.checkpoints + block * state, static_cast<size_t>(state) * sizeof(float));
    stage_block(p, plan, s, row, count, w);
    stage_dout(p, row, count, s, plan.width, k.dout);
    if (!plan.constant) {
      fill_zero(k.dB, count * k.bc_time);
      fill_zero(k.dC, count * k.bc_time);
    }
    if (plan.shared) {
      block_backward<true>(w, k, part.dA, plan, s.count, runs, found);
    } else {
      block_backward<false>(w, k, part.dA, plan, s.count, runs, found);
    }
    finish_block(p, row, count, s, plan.width, tokens, w, k, part);
    if (plan.constant) continue;
    reduce_bc(k.dB, k, plan, s, count, p.N, to.dB + t0 * to.dB_stride, to.dB_stride);
    reduce_bc(k.dC, k, plan, s, count, p.N, to.dC + t0 * to.dC_stride, to.dC_stride);
  }
  if (p.dh0) unstage_state(k.g, p.N, p.E, s, plan, p.dh0.as<float>() + b * p.N * p.E);
}

// Adds one task's sums to the gradients of the parameters.
void add_partial(const ScanBackwardArgs& p, const Plan& plan, const Slab& s, const Partial& part) {
  for (int64_t c = 0; c < s.count; ++c) {
    for (int64_t n = 0; n < p.N; ++n) {
      p.dA_t.as<float>()[n * p.E + s.c0 + c] += part.dA[n * plan.width + c];
      if (!plan.constant) continue;
      p.dBm.as<float>()[(s.c0 + c) * p.N + n] += part.dB[n * plan.width + c];
      p.dCm.as<float>()[(s.c0 + c) * p.N + n] += part.dC[n * plan.width + c];
    }
    if (p.dD) p.dD.as<float>()[s.c0 + c] += part.dD[c];
    if (p.ddelta_bias) p.ddelta_bias.as<float>()[s.c0 + c] += part.dbias[c];
  }
}

// to (rows, G, N) = sum over the slabs of a group, in order; from (sequences, slabs, L, N).
void sum_slabs(const float* from, const Plan& plan, int64_t L, int64_t N, int64_t row, float* to) {
  const float* sequence = from + row / L * plan.slabs * L * N + row % L * N;
  const int64_t groups = plan.slabs / plan.slabs_per_group;
  for (int64_t group = 0; group < groups; ++group, to += N) {
    const float* first = sequence + group * plan.slabs_per_group * L * N;
    for (int64_t n = 0; n < N; ++n) {
      float sum = first[n];
      for (int64_t i = 1; i < plan.slabs_per_group; ++i) sum += first[i * L * N + n];
      to[n] = sum;
    }
  }
}

// The scratch of a backward call: threads, then token classes, then the partial sums of a wave.
struct BackwardLayout {
  int64_t per_thread, per_task, tokens_at, partials_at, dB_at, dC_at, total;
  int64_t wave;  // sequences whose partial sums are held at a time
  int threads;
  bool split;  // groups of several slabs: dB and dC go through partial sums
};

BackwardLayout lay_out(const Stream& stream, const ScanBackwardArgs& p, const Plan& plan) {
  BackwardLayout l;
  l.split = plan.slabs_per_group > 1;
  Carver thread{nullptr, 0}, task{nullptr, 0}, all{nullptr, 0};
  carve_work(thread, plan);
  carve_adjoint(thread, plan, p.L);
  carve_partial(task, plan);
  l.per_thread = thread.used;
  l.per_task = task.used;
  const int64_t by_token = l.split ? plan.slabs * p.L * p.N : 0;
  l.wave = kWaveFloats / (plan.slabs * l.per_task + 2 * by_token);
  l.wave = min64(l.wave > 1 ? l.wave : 1, p.B);
  l.threads = threads_for(stream, p, l.wave * plan.slabs, p.L);
  all.take(l.threads * l.per_thread);
  l.tokens_at = all.used;
  take_tokens(all, p);
  l.partials_at = all.used;
  all.take(l.wave * plan.slabs * l.per_task);
  l.dB_at = all.used;
  all.take(l.wave * by_token);
  l.dC_at = all.used;
  all.take(l.wave * by_token);
  l.total = all.used;
  return l;
}

// The tasks of sequences b0 .. b0 + count.
void backward_wave(const ScanBackwardArgs& p, const Plan& plan, const BackwardLayout& l,
                   float* scratch, const uint8_t* tokens, int64_t b0, int64_t count) {
#pragma omp parallel for num_threads(l.threads) schedule(dynamic, 1) if (l.threads > 1)
  for (int64_t task = 0; task < count * plan.slabs; ++task) {
    const int64_t b = b0 + task / plan.slabs;
    const Slab s = slab_of(plan, task % plan.slabs, p.E);
    Carver own{scratch + l.per_thread * omp_get_thread_num(), 0};
    const Work w = carve_work(own, plan);
    const Adjoint k = carve_adjoint(own, plan, p.L);
    Carver sums{scratch + l.partials_at + task * l.per_task, 0};
    fill_zero(sums.base, l.per_task);
    TokenGradients to = {nullptr, nullptr, p.N, p.N};
    if (l.split) {
      to.dB = scratch + l.dB_at + task * p.L * p.N;
      to.dC = scratch + l.dC_at + task * p.L * p.N;
    } else if (!plan.constant) {
      to = {p.dBm.as<float>() + b * p.L * p.dB_stride + s.group * p.N,
            p.dCm.as<float>() + b * p.L * p.dC_stride + s.group * p.N, p.dB_stride, p.dC_stride};
    }
    backward_slab(p, plan, s, b, tokens, w, k, carve_partial(sums, plan), to);
  }
}

// Adds the sums of a wave's tasks: over its sequences for parameters, over slabs for dB and dC.
void reduce_wave(const ScanBackwardArgs& p, const Plan& plan, const BackwardLayout& l,
                 float* scratch, int64_t b0, int64_t count) {
#pragma omp parallel for num_threads(l.threads) schedule(static) if (l.threads > 1)
  for (int64_t slab = 0; slab < plan.slabs; ++slab) {
    for (int64_t i = 0; i < count; ++i) {
      Carver sums{scratch + l.partials_at + (i * plan.slabs + slab) * l.per_task, 0};
      add_partial(p, plan, slab_of(plan, slab, p.E), carve_partial(sums, plan));
    }
  }
  if (!l.split) return;
#pragma omp parallel for num_threads(l.threads) schedule(static) if (l.threads > 1)
  for (int64_t row = 0; row < count * p.L; ++row) {
    const int64_t out = b0 * p.L + row;
    sum_slabs(scratch + l.dB_at, plan, p.L, p.N, row, p.dBm.as<float>() + out * p.dB_stride);
    sum_slabs(scratch + l.dC_at, plan, p.L, p.N, row, p.dCm.as<float>() + out * p.dC_stride);
  }
}

}  // namespace

void scan_forward(Stream& stream, const ScanArgs& p) noexcept {
  if (p.B == 0 || p.E == 0) return;
  const Plan plan = make_plan(p);
  const int64_t tasks = p.B * plan.slabs;
  const int threads = threads_for(stream, p, tasks, p.L);
  Carver size{nullptr, 0};
  carve_work(size, plan);
  const int64_t per_thread = size.used;
  take_tokens(size, p);
  float* scratch = stream.scratch<float>(per_thread * threads + size.used - per_thread);
  if (scratch == nullptr) return;
  Carver rest{scratch + per_thread * threads, 0};
  uint8_t* tokens = take_tokens(rest, p);
  if (tokens) classify_tokens(p.doc_ids.as<int32_t>(), p.B, p.L, tokens);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    Carver own{scratch + per_thread * omp_get_thread_num(), 0};
    const Work w = carve_work(own, plan);
    forward_slab(p, plan, slab_of(plan, task % plan.slabs, p.E), task / plan.slabs, tokens, w);
  }
}

void scan_step(Stream& stream, const ScanStepArgs& p) noexcept {
  if (p.B == 0 || p.E == 0) return;
  const Plan plan = make_plan(p);
  const int64_t tasks = p.B * plan.slabs;
  const int threads = threads_for(stream, p, tasks, 1);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const Slab slab = slab_of(plan, task % plan.slabs, p.E);
    if (p.h.dtype == DType::kBF16) {
      step_slab<bf16>(p, plan, slab, task / plan.slabs);
    } else {
      step_slab<float>(p, plan, slab, task / plan.slabs);
    }
  }
}

void scan_backward(Stream& stream, const ScanBackwardArgs& p) noexcept {
  if (p.B == 0 || p.E == 0) return;
  const Plan plan = make_plan(p);
  const BackwardLayout l = lay_out(stream, p, plan);
  float* scratch = stream.scratch<float>(l.total);
  if (scratch == nullptr) return;
  Carver rest{scratch + l.tokens_at, 0};
  uint8_t* tokens = take_tokens(rest, p);
  if (tokens) classify_tokens(p.doc_ids.as<int32_t>(), p.B, p.L, tokens);
  for (int64_t b0 = 0; b0 < p.B; b0 += l.wave) {
    const int64_t count = min64(l.wave, p.B - b0);
    backward_wave(p, plan, l, scratch, tokens, b0, count);
    reduce_wave(p, plan, l, scratch, b0, count);
  }
}

}  // namespace mamba::MAMBA_ISA
