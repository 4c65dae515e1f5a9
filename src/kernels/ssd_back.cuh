// SPDX-License-Identifier: Apache-2.0
// The blocks of ssd's CUDA backward pass: a chunk and the heads of a group one after the other, so
// that dB and dC are summed over heads in registers. With M = decays * C B^T and dM = dY X^T of a
// head, S the state before the chunk and G the gradient of the one after it:
//   dX = d (M^T dY + exp(l_Q - l) B G^T) + D dY
//   dC = sum over heads of (decays * d * dM) B + exp(l) dY S,  dB likewise
//   the gradient of l_t is sum_s K_ts - sum_s K_st + ... with K = d * M * dM (Dao & Gu 2024).
#pragma once

#include "kernels/ssd_cuda.cuh"

namespace mamba::cuda::ssd {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;

template <class T>
struct Backward {
  Plan plan;
  StepInput step;
  Source<T> x, B, C, dy;
  const float* D;
  bool D_has_hdim, has_first, has_last;
  const T *states, *restart, *gradients;
  T *dx, *ddt;
  int64_t dx_stride, ddt_stride;
  bool dx_pairs;  // whether two elements can be stored at a time
  T *dB, *dC;
  int64_t dB_stride, dC_stride;
  float* partial;  // (splits, B L, G, 2, N) where a group has several blocks, or null
  // Sums by sequence and block of chunks: (B, blocks, H) each, of D (B, blocks, H P) where it has
  // P.
  float *partial_A, *partial_bias, *partial_D;
  int32_t per_block, splits;  // parts of heads of a block, blocks of a group
};

template <class T, int NP>
struct alignas(16) BackMemory {
  static constexpr bool kStaged = sizeof(T) == 2;  // whether states are copied to shared memory
  static constexpr int kStages = kStaged && NP <= 128 ? 2 : 1;
  static constexpr int kLdN = NP + kPad<T>, kLdP = kPart + kPad<T>;
  struct alignas(16) Stage {
    T x[kChunk * kLdP], dy[kChunk * kLdP];
    T S[kStaged ? kPart * kLdN : 8], G[kStaged ? kPart * kLdN : 8];
    Steps steps;
  };
  T C[kChunk * kLdN], B[kChunk * kLdN];
  T product[kChunk * kLdP];  // M, at the end the sum of the heads' decays * d * dM
  Stage stages[kStages];
  // Sums of columns of warps: over s of K, C dC between chunks, over p of x dX between chunks; over
  // t of K / d; over t of dy x. K without its diagonal, which has no part in the decays.
  float row[4][kChunk], inter[4][kChunk], state[4][kChunk], column[4][kChunk], skip[4][kPart];
  float diagonal[kChunk];
  float carried[kWarps];
};

// Sums over the 4 lanes of a row, or over the 8 rows of a column.
__device__ __forceinline__ float row_sum(float v) {
  v += __shfl_xor_sync(kAllLanes, v, 1);
  return v + __shfl_xor_sync(kAllLanes, v, 2);
}
__device__ __forceinline__ float column_sum(float v) {
  v += __shfl_xor_sync(kAllLanes, v, 4);
  v += __shfl_xor_sync(kAllLanes, v, 8);
  return v + __shfl_xor_sync(kAllLanes, v, 16);
}

template <class T, int NP>
struct BackBlock {
  using Memory = BackMemory<T, NP>;
  using Stage = typename Memory::Stage;
  static constexpr int kLdN = Memory::kLdN, kLdP = Memory::kLdP;
  static constexpr int kWide = NP / 4, kTiles = kWide / 8;  // columns of dB and dC of a warp
  static constexpr int kLdState = Memory::kStaged ? kLdN : NP;

  const Backward<T>& a;
  Memory& m;
  int64_t b;
  int32_t g, first, end;
  int warp, lane, wm, wn;  // a warp has rows 16 wm ... and a quarter wn of the columns

  struct Head {
    int32_t head, part;
    const T *S, *G;  // null where zero
  };
  __device__ Head locate(int32_t i, const Chunk& chunk, int64_t after) const {
    const Plan& p = a.plan;
    Head v{g * p.of_group + i / p.parts, i % p.parts, nullptr, nullptr};
    const int64_t at = static_cast<int64_t>(v.head) * p.parts + v.part, all = p.H * p.parts;
    if (chunk.slot == kNoSlot) {
      v.S = a.restart == nullptr ? nullptr : a.restart + at * kPart * NP;
    } else if (chunk.slot != 0 || a.has_first) {
      v.S = a.states + ((b * p.slots + chunk.slot) * all + at) * kPart * NP;
    }
    if (after >= 0) v.G = a.gradients + ((b * p.slots + after) * all + at) * kPart * NP;
    return v;
  }
  __device__ void fetch(const Head& v, const Chunk& chunk, Stage& s) const {
    const Plan& p = a.plan;
    const int64_t column = static_cast<int64_t>(v.head) * p.P + v.part * kPart;
    const int64_t left = p.P - v.part * kPart;
    const int width = static_cast<int>(left < kPart ? left : kPart);
    load_tokens<kPart, kThreads>(s.x, p, b, chunk, a.x, column, width);
    load_tokens<kPart, kThreads>(s.dy, p, b, chunk, a.dy, column, width);
    if constexpr (Memory::kStaged) {
      if (v.S != nullptr) load_dense<NP, kThreads>(s.S, v.S);
      if (v.G != nullptr) load_dense<NP, kThreads>(s.G, v.G);
    }
    load_steps<kExactDecay<T>, kThreads>(s.steps, p, b, v.head, chunk);
  }

  // c[tile] += A B for 16 rows and 16 columns.
  template <bool a_transposed, bool b_transposed, int steps>
  __device__ __forceinline__ void multiply(float (&c)[2][4], const T* from_a, int ld_a, int m0,
                                           const T* from_b, int ld_b, int n0, int begin = 0,
                                           int stop = steps) const {
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      if (k < begin || k >= stop) continue;
      FragmentA<T> x;
      FragmentB<T> y[2];
      load_a<a_transposed>(x, from_a, ld_a, m0, 16 * k);
      load_b<b_transposed>(y, from_b, ld_b, n0, 16 * k);
      mma<T>(c[0], x, y[0]);
      mma<T>(c[1], x, y[1]);
    }
  }
  // The same for the warp's columns of dB or dC; B(k, n) = from_b[k * ld + n].
  template <bool a_transposed>
  __device__ __forceinline__ void multiply_wide(float (&c)[kTiles][4], const T* from_a,
                                                const T* from_b, int ld_b, int begin = 0,
                                                int stop = 4) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < begin || k >= stop) continue;
      FragmentA<T> x;
      load_a<a_transposed>(x, from_a, kLdP, 16 * wm, 16 * k);
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        FragmentB<T> y[2];
        load_b<true>(y, from_b, ld_b, wn * kWide + 8 * j, 16 * k);
        mma<T>(c[j], x, y[0]);
        mma<T>(c[j + 1], x, y[1]);
      }
    }
  }

  __device__ void run(const Chunk& chunk, int64_t after) const {
    const Plan& p = a.plan;
    load_tokens<NP, kThreads>(m.C, p, b, chunk, a.C, g * p.N, static_cast<int>(p.N));
    load_tokens<NP, kThreads>(m.B, p, b, chunk, a.B, g * p.N, static_cast<int>(p.N));
    Head v = locate(first, chunk, after);
    if (Memory::kStages > 1) fetch(v, chunk, m.stages[0]);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    float products[2][4] = {}, weights[2][4] = {};  // C B^T; sum over heads of decays * d * dM
    if (wn <= wm) multiply<false, false, NP / 16>(products, m.C, kLdN, 16 * wm, m.B, kLdN, 16 * wn);
    float dC[kTiles][4] = {}, dB[kTiles][4] = {};
    Sums sums{};
    for (int32_t i = first; i < end; ++i) {
      Stage& s = m.stages[Memory::kStages > 1 ? (i - first) % 2 : 0];
      const Head ahead = locate(i + 1 < end ? i + 1 : i, chunk, after);
      if constexpr (Memory::kStages == 1) {
        __syncthreads();  // the head before has been read
        fetch(v, chunk, s);
        commit_copies();
      }
      wait_copies<0>();
      __syncthreads();
      if (Memory::kStages > 1 && i + 1 < end) {
        fetch(ahead, chunk, m.stages[1 - (i - first) % 2]);
        commit_copies();
      }
      inside(s, products, weights);
      __syncthreads();
      inputs(s, v, chunk);
      states(s, v, dC, dB);
      __syncthreads();
      finish(s, v, chunk, sums);
      v = ahead;
    }
    // dC += W B, dB += W^T C.
    if (wn <= wm) store_product(weights);
    __syncthreads();
    multiply_wide<false>(dC, m.product, m.B, kLdN, 0, wm + 1);
    multiply_wide<true>(dB, m.product, m.C, kLdN, wm, 4);
    store_states(chunk, dC, 1);
    store_states(chunk, dB, 0);
    __syncthreads();
  }

  __device__ __forceinline__ void store_product(const float (&c)[2][4]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float two[2] = {c[j][2 * half], c[j][2 * half + 1]};
        store_pair(
            m.product + (16 * wm + lane / 4 + 8 * half) * kLdP + 16 * wn + 8 * j + lane % 4 * 2,
            two);
      }
    }
  }

  // What a chunk's tokens do to each other: M, the sums of K, and the weights of dB and dC.
  __device__ __forceinline__ void inside(const Stage& s, const float (&products)[2][4],
                                         float (&weights)[2][4]) const {
    const int row = 16 * wm + lane / 4, q = lane % 4;
    if (wn > wm) {
      if (q == 0) m.row[wn][row] = m.row[wn][row + 8] = 0;
      if (lane < 16) m.column[wm][16 * wn + lane] = 0;
      return;
    }
    float dm[2][4] = {}, M[2][4], rows[2] = {}, columns[4] = {};
    multiply<false, false, kPart / 16>(dm, s.dy, kLdP, 16 * wm, s.x, kLdP, 16 * wn);
    const float high[2] = {s.steps.high[row], s.steps.high[row + 8]};
    const float low[2] = {kExactDecay<T> ? s.steps.low[row] : 0.0f,
                          kExactDecay<T> ? s.steps.low[row + 8] : 0.0f};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = 16 * wn + 8 * j + 2 * q + e % 2;
        const bool valid = wn < wm || at <= row + e / 2 * 8;
        const float w = valid ? decay_between<T>(s.steps, high[e / 2], low[e / 2], at) : 0.0f;
        const float d = s.steps.d[at], K = products[j][e] * w * dm[j][e];
        M[j][e] = products[j][e] * w;
        weights[j][e] = fmaf(w * d, dm[j][e], weights[j][e]);
        if (wn == wm && at == row + e / 2 * 8) {
          m.diagonal[at] = K;
        } else {
          rows[e / 2] = fmaf(d, K, rows[e / 2]);
          columns[2 * j + e % 2] += K;
        }
      }
    }
    store_product(M);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = row_sum(rows[i]);
      if (q == 0) m.row[wn][row + 8 * i] = sum;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = column_sum(columns[i]);
      if (lane < 4) m.column[wm][16 * wn + i / 2 * 8 + 2 * q + i % 2] = sum;
    }
  }

  // dx of rows 16 wm ... and channels 16 wn ...
  __device__ __forceinline__ void inputs(const Stage& s, const Head& v, const Chunk& chunk) const {
    const Plan& p = a.plan;
    const int row = 16 * wm + lane / 4, q = lane % 4;
    float dx[2][4] = {}, state[2][4] = {};
    multiply<true, true, kChunk / 16>(dx, m.product, kLdP, 16 * wm, s.dy, kLdP, 16 * wn, wm);
    if (v.G != nullptr) {
      multiply<false, false, NP / 16>(state, m.B, kLdN, 16 * wm, Memory::kStaged ? s.G : v.G,
                                      kLdState, 16 * wn);
    }
    const int64_t column = v.part * kPart + 16 * wn, h = v.head;
    const float per_head = a.D != nullptr && !a.D_has_hdim ? a.D[h] : 0.0f;
    float rows[2] = {}, skip[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 8 * half;
      const float d = s.steps.d[r], decay = exp2_approx(s.steps.high[kChunk - 1] - s.steps.high[r]);
      const bool valid = r < chunk.length;
      T* to = a.dx + (valid ? p.row(b, chunk.first + r) : 0) * a.dx_stride + h * p.P + column;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float x[2], dy[2], out[2];
        const int at = 8 * j + 2 * q;
        load_n<2>(s.x + r * kLdP + 16 * wn + at, x);
        load_n<2>(s.dy + r * kLdP + 16 * wn + at, dy);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float between = decay * state[j][2 * half + i];
          const bool there = column + at + i < p.P;
          const float D =
              a.D_has_hdim && a.D != nullptr && there ? a.D[h * p.P + column + at + i] : per_head;
          rows[half] = fmaf(x[i], between, rows[half]);
          skip[2 * j + i] = fmaf(dy[i], x[i], skip[2 * j + i]);
          out[i] = fmaf(d, dx[j][2 * half + i] + between, D * dy[i]);
        }
        if (valid && a.dx_pairs && column + at + 1 < p.P) {
          store_pair(to + at, out);
        } else if (valid) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (column + at + i < p.P) store(to + at + i, out[i]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = row_sum(rows[i]);
      if (q == 0) m.state[wn][row + 8 * i] = sum;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = column_sum(skip[i]);
      if (lane < 4) m.skip[wm][16 * wn + i / 2 * 8 + 2 * q + i % 2] = sum;
    }
  }

  // What passes between chunks: exp(l) dY S of dC, d exp(l_Q - l) X G of dB, and <G, S>.
  __device__ __forceinline__ void states(const Stage& s, const Head& v, float (&dC)[kTiles][4],
                                         float (&dB)[kTiles][4]) const {
    const int row = 16 * wm + lane / 4, q = lane % 4;
    const T *S = Memory::kStaged ? s.S : v.S, *G = Memory::kStaged ? s.G : v.G;
    const float high[2] = {s.steps.high[row], s.steps.high[row + 8]};
    float rows[2] = {};
    if (v.S != nullptr) {
      float c[kTiles][4] = {};
      multiply_wide<false>(c, s.dy, S, kLdState);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float decay = exp2_approx(high[half]);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          float C[2];
          load_n<2>(m.C + (row + 8 * half) * kLdN + wn * kWide + 8 * j + 2 * q, C);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float of_state = decay * c[j][2 * half + i];
            rows[half] = fmaf(C[i], of_state, rows[half]);
            dC[j][2 * half + i] += of_state;
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = row_sum(rows[i]);
      if (q == 0) m.inter[wn][row + 8 * i] = sum;
    }
    float carried = 0;
    if (v.G != nullptr) {
      float c[kTiles][4] = {};
      multiply_wide<false>(c, s.x, G, kLdState);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale =
            s.steps.d[row + 8 * half] * exp2_approx(s.steps.high[kChunk - 1] - high[half]);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            dB[j][2 * half + i] = fmaf(scale, c[j][2 * half + i], dB[j][2 * half + i]);
          }
        }
      }
      if (v.S != nullptr) {
        constexpr int kPer16 = 16 / sizeof(T), kPieces = NP / kPer16;
#pragma unroll 2
        for (int i = threadIdx.x; i < kPart * kPieces; i += kThreads) {
          float x[kPer16], y[kPer16];
          const int at = i / kPieces * kLdState + i % kPieces * kPer16;
          load_n<kPer16>(S + at, x);
          load_n<kPer16>(G + at, y);
#pragma unroll
          for (int k = 0; k < kPer16; ++k) carried = fmaf(x[k], y[k], carried);
        }
      }
    }
    carried = warp_sum(carried);
    if (lane == 0) m.carried[warp] = carried;
  }

  // Of tokens 2 lane and 2 lane + 1 over the parts of a head, in warp 0.
  struct Sums {
    float row[2], column[2], diagonal[2], state[2], carried;
  };

  // The gradients of dt and of what a head alone has.
  __device__ __forceinline__ void finish(const Stage& s, const Head& v, const Chunk& chunk,
                                         Sums& sums) const {
    const Plan& p = a.plan;
    if (warp == 1 && a.partial_D != nullptr) {
      float sum = 0;
      for (int c = lane; c < kPart; c += kWarp) {
        const int64_t channel = v.part * kPart + c;
        const float skip = (m.skip[0][c] + m.skip[1][c]) + (m.skip[2][c] + m.skip[3][c]);
        sum += skip;
        if (a.D_has_hdim && channel < p.P) {
          a.partial_D[((b * gridDim.x + blockIdx.x) * p.H + v.head) * p.P + channel] += skip;
        }
      }
      sum = warp_sum(sum);
      if (!a.D_has_hdim && lane == 0) {
        a.partial_D[(b * gridDim.x + blockIdx.x) * p.H + v.head] += sum;
      }
    }
    if (warp != 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = 2 * lane + i;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums.row[i] += m.row[k][t] + m.inter[k][t];
        sums.column[i] += m.column[k][t];
        sums.state[i] += m.state[k][t];
      }
      sums.diagonal[i] += m.diagonal[t];
    }
#pragma unroll
    for (int k = 0; k < kWarps; ++k) sums.carried += m.carried[k];
    if (v.part + 1 < p.parts) return;
    const float A = a.step.A[v.head], total = exp2_approx(s.steps.high[kChunk - 1]);
    // <G, S> after the chunk, then back through its tokens.
    double of_tokens[2], all = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float d = s.steps.d[2 * lane + i];
      of_tokens[i] = static_cast<double>(sums.row[i]) - static_cast<double>(d * sums.column[i]) -
                     static_cast<double>(d * sums.state[i]);
      all += static_cast<double>(d * sums.state[i]);
    }
    all = warp_sum(all) + static_cast<double>(total * sums.carried);
    double after = of_tokens[0] + of_tokens[1];
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const double from = __shfl_down_sync(kAllLanes, after, offset);
      if (lane + offset < kWarp) after += from;
    }
    const double through[2] = {all + after, all + after - of_tokens[0]};
    float dA = 0, dbias = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = 2 * lane + i;
      if (t >= chunk.length) continue;
      const int64_t token = p.row(b, chunk.first + t);
      const float raw = load(static_cast<const T*>(a.step.dt) + token * a.step.stride + v.head) +
                        a.step.bias[v.head];
      const float size = soft(raw), slope = raw > 20.0f ? 1.0f : 1.0f / (1.0f + expf(-raw));
      const bool limited = size < a.step.dt_min || size > a.step.dt_max;
      const float carried = static_cast<float>(through[i]);
      const float dd = fmaf(A, carried, sums.column[i] + sums.diagonal[i] + sums.state[i]);
      const float ddt = limited ? 0.0f : dd * slope;
      store(a.ddt + token * a.ddt_stride + v.head, ddt);
      dA = fmaf(s.steps.d[t], carried, dA);
      dbias += ddt;
    }
    dA = warp_sum(dA), dbias = warp_sum(dbias);
    if (lane == 0) {
      const int64_t to = (b * gridDim.x + blockIdx.x) * p.H + v.head;
      a.partial_A[to] += dA;
      a.partial_bias[to] += dbias;
    }
    sums = {};
  }

  // which: 0 for dB, 1 for dC.
  __device__ __forceinline__ void store_states(const Chunk& chunk, const float (&c)[kTiles][4],
                                               int which) const {
    const Plan& p = a.plan;
    const int64_t stride = which == 0 ? a.dB_stride : a.dC_stride;
    T* out = which == 0 ? a.dB : a.dC;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = 16 * wm + lane / 4 + 8 * half;
      if (r >= chunk.length) continue;
      const int64_t token = p.row(b, chunk.first + r);
      const int64_t split = blockIdx.y % a.splits;
      float* part = a.partial == nullptr
                        ? nullptr
                        : a.partial + (((split * p.B * p.L + token) * p.G + g) * 2 + which) * p.N;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int n = wn * kWide + 8 * j + lane % 4 * 2 + i;
          if (n >= p.N) continue;
          if (part != nullptr) {
            part[n] = c[j][2 * half + i];
          } else {
            store(out + token * stride + g * p.N + n, c[j][2 * half + i]);
          }
        }
      }
    }
  }
};

}  // namespace mamba::cuda::ssd
