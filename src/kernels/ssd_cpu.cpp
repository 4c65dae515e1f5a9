// SPDX-License-Identifier: Apache-2.0
// ssd on the CPU, chunked (Dao & Gu 2024, section 6), and one token. With c_t the sum of d_r A over
// the tokens of the chunk up to t, and S the state that enters it:
//   y_t = exp(c_t) S C_t + sum_{s <= t} exp(c_t - c_s) (C_t . B_s) d_s x_s + D x_t
//   S'  = exp(c_last) S + sum_s exp(c_last - c_s) d_s x_s (outer) B_s
// One source for every ISA; gradients are in ssd_cpu_backward.inc.
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "kernels/simd_bf16.h"
#include "kernels/ssd.h"
#include "kernels/ssd_tile.h"

namespace mamba::MAMBA_ISA {
namespace {

// Below this many state elements a parallel region costs more than it saves.
constexpr int64_t kParallelElements = 32768;

// Scratch of one thread of the forward pass.
struct ForwardTiles {
  int64_t* tokens;  // (Q) positions of the chunk's tokens in the row
  Steps steps;
  float* B;       // (Q, N)
  float* C;       // (Q, N)
  float* B_t;     // (N, Q)
  float* CB;      // (Q, Q) C_t . B_s, for all heads of the group
  float* weight;  // (Q, Q) the same times exp(c_t - c_s), lower triangular
  float* dx;      // (Q, P) d_s x_s
  float* dx_end;  // (Q, P) the same times exp(c_last - c_s)
  float* y;       // (Q, P)
  float* S_t;     // (block, N, P) states, transposed
};

ForwardTiles carve_forward(Carver* carver, const Plan& plan, const SsdArgs& a) {
  ForwardTiles w;
  const int64_t Q = plan.chunk;
  w.tokens = carver->take<int64_t>(Q);
  w.steps = carve_steps(carver, plan.q_row);
  w.B = carver->take<float>(Q * plan.n_row);
  w.C = carver->take<float>(Q * plan.n_row);
  w.B_t = carver->take<float>(a.N * plan.q_row);
  w.CB = carver->take<float>(Q * plan.q_row);
  w.weight = carver->take<float>(Q * plan.q_row);
  w.dx = carver->take<float>(Q * plan.p_row);
  w.dx_end = carver->take<float>(Q * plan.p_row);
  w.y = carver->take<float>(Q * plan.p_row);
  w.S_t = carver->take<float>(plan.block * a.N * plan.p_row);
  return w;
}

// The chunk's rows of B or C of group g as a tile.
void gather_rows(const float* from, int64_t stride, const int64_t* tokens, int64_t count, int64_t n,
                 float* to, int64_t to_row) {
  for (int64_t i = 0; i < count; ++i) {
    copy_scaled(from + tokens[i] * stride, n, 1.0f, to + i * to_row);
  }
}

// CB[t, s] = C_t . B_s for s <= t; B and C of group g become tiles.
template <class Args, class Tiles>
void load_group(const Args& a, const Plan& plan, int64_t b, int64_t g, int64_t count,
                const Tiles& w) {
  gather_rows(a.Bm.template as<float>() + b * a.L * a.B_stride + g * a.N, a.B_stride, w.tokens,
              count, a.N, w.B, plan.n_row);
  gather_rows(a.Cm.template as<float>() + b * a.L * a.C_stride + g * a.N, a.C_stride, w.tokens,
              count, a.N, w.C, plan.n_row);
  transpose(w.B, plan.n_row, count, a.N, w.B_t, plan.q_row, round_up(count, kLanes));
  product({count, count, a.N, w.C, plan.n_row, 1, w.B_t, plan.q_row, w.CB, plan.q_row, nullptr,
           nullptr, 0, Span::kLowerResult});
}

// Asks for row t's y of this head and its x of the next; B and C where that is a chunk ahead.
MAMBA_INLINE void prefetch_forward(const SsdArgs& a, const Plan& plan, int64_t b, int64_t h,
                                   int64_t t, const Ahead& ahead) {
  const int64_t later = b * a.L + min64(t + ahead.tokens, a.L - 1);
  prefetch(a.y.as<float>() + (b * a.L + t) * a.y_stride + h * a.P, a.P);
  prefetch(a.x.as<float>() + later * a.x_stride + ahead.head * a.P, a.P);
  if (ahead.tokens == 0) return;
  const int64_t at = h / plan.group_heads * a.N;
  prefetch(a.Bm.as<float>() + later * a.B_stride + at, a.N);
  prefetch(a.Cm.as<float>() + later * a.C_stride + at, a.N);
}

// weight = CB exp(c_t - c_s).
void weigh_pairs(const SsdArgs& a, const Plan& plan, int64_t b, int64_t h, int64_t count,
                 const ForwardTiles& w, const Ahead& ahead) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t m = t / kLanes * kLanes;
    if (t == m) decay_block(w.steps, m);
    prefetch_forward(a, plan, b, h, w.tokens[t], ahead);
    const float* CB = w.CB + t * plan.q_row;
    float* weight = w.weight + t * plan.q_row;
    const F32 rise = F32::set(w.steps.rise[t - m]);
    for (int64_t s = 0; s < m; s += kLanes) {
      (rise * F32::load(w.steps.fade + s) * F32::load(CB + s)).store(weight + s);
    }
    causal(t, m, decay(w.steps, t, m) * F32::load(CB + m)).store(weight + m);
    for (int64_t s = m + kLanes; s < triangle_end(t, count); s += kLanes) {
      F32::zero().store(weight + s);
    }
  }
}

// y of one head: the part of the chunk itself and, with a state, what it carries in.
void head_output(const SsdArgs& a, const Plan& plan, int64_t b, int64_t h, int64_t count,
                 const ForwardTiles& w, const float* S_t, const Ahead& ahead) {
  weigh_pairs(a, plan, b, h, count, w, ahead);
  if (S_t != nullptr) {
    product({count, a.P, a.N, w.C, plan.n_row, 1, S_t, plan.p_row, w.y, plan.p_row, nullptr,
             nullptr, 0, Span::kFull});
  }
  product({count, a.P, count, w.weight, plan.q_row, 1, w.dx, plan.p_row, w.y, plan.p_row,
           S_t != nullptr ? w.y : nullptr, w.steps.from_start, 1, Span::kLower});
  const float* D = a.D.as<float>();
  for (int64_t t = 0; t < count; ++t) {
    const int64_t token = b * a.L + w.tokens[t];
    const float* x = a.x.as<float>() + token * a.x_stride + h * a.P;
    float* y = a.y.as<float>() + token * a.y_stride + h * a.P;
    for (int64_t p = 0; p < a.P; p += kLanes) {
      const int64_t n = min64(kLanes, a.P - p);
      F32 v = F32::load(w.y + t * plan.p_row + p);
      if (D != nullptr) {
        const F32 skip = a.D_has_hdim ? F32::load_n(D + h * a.P + p, n) : F32::set(D[h]);
        v = fma(skip, F32::load_n(x + p, n), v);
      }
      v.store_n(y + p, n);
    }
  }
}

// One head of one chunk. `entry`: a state enters; `leave`: the state that leaves is wanted.
void forward_head(const SsdArgs& a, const Plan& plan, int64_t b, int64_t h, int64_t count,
                  bool entry, bool leave, ForwardTiles* w, float* S_t, const Ahead& ahead) {
  load_steps(a, b, h, w->tokens, count, &w->steps);
  const Steps& steps = w->steps;
  for (int64_t i = 0; i < count; ++i) {
    const float* x = a.x.as<float>() + (b * a.L + w->tokens[i]) * a.x_stride + h * a.P;
    copy_scaled(x, a.P, steps.d[i], w->dx + i * plan.p_row);
    if (!leave) continue;
    copy_scaled(w->dx + i * plan.p_row, a.P, steps.to_end[i], w->dx_end + i * plan.p_row);
  }
  head_output(a, plan, b, h, count, *w, entry ? S_t : nullptr, ahead);
  if (!leave) return;
  product({a.N, a.P, count, w->B, 1, plan.n_row, w->dx_end, plan.p_row, S_t, plan.p_row,
           entry ? S_t : nullptr, &steps.total, 0, Span::kFull});
}

// y = 0 for the padding of a row, in the columns of `heads` heads from h on.
void clear_padding(const SsdArgs& a, int64_t b, int64_t h, int64_t heads) {
  const int32_t* ids = (a.doc_ids + b * a.L).as<int32_t>();
  if (ids == nullptr) return;
  for (int64_t t = 0; t < a.L; ++t) {
    if (ids[t] >= 0) continue;
    fill_zero(a.y.as<float>() + (b * a.L + t) * a.y_stride + h * a.P, heads * a.P);
  }
}

// ST of a row without tokens is S0.
void pass_state(const SsdArgs& a, int64_t b, int64_t h) {
  const int64_t PN = a.P * a.N, at = b * a.s_stride + h * PN;
  float* ST = a.ST.as<float>() + at;
  if (!a.S0) {
    fill_zero(ST, PN);
  } else {
    memmove(ST, a.S0.as<float>() + at, sizeof(float) * PN);
  }
}

void forward_task(const SsdArgs& a, const Plan& plan, int64_t task, ForwardTiles w) {
  const int64_t part = task % plan.blocks, g = task / plan.blocks % a.G;
  const int64_t b = task / plan.blocks / a.G;
  const int64_t h0 = g * plan.group_heads + part * plan.block;
  const int64_t heads = min64(plan.block, plan.group_heads - part * plan.block);
  const int64_t PN = a.P * a.N;
  clear_padding(a, b, h0, heads);
  Cursor cursor = row_start((a.doc_ids + b * a.L).as<int32_t>(), a.L);
  bool entry = false;
  for (;;) {
    const Chunk chunk = take_chunk(&cursor, plan, w.tokens);
    if (chunk.count == 0) break;
    load_group(a, plan, b, g, chunk.count, w);
    const bool leave = chunk.continues || (chunk.last && a.ST);
    const CBuf start = chunk.first ? a.S0 + b * a.s_stride : a.S_reset;
    if (chunk.first || chunk.reset) entry = static_cast<bool>(start);
    for (int64_t i = 0; i < heads; ++i) {
      float* S_t = w.S_t + i * a.N * plan.p_row;
      if (entry && (chunk.first || chunk.reset)) {
        transpose((start + (h0 + i) * PN).as<float>(), a.N, a.P, a.N, S_t, plan.p_row,
                  round_up(a.P, kLanes));
      }
      forward_head(a, plan, b, h0 + i, chunk.count, entry, leave, &w, S_t,
                   look_ahead(h0, heads, h0 + i, chunk.count));
    }
    entry = true;
  }
  if (!a.ST) return;
  for (int64_t i = 0; i < heads; ++i) {
    if (!cursor.started) {
      pass_state(a, b, h0 + i);
    } else {
      transpose(w.S_t + i * a.N * plan.p_row, plan.p_row, a.N, a.P,
                a.ST.as<float>() + b * a.s_stride + (h0 + i) * PN, a.N, a.N);
    }
  }
}

// The last lane of a vector of equal lanes.
MAMBA_INLINE float lane(F32 v) {
  float first;
  v.store_n(&first, 1);
  return first;
}

// One head of one sequence: S = a S + d x (outer) B and y = S C + D x in one pass over S. Its rows
// one after another, as memory has them: four at a time, which loads B and C less often, took 2.3
// times as long for states that come from memory.
template <class State>
void step_head(const SsdStepArgs& a, int64_t b, int64_t h) {
  const int64_t g = h / (a.H / a.G), N = a.N;
  const float* x = a.x.as<float>() + b * a.x_stride + h * a.P;
  const float* B = a.Bm.as<float>() + b * a.B_stride + g * N;
  const float* C = a.Cm.as<float>() + b * a.C_stride + g * N;
  const float* D = a.D.as<float>();
  State* S = a.S.as<State>() + b * a.s_stride + h * a.P * N;
  float* y = a.y.as<float>() + b * a.y_stride + h * a.P;
  const float raw = a.dt.as<float>()[b * a.dt_stride + h] + a.dt_bias.as<float>()[h];
  const F32 d = step_size(a, F32::set(raw));
  const F32 decay = exp(d * F32::set(a.A.as<float>()[h]));
  const float d_one = lane(d);
  for (int64_t p = 0; p < a.P; ++p, S += N) {
    const F32 in = F32::set(d_one * x[p]);
    F32 sum = F32::zero();
    int64_t n = 0;
    for (; n + kLanes <= N; n += kLanes) {
      const F32 s = fma(decay, load_state(S + n), in * F32::load(B + n));
      store_state(s, S + n);
      sum = fma(s, F32::load(C + n), sum);
    }
    if (n < N) {
      const int64_t live = N - n;
      const F32 s = fma(decay, load_state(S + n, live), in * F32::load_n(B + n, live));
      store_state(s, S + n, live);
      sum = fma(s, F32::load_n(C + n, live), sum);
    }
    const float skip = D == nullptr ? 0.0f : D[a.D_has_hdim ? h * a.P + p : h];
    y[p] = reduce_add(sum) + skip * x[p];
  }
}

}  // namespace

void ssd_forward(Stream& stream, const SsdArgs& a) noexcept {
  if (a.B == 0 || a.H == 0) return;
  // No result depends on which heads go together here, so few sequences are cut finer.
  const int64_t block = heads_together(a.H / a.G);
  const Plan plan = make_plan(a, a.B * a.H < 64 ? min64(block, 4) : block);
  Carver measure = {nullptr, 0};
  carve_forward(&measure, plan, a);
  const int64_t each = measure.used;
  char* scratch = stream.scratch<char>(each * stream.threads);
  if (scratch == nullptr) return;
  const bool parallel = plan.tasks > 1 && a.B * max64(a.L, 1) * a.H * a.P * a.N > kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(dynamic, 1) if (parallel)
  for (int64_t task = 0; task < plan.tasks; ++task) {
    Carver carver = {scratch + each * omp_get_thread_num(), 0};
    forward_task(a, plan, task, carve_forward(&carver, plan, a));
  }
}

void ssd_step(Stream& stream, const SsdStepArgs& a) noexcept {
  const bool parallel = a.B * a.H * a.P * a.N > kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t i = 0; i < a.B * a.H; ++i) {
    if (a.S.dtype == DType::kBF16) {
      step_head<bf16>(a, i / a.H, i % a.H);
    } else {
      step_head<float>(a, i / a.H, i % a.H);
    }
  }
}

}  // namespace mamba::MAMBA_ISA

#include "kernels/ssd_cpu_backward.inc"
