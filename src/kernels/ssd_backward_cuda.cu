// SPDX-License-Identifier: Apache-2.0
// The backward pass of ssd for CUDA. One pass through time finds the state S before every chunk, one
// from the end the gradient G of the state after it; then all chunks are computed at once, a block a
// chunk and the heads of a group one after the other, so that dB and dC are summed over heads in
// registers. With M = decays * C B^T and dM = dY X^T of a head:
//   dX = d (M^T dY + exp(l_Q - l) B G^T) + D dY
//   dC = sum over heads of (decays * d * dM) B + exp(l) dY S,  dB likewise
//   the gradient of l_t is sum_s K_ts - sum_s K_st + ... with K = d * M * dM (Dao & Gu 2024).
#include "kernels/ssd_cuda.cuh"

namespace mamba::cuda {
namespace {

using namespace ssd;

constexpr const char* kName = "ssd_backward";
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
  // Sums by sequence and block of chunks: (B, blocks, H) each, of D (B, blocks, H P) where it has P.
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
            m.product + (16 * wm + lane / 4 + 8 * half) * kLdP + 16 * wn + 8 * j + lane % 4 * 2, two);
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
      multiply<false, false, NP / 16>(state, m.B, kLdN, 16 * wm, Memory::kStaged ? s.G : v.G, kLdState,
                                      16 * wn);
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
          const float D = a.D_has_hdim && a.D != nullptr && there
                              ? a.D[h * p.P + column + at + i]
                              : per_head;
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
      const float raw =
          load(static_cast<const T*>(a.step.dt) + token * a.step.stride + v.head) + a.step.bias[v.head];
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

template <class T, int NP>
__global__ void __launch_bounds__(kThreads, 1) back_kernel(const __grid_constant__ Backward<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<BackMemory<T, NP>*>(shared);
  const Plan& p = a.plan;
  const int32_t of_group = p.of_group * p.parts, split = static_cast<int32_t>(blockIdx.y);
  const int32_t first = split % a.splits * a.per_block;
  const int32_t end = first + a.per_block < of_group ? first + a.per_block : of_group;
  const int warp = threadIdx.x / kWarp;
  const int64_t b = blockIdx.z;
  const BackBlock<T, NP> block{a,   memory, b,    split / a.splits, first, end, warp,
                               static_cast<int>(threadIdx.x % kWarp), warp % 4, warp / 4};
  const int64_t count = p.chunk_count(b);
  for (int64_t c = blockIdx.x; c < count; c += gridDim.x) {
    const Chunk chunk = p.chunk(b, c);
    // Where the gradient of the state after the chunk is.
    const int64_t after = c + 1 == count ? a.has_last ? p.slots - 1 : -1
                          : chunk.last   ? -1
                                         : p.chunk(b, c + 1).slot;
    block.run(chunk, after);
  }
}

template <class T>
__global__ void __launch_bounds__(256)
    restart_kernel(const float* __restrict__ from, int64_t P, int64_t N, int64_t NP, int64_t parts,
                   int64_t count, T* __restrict__ to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  const int64_t n = i % NP, h = i / NP / kPart / parts;
  const int64_t p = i / NP % kPart + i / NP / kPart % parts * kPart;
  store(to + i, n < N && p < P ? from[(h * P + p) * N + n] : 0.0f);
}

// dB and dC of tokens that are no padding: sums over the blocks of a group.
template <class T>
__global__ void __launch_bounds__(256)
    add_splits_kernel(const float* __restrict__ partial, const int32_t* __restrict__ ids,
                      int64_t splits, int64_t rows, int64_t G, int64_t N, T* dB, int64_t dB_stride,
                      T* dC, int64_t dC_stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, width = G * 2 * N;
  if (i >= rows * width) return;
  const int64_t row = i / width, group = i % width / (2 * N), n = i % N;
  if (ids != nullptr && ids[row] < 0) return;
  float sum = 0;
  for (int64_t k = 0; k < splits; ++k) sum += partial[k * rows * width + i];
  if (i % (2 * N) < N) {
    store(dB + row * dB_stride + group * N + n, sum);
  } else {
    store(dC + row * dC_stride + group * N + n, sum);
  }
}
// out[i] += sums over `count` parts. A warp an element.
__global__ void __launch_bounds__(256)
    add_parts_kernel(const float* __restrict__ parts, int64_t count, int64_t n, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / kWarp;
  if (i >= n) return;
  const int lane = threadIdx.x % kWarp;
  float sum = 0;
  for (int64_t k = lane; k < count; k += kWarp) sum += parts[k * n + i];
  sum = warp_sum(sum);
  if (lane == 0) out[i] += sum;
}
void add_parts(Stream& stream, const float* parts, int64_t count, int64_t n, Buf out) {
  if (!out) return;
  launch(stream, kName, add_parts_kernel, dim3(static_cast<unsigned>(ceil_div(n, 8))), dim3(256), 0,
         parts, count, n, out.as<float>());
}

template <class T>
Source<T> source(CBuf from, int64_t stride, int64_t width) {
  return {from.as<T>(), stride,
          rows_aligned(from, stride, 16) && width * dtype_size(from.dtype) % 16 == 0};
}

template <class T>
void backward(Stream& stream, const SsdBackwardArgs& a) {
  const int64_t NP = padded_states(a.N), of_group = a.H / a.G * ceil_div(a.P, kPart);
  const int64_t likely = 2 * ceil_div(a.L, kChunk), PN = a.P * a.N;
  Backward<T> k{};
  T *states, *gradients, *restart;
  float* reset = nullptr;
  int64_t zeros = 0, from_zeros = 0;
  dim3 grid;
  for (Pieces pieces;;) {
    k.plan = make_plan(a, pieces);
    const int64_t chunks = k.plan.max_chunks < likely ? k.plan.max_chunks : likely;
    const int64_t of_row = a.H * k.plan.parts * kPart * NP;
    constexpr int64_t kBlocks = 132;
    const int64_t wanted = chunks * a.B * a.G * of_group / kBlocks;
    const int64_t parts = k.plan.parts;
    // With documents a row's sums over heads must not depend on how long or how many the rows are.
    constexpr int64_t kFixedHeads = 4;
    k.per_block = static_cast<int32_t>(a.doc_ids           ? kFixedHeads * parts
                                       : wanted < parts    ? parts
                                       : wanted < of_group ? wanted / parts * parts
                                                           : of_group);
    k.splits = static_cast<int32_t>(ceil_div(of_group, k.per_block));
    grid = dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(a.G * k.splits),
                static_cast<unsigned>(a.B));
    states = pieces.take<T>(a.B * k.plan.slots * of_row);
    gradients = pieces.take<T>(a.B * k.plan.slots * of_row);
    restart = a.doc_ids && a.S_reset ? pieces.take<T>(of_row) : nullptr;
    k.partial = k.splits > 1 ? pieces.take<float>(k.splits * a.B * a.L * a.G * 2 * a.N) : nullptr;
    from_zeros = pieces.used;
    k.partial_A = pieces.take<float>(a.B * chunks * a.H);
    k.partial_bias = pieces.take<float>(a.B * chunks * a.H);
    k.partial_D = a.dD ? pieces.take<float>(a.B * chunks * a.H * (a.D_has_hdim ? a.P : 1))
                         : nullptr;
    reset = a.doc_ids && a.dS_reset ? pieces.take<float>(a.B * a.H * PN) : nullptr;
    zeros = pieces.used - from_zeros;
    if (pieces.data != nullptr) {
      if (stream.failed != nullptr ||
          !expect_success(stream, kName,
                          cudaMemsetAsync(pieces.data + from_zeros, 0, static_cast<size_t>(zeros),
                                          cuda_stream(stream)))) {
        return;
      }
      break;
    }
    char* memory = stream.scratch<char>(pieces.used);
    if (memory == nullptr) return;
    pieces = {memory, 0};
  }
  prepare(stream, kName, k.plan, step_input(a), a.dt.dtype);
  k.step = step_input(a);
  k.x = source<T>(a.x, a.x_stride, a.P), k.dy = source<T>(a.dy, a.dy_stride, a.P);
  k.B = source<T>(a.Bm, a.B_stride, a.N), k.C = source<T>(a.Cm, a.C_stride, a.N);
  StatesArgs<T> s{};
  s.plan = k.plan, s.x = k.x, s.bc = k.B, s.states = states;
  s.first = a.S0.as<float>(), s.first_stride = a.s_stride, s.restart = a.S_reset.as<float>();
  if (a.L > 0) find_states<T, false>(stream, kName, s);
  StatesArgs<T> r{};
  r.plan = k.plan, r.x = k.dy, r.bc = k.C, r.states = gradients;
  r.first = a.dST.as<float>(), r.first_stride = a.H * PN;
  r.last = a.dS0.as<float>(), r.last_stride = a.H * PN, r.restart_gradient = reset;
  find_states<T, true>(stream, kName, r);
  if (a.L == 0) return;
  clear_padding(stream, kName, k.plan, a.dx, a.dx_stride, a.H * a.P);
  clear_padding(stream, kName, k.plan, a.ddt, a.ddt_stride, a.H);
  clear_padding(stream, kName, k.plan, a.dBm, a.dB_stride, a.G * a.N);
  clear_padding(stream, kName, k.plan, a.dCm, a.dC_stride, a.G * a.N);
  if (restart != nullptr) {
    const int64_t count = a.H * k.plan.parts * kPart * NP;
    launch(stream, kName, restart_kernel<T>, dim3(static_cast<unsigned>(ceil_div(count, 256))),
           dim3(256), 0, a.S_reset.as<float>(), a.P, a.N, NP, int64_t{k.plan.parts}, count, restart);
  }
  k.D = a.D.as<float>(), k.D_has_hdim = a.D_has_hdim;
  k.has_first = static_cast<bool>(a.S0), k.has_last = static_cast<bool>(a.dST);
  k.states = states, k.restart = restart, k.gradients = gradients;
  k.dx = a.dx.as<T>(), k.dx_stride = a.dx_stride, k.ddt = a.ddt.as<T>(), k.ddt_stride = a.ddt_stride;
  k.dx_pairs = rows_aligned(a.dx, a.dx_stride, 2 * dtype_size(a.dx.dtype)) && a.P % 2 == 0;
  k.dB = a.dBm.as<T>(), k.dB_stride = a.dB_stride, k.dC = a.dCm.as<T>(), k.dC_stride = a.dC_stride;
  const auto run = [&]<int kNP>() {
    launch(stream, kName, back_kernel<T, kNP>, grid, dim3(kThreads), sizeof(BackMemory<T, kNP>), k);
  };
  if (NP == 64) {
    run.template operator()<64>();
  } else if (NP == 128) {
    run.template operator()<128>();
  } else {
    run.template operator()<256>();
  }
  if (k.partial != nullptr) {
    const int64_t count = a.B * a.L * a.G * 2 * a.N;
    launch(stream, kName, add_splits_kernel<T>, dim3(static_cast<unsigned>(ceil_div(count, 256))),
           dim3(256), 0, k.partial, k.plan.ids, int64_t{k.splits}, a.B * a.L, a.G, a.N, k.dB,
           a.dB_stride, k.dC, a.dC_stride);
  }
  const int64_t blocks = a.B * grid.x;
  add_parts(stream, k.partial_A, blocks, a.H, a.dA);
  add_parts(stream, k.partial_bias, blocks, a.H, a.ddt_bias);
  add_parts(stream, k.partial_D, blocks, a.D_has_hdim ? a.H * a.P : a.H, a.dD);
  if (reset != nullptr) add_parts(stream, reset, a.B, a.H * PN, a.dS_reset);
}

}  // namespace

void ssd_backward(Stream& stream, const SsdBackwardArgs& a) noexcept {
  if (a.B == 0 || a.H == 0 || a.P == 0) return;
  if (padded_states(a.N) == 0) {
    expect_success(stream, kName, cudaErrorNotSupported);
    return;
  }
  with_training_type(a.x.dtype, [&]<class T>() { backward<T>(stream, a); });
}

}  // namespace mamba::cuda
