// SPDX-License-Identifier: Apache-2.0
// Parts of scan_cpu.cpp: how the work is cut, and the staging of inputs in scratch. A task is a
// slab of channels of one sequence, walked in blocks of kTime tokens; a block is padded to whole
// lanes and to a multiple of kChunk states, so that the inner loops know neither strides nor
// tails.
#pragma once

#include "kernels/scan.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int64_t kLanes = F32::kLanes;
constexpr int64_t kTime = 32;       // tokens of a block
constexpr int kChunk = 8;           // states that stay in registers; N is padded to a multiple
constexpr int64_t kSlab = 128;      // channels of a task where they share B and C
constexpr int64_t kOwnSlab = 64;    // ... where channels have B and C of their own
constexpr int64_t kMinShared = 32;  // groups below this take the second way
constexpr int64_t kParallelWork =
    1 << 13;  // B L E N (states to update) below which one thread is faster
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

MAMBA_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
MAMBA_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
MAMBA_INLINE void fill_zero(float* p, int64_t n) {
  memset(p, 0, static_cast<size_t>(n) * sizeof *p);
}

// 2^x for x clamped to [-126, 127]: a degree-6 minimax polynomial with p(0) = 1 on [-1/2, 1/2]
// (error 2.6e-9) evaluated in f32, relative error below 0.7 * 2^-23 with FMA. p(0) = 1 keeps slow
// decays exact.
MAMBA_INLINE F32 exp2(F32 x) {
  x = min(F32::set(127.0f), max(F32::set(-126.0f), x));  // this order lets NaN through
  const F32 k = round(x);
  const F32 r = x - k;
  F32 p = fma(r, F32::set(0.000155946778f), F32::set(0.00134066434f));
  p = fma(p, r, F32::set(0.00961769279f));
  p = fma(p, r, F32::set(0.0555031039f));
  p = fma(p, r, F32::set(0.240226522f));
  p = fma(p, r, F32::set(0.693147242f));
  p = fma(p, r, F32::set(1.0f));
  return scale_pow2(p, k);
}

MAMBA_INLINE F32 load_part(const float* p, int64_t n) {
  return n >= kLanes ? F32::load(p) : F32::load_n(p, n);
}
MAMBA_INLINE void store_part(F32 v, float* p, int64_t n) {
  if (n >= kLanes) {
    v.store(p);
  } else {
    v.store_n(p, n);
  }
}

// How channels are cut into slabs; depends on shapes alone. shared: a slab lies within one group
// and B and C are scalars; otherwise a slab is made of whole groups and they are staged lane by
// lane.
struct Plan {
  bool shared, constant;
  int64_t group;            // channels of a group
  int64_t slabs_per_group;  // where shared
  int64_t slab, width;      // channels of a slab; padded to lanes
  int64_t slabs, states;    // N padded
};

struct Slab {
  int64_t c0, count, group;
};

template <class Args>
Plan make_plan(const Args& p) {
  Plan plan;
  plan.constant = p.bc == ScanBC::kConstant;
  plan.group = plan.constant ? 1 : p.E / p.G;
  plan.shared = plan.group >= kMinShared;
  plan.slab = plan.shared ? min64(kSlab, plan.group) : kOwnSlab / plan.group * plan.group;
  plan.slab = min64(plan.slab, p.E);
  plan.slabs_per_group = plan.shared ? (plan.group + plan.slab - 1) / plan.slab : 1;
  plan.slabs = plan.shared ? plan.slabs_per_group * p.G : (p.E + plan.slab - 1) / plan.slab;
  plan.width = round_up(plan.slab, kLanes);
  plan.states = round_up(p.N > 0 ? p.N : 1, kChunk);
  return plan;
}

MAMBA_INLINE Slab slab_of(const Plan& plan, int64_t index, int64_t E) {
  if (!plan.shared) {
    const int64_t c0 = index * plan.slab;
    return {c0, min64(plan.slab, E - c0), c0 / plan.group};
  }
  const int64_t group = index / plan.slabs_per_group;
  const int64_t c0 = group * plan.group + index % plan.slabs_per_group * plan.slab;
  return {c0, min64(plan.slab, (group + 1) * plan.group - c0), group};
}

// Hands out parts of the scratch; with a null base it only counts.
struct Carver {
  float* base;
  int64_t used;
  float* take(int64_t count) {
    float* part = base ? base + used : nullptr;
    used += round_up(count, 16);
    return part;
  }
};

// What one thread works in. T = kTime, N = plan.states, W = plan.width.
struct Work {
  float* A;         // (N, W), times log2 e
  float* h;         // (N, W)
  float *d, *du;    // (T, W): step size, and times u
  float* y;         // (T, W): sum_n C h
  float *B, *C;     // (T, N) where shared, else (T, N, W), or (N, W) where constant
  int64_t bc_time;  // floats from a token to the next in B and C
};

Work carve_work(Carver& from, const Plan& plan) {
  const int64_t state = plan.states * plan.width, tokens = kTime * plan.width;
  Work w;
  w.A = from.take(state);
  w.h = from.take(state);
  w.d = from.take(tokens);
  w.du = from.take(tokens);
  w.y = from.take(tokens);
  w.bc_time = plan.shared ? plan.states : plan.constant ? 0 : state;
  const int64_t bc = plan.constant ? state : kTime * w.bc_time;
  w.B = from.take(bc);
  w.C = from.take(bc);
  return w;
}

// Tokens of a block between padding and document starts.
struct Run {
  int64_t begin, end;
  bool reset;  // the state is 0 before `begin`
};

enum Token : uint8_t { kPlain, kReset, kPadding };

// tokens (B, L); the first token of a sequence that is no padding is plain.
void classify_tokens(const int32_t* ids, int64_t B, int64_t L, uint8_t* tokens) {
  for (int64_t b = 0; b < B; ++b) {
    int32_t last = -1;
    for (int64_t t = b * L; t < (b + 1) * L; ++t) {
      tokens[t] = ids[t] < 0 ? kPadding : last >= 0 && ids[t] != last ? kReset : kPlain;
      if (ids[t] >= 0) last = ids[t];
    }
  }
}

int64_t find_runs(const uint8_t* tokens, int64_t count, Run* runs) {
  if (tokens == nullptr) {
    runs[0] = {0, count, false};
    return 1;
  }
  int64_t found = 0;
  for (int64_t t = 0; t < count;) {
    if (tokens[t] == kPadding) {
      ++t;
      continue;
    }
    int64_t end = t + 1;
    while (end < count && tokens[end] == kPlain) ++end;
    runs[found++] = {t, end, tokens[t] == kReset};
    t = end;
  }
  return found;
}

// (N, E) at channel c0 -> (states, width), zero padded, times scale.
void stage_state(const float* from, int64_t N, int64_t E, const Slab& s, const Plan& plan,
                 float scale, float* to) {
  fill_zero(to, plan.states * plan.width);
  if (from == nullptr) return;
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t c = 0; c < s.count; c += kLanes) {
      const F32 v = load_part(from + n * E + s.c0 + c, s.count - c) * F32::set(scale);
      v.store(to + n * plan.width + c);
    }
  }
}

void unstage_state(const float* from, int64_t N, int64_t E, const Slab& s, const Plan& plan,
                   float* to) {
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t c = 0; c < s.count; c += kLanes) {
      store_part(F32::load(from + n * plan.width + c), to + n * E + s.c0 + c, s.count - c);
    }
  }
}

// delta + delta_bias of one vector of channels.
template <class Args>
MAMBA_INLINE F32 raw_delta(const Args& p, int64_t row, int64_t c, int64_t n) {
  const F32 x = load_part(p.delta.template as<float>() + row * p.delta_stride + c, n);
  return p.delta_bias ? x + load_part(p.delta_bias.template as<float>() + c, n) : x;
}

// d and d * u of `count` tokens from `row` on.
template <class Args>
void stage_tokens(const Args& p, int64_t row, int64_t count, const Slab& s, const Plan& plan,
                  const Work& w) {
  for (int64_t t = 0; t < count; ++t) {
    const float* u = p.u.template as<float>() + (row + t) * p.u_stride + s.c0;
    for (int64_t c = 0; c < s.count; c += kLanes) {
      F32 d = raw_delta(p, row + t, s.c0 + c, s.count - c);
      if (p.delta_softplus) d = softplus(d);
      d.store(w.d + t * plan.width + c);
      (d * load_part(u + c, s.count - c)).store(w.du + t * plan.width + c);
    }
  }
}

// B or C of `count` tokens from `row` on; once per slab where constant.
void stage_bc(const float* from, int64_t stride, int64_t row, int64_t count, int64_t N,
              const Slab& s, const Plan& plan, float* to) {
  const int64_t W = plan.width, S = plan.states;
  if (plan.shared) {
    for (int64_t t = 0; t < count; ++t) {
      const float* token = from + (row + t) * stride + s.group * N;
      memcpy(to + t * S, token, static_cast<size_t>(N) * sizeof(float));
      fill_zero(to + t * S + N, S - N);
    }
    return;
  }
  for (int64_t t = 0; t < (plan.constant ? 1 : count); ++t, to += S * W) {
    fill_zero(to, S * W);
    const float* token = plan.constant ? from : from + (row + t) * stride;
    for (int64_t c = 0; c < s.count; ++c) {
      const float* channel = token + (s.c0 + c) / plan.group * N;
      for (int64_t n = 0; n < N; ++n) to[n * W + c] = channel[n];
    }
  }
}

// Scratch for the token classes of the call, or null where there are no documents.
template <class Args>
uint8_t* take_tokens(Carver& from, const Args& p) {
  if (!p.doc_ids) return nullptr;
  return reinterpret_cast<uint8_t*>(from.take((p.B * p.L + 3) / 4));
}

template <class Args>
MAMBA_INLINE int threads_for(const Stream& stream, const Args& p, int64_t tasks, int64_t L) {
  if (p.B * L * p.E * p.N < kParallelWork) return 1;
  return static_cast<int>(min64(stream.threads, tasks));
}

}  // namespace
}  // namespace mamba::MAMBA_ISA
