// SPDX-License-Identifier: Apache-2.0
// ssd of few heads in one kernel: a cluster of 8 blocks takes a head (or 64 channels of it), 16
// chunks at once, two to a block. What the blocks add to the state they send to each other: every
// block chains an eighth of the state through all of them, and sends back what each starts from.
// Without documents; 16-bit activations, rows aligned, 65 to 128 states.
#pragma once

#include "kernels/cluster.cuh"
#include "kernels/ssd_cuda.cuh"

namespace mamba::cuda::ssd {

template <class T>
struct ClusterArgs {
  Plan plan;  // without memory
  Source<T> x, B, C;
  StepInput in;
  DType in_type;
  const float* D;
  bool D_has_hdim;
  const float* first;  // S0 or null
  float* last;         // ST or null
  int64_t state_stride;
  T* y;
  int64_t y_stride;
  bool y_aligned;
};

constexpr int kClusterThreads = 256, kClusterStates = 128, kChunksOfBlock = 2;

template <class T>
struct alignas(16) ClusterMemory {
  T x[kChunksOfBlock][kChunk * (kPart + kPad<T>)];
  // B; then in f32 what the block adds, and its first state; then the states before its chunks.
  T B[kChunksOfBlock][kChunk * (kClusterStates + kPad<T>)];
  T C[kChunksOfBlock][kChunk * (kClusterStates + kPad<T>)];  // then y
  Steps steps[kChunksOfBlock];
  float weights[kChunksOfBlock][kChunk];
  float2 totals[kMostCluster];  // decays of the blocks
  Barrier added, before;        // what has arrived
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

template <class T>
struct ClusterBlock {
  static constexpr int kLdN = kClusterStates + kPad<T>, kLdP = kPart + kPad<T>;
  static constexpr int kTiles = 8;  // of 8 states that a warp has for 16 channels

  const ClusterArgs<T>& a;
  ClusterMemory<T>& m;
  int64_t b;
  int32_t h, part, rank;
  int warp, lane;

  __device__ Chunk chunk(int64_t i) const {
    const int64_t left = a.plan.L - i * kChunk;
    return {static_cast<int32_t>(i * kChunk),
            static_cast<int32_t>(left <= 0       ? 0
                                 : left < kChunk ? left
                                                 : kChunk),
            0, 0};
  }
  __device__ int width() const {
    const int64_t left = a.plan.P - part * kPart;
    return static_cast<int>(left < kPart ? left : kPart);
  }
  // Of the eighth of the state that this block chains: its element e of this thread in (H, P, N),
  // or -1.
  __device__ int64_t own(int e) const {
    const Plan& p = a.plan;
    const int64_t channel = part * kPart + rank % 4 * 16 + lane / 4 + e / 2 * 8;
    const int64_t state = rank / 4 * 64 + 8 * warp + lane % 4 * 2 + e % 2;
    return channel < p.P && state < p.N ? (h * p.P + channel) * p.N + state : -1;
  }
  __device__ float4* block_state() const { return reinterpret_cast<float4*>(m.B); }

  // A tile of a chunk; tokens from `left` on and columns from `columns` on are zero.
  template <int width>
  __device__ __forceinline__ void copy_tile(T* to, const Source<T>& from, int64_t row,
                                            int64_t column, int left, int columns) const {
    constexpr int kPer16 = 16 / sizeof(T), kPieces = width / kPer16;
    constexpr int kRows = kClusterThreads / kPieces;
    const int r = static_cast<int>(threadIdx.x) / kPieces;
    const int c = static_cast<int>(threadIdx.x) % kPieces * kPer16;
    const T* source = from.data + (row + r) * from.stride + column + c;
    to += r * (width + kPad<T>)+c;
#pragma unroll
    for (int i = 0; i < kChunk / kRows; ++i) {
      copy16_async(to + i * kRows * (width + kPad<T>), source + i * kRows * from.stride,
                   r + i * kRows < left && c < columns);
    }
  }
  __device__ __forceinline__ void fetch(int64_t first) const {
    const Plan& p = a.plan;
    const int64_t n0 = h / p.of_group * p.N, p0 = h * p.P + part * kPart;
#pragma unroll 1
    for (int k = 0; k < kChunksOfBlock; ++k) {
      const Chunk c = chunk(first + k);
      const int64_t row = b * p.L + c.first;
      copy_tile<kClusterStates>(m.B[k], a.B, row, n0, c.length, static_cast<int>(p.N));
      copy_tile<kClusterStates>(m.C[k], a.C, row, n0, c.length, static_cast<int>(p.N));
      copy_tile<kPart>(m.x[k], a.x, row, p0, c.length, width());
    }
    commit_copies();
  }
  // C B^T of the warp's 16 tokens.
  __device__ __forceinline__ void multiply(float (&products)[kChunk / 8][4]) const {
    const int row = warp % 4 * 16, k = warp / 4;
#pragma unroll
    for (int n = 0; n < kClusterStates / 16; ++n) {
      FragmentA<T> c;
      load_a<false>(c, m.C[k], kLdN, row, 16 * n);
#pragma unroll
      for (int j = 0; j < kChunk / 16; ++j) {
        if (16 * j > row) continue;  // later than all rows
        FragmentB<T> from[2];
        load_b<false>(from, m.B[k], kLdN, 16 * j, 16 * n);
        mma<T>(products[2 * j], c, from[0]);
        mma<T>(products[2 * j + 1], c, from[1]);
      }
    }
  }
  // What chunk k adds to the warp's 16 channels and 64 states.
  __device__ __forceinline__ void add_states(int k, float (&added)[kTiles][4]) const {
    const int q = lane % 4, row = warp % 4 * 16, column = warp / 4 * 64;
    FragmentA<T> x[kChunk / 16];
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      float v[8];
      load_a<true>(x[step], m.x[k], kLdP, row, 16 * step);
      a_values<T>(x[step], v);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] *= m.weights[k][16 * step + 2 * q + e % 2 + e / 4 * 8];
      set_a<T>(x[step], v);
    }
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        FragmentB<T> y[2];
        load_b<true>(y, m.B[k], kLdN, column + 8 * j, 16 * step);
        mma<T>(added[j], x[step], y[0]);
        mma<T>(added[j + 1], x[step], y[1]);
      }
    }
  }
  // Rounds a state, as the products take it.
  __device__ __forceinline__ void round(int k, const float (&s)[kTiles][4]) const {
    T* tile = m.B[k] + (warp % 4 * 16 + lane / 4) * kLdN + warp / 4 * 64 + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float two[2] = {s[j][2 * half], s[j][2 * half + 1]};
        store_pair(tile + 8 * half * kLdN + 8 * j, two);
      }
    }
  }
  // y of the warp's 16 tokens of its chunk.
  __device__ __forceinline__ void output(int64_t first,
                                         const float (&products)[kChunk / 8][4]) const {
    const int row = warp % 4 * 16, k = warp / 4, q = lane % 4;
    const Steps& steps = m.steps[k];
    const float high[2] = {steps.high[row + lane / 4], steps.high[row + lane / 4 + 8]};
    float y[kPart / 8][4] = {};
#pragma unroll
    for (int n = 0; n < kClusterStates / 16; ++n) {
      FragmentA<T> c;
      load_a<false>(c, m.C[k], kLdN, row, 16 * n);
#pragma unroll
      for (int j = 0; j < kPart / 16; ++j) {
        FragmentB<T> s[2];
        load_b<false>(s, m.B[k], kLdN, 16 * j, 16 * n);
        mma<T>(y[2 * j], c, s[0]);
        mma<T>(y[2 * j + 1], c, s[1]);
      }
    }
    const float decay[2] = {exp2_approx(high[0]), exp2_approx(high[1])};
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) y[j][e] *= decay[e / 2];
    }
#pragma unroll
    for (int s0 = 0; s0 < kChunk; s0 += 16) {
      if (s0 > row) continue;
      float weights[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int s = s0 + 8 * i + 2 * q + e % 2, t = row + lane / 4 + e / 2 * 8;
          const float w = decay_between<T>(steps, high[e / 2], 0.0f, s) * steps.d[s];
          weights[i][e] = s <= t ? w * products[s0 / 8 + i][e] : 0.0f;
        }
      }
      FragmentA<T> w;
      to_a<T>(w, weights[0], weights[1]);
#pragma unroll
      for (int j = 0; j < kPart / 16; ++j) {
        FragmentB<T> x[2];
        load_b<true>(x, m.x[k], kLdP, 16 * j, s0);
        mma<T>(y[2 * j], w, x[0]);
        mma<T>(y[2 * j + 1], w, x[1]);
      }
    }
    store_tokens(chunk(first + k), row, k, y);
  }
  // y + D x, by way of the rows of C that this warp alone has read.
  __device__ __forceinline__ void store_tokens(const Chunk& c, int row, int k,
                                               const float (&y)[kPart / 8][4]) const {
    constexpr int kPer16 = 16 / sizeof(T), kPieces = kPart / kPer16;
    const Plan& p = a.plan;
    const int q = lane % 4, columns = width();
    const int64_t column = h * p.P + part * kPart;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
      float D[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 8 * j + 2 * q + i;
        if (a.D != nullptr && at < columns) D[i] = a.D[a.D_has_hdim ? column + at : h];
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = row + lane / 4 + 8 * half;
        float x[2];
        load_n<2>(m.x[k] + t * kLdP + 8 * j + 2 * q, x);
        const float two[2] = {fmaf(D[0], x[0], y[j][2 * half]),
                              fmaf(D[1], x[1], y[j][2 * half + 1])};
        store_pair(m.C[k] + t * kLdN + 8 * j + 2 * q, two);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * kPieces; i += kWarp) {
      const int r = row + i / kPieces, at = i % kPieces * kPer16;
      if (r >= c.length || at >= columns) continue;
      T* to = a.y + (b * p.L + c.first + r) * a.y_stride + column + at;
      const T* from = m.C[k] + r * kLdN + at;
      if (a.y_aligned) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        for (int e = 0; e < kPer16 && at + e < columns; ++e) to[e] = from[e];
      }
    }
  }

  __device__ void run() const {
    const Plan& p = a.plan;
    const double rate = log2_rate(a.in, h);
    const float bias = a.in.bias[h];
    if (threadIdx.x == 0) {
      start_barrier(&m.added, 1), start_barrier(&m.before, 1);
      publish_barriers();
    }
    wait_for_previous();
    float carry[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t at = own(e);
      carry[e] = a.first != nullptr && at >= 0 ? a.first[b * a.state_stride + at] : 0.0f;
    }
    int parity = 0;
    for (int64_t round0 = 0; round0 < p.max_chunks;
         round0 += kMostCluster * kChunksOfBlock, parity ^= 1) {
      const int64_t first = round0 + rank * kChunksOfBlock;
      float raw[2] = {};
      const Chunk mine = chunk(first + warp % kChunksOfBlock);
      if (warp < kChunksOfBlock) raw_steps(p, a.in, a.in_type, b, h, mine, raw);
      fetch(first);
      if (warp < kChunksOfBlock) {
        const TwoSteps found = two_steps(a.in, mine, raw, rate, bias);
        Steps& to = m.steps[warp];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          to.d[2 * lane + i] = found.d[i], to.high[2 * lane + i] = found.high[i];
        }
      }
      if (threadIdx.x == 0) {
        constexpr int kBytes = kClusterStates * kPart * sizeof(float);
        arrive_and_expect(&m.added, kBytes + kMostCluster * sizeof(float2));
        arrive_and_expect(&m.before, kBytes);
      }
      wait_copies<0>();
      __syncthreads();
      const float end[2] = {m.steps[0].high[kChunk - 1], m.steps[1].high[kChunk - 1]};
      const float total[2] = {exp2_approx(end[0]), exp2_approx(end[1])};
      if (threadIdx.x < kChunksOfBlock * kChunk) {
        const int k = threadIdx.x / kChunk, t = threadIdx.x % kChunk;
        m.weights[k][t] = m.steps[k].d[t] * exp2_approx(end[k] - m.steps[k].high[t]);
      }
      float products[kChunk / 8][4] = {};
      multiply(products);
      __syncthreads();
      float after[kTiles][4] = {}, adds[kTiles][4] = {};
      add_states(0, after);
      add_states(1, adds);
      // No block needs its B any longer.
      arrive_at_cluster();
      wait_for_cluster();
      {
        const uint32_t to = address_in(block_state() + rank * kClusterThreads + lane, warp);
        const uint32_t barrier = address_in(&m.added, warp);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          send(to + j * kWarp * sizeof(float4), barrier,
               make_float4(fmaf(total[1], after[j][0], adds[j][0]),
                           fmaf(total[1], after[j][1], adds[j][1]),
                           fmaf(total[1], after[j][2], adds[j][2]),
                           fmaf(total[1], after[j][3], adds[j][3])));
        }
        if (lane == 0) {
          send(address_in(&m.totals[rank], warp), barrier, make_float2(total[0] * total[1], 0));
        }
      }
      wait_for(&m.added, parity);
      float4 starts[kMostCluster];
      float decay[kMostCluster];
#pragma unroll
      for (int r = 0; r < kMostCluster; ++r) {
        starts[r] = block_state()[r * kClusterThreads + threadIdx.x];
        decay[r] = m.totals[r].x;
      }
#pragma unroll
      for (int r = 0; r < kMostCluster; ++r) {
        const float4 added = starts[r];
        starts[r] = make_float4(carry[0], carry[1], carry[2], carry[3]);
        carry[0] = fmaf(decay[r], carry[0], added.x);
        carry[1] = fmaf(decay[r], carry[1], added.y);
        carry[2] = fmaf(decay[r], carry[2], added.z);
        carry[3] = fmaf(decay[r], carry[3], added.w);
      }
      // All have read what was sent.
      arrive_at_cluster();
      wait_for_cluster();
#pragma unroll
      for (int r = 0; r < kMostCluster; ++r) {
        send(address_in(block_state() + rank * kClusterThreads + threadIdx.x, r),
             address_in(&m.before, r), starts[r]);
      }
      wait_for(&m.before, parity);
      float before[kTiles][4];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        load_n<4>(
            reinterpret_cast<const float*>(block_state() + (warp * kTiles + j) * kWarp + lane),
            before[j]);
#pragma unroll
        for (int e = 0; e < 4; ++e) after[j][e] = fmaf(total[0], before[j][e], after[j][e]);
      }
      __syncthreads();
      round(0, before);
      round(1, after);
      __syncthreads();
      output(first, products);
      __syncthreads();
    }
    if (a.last == nullptr) return;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t at = own(e);
      if (at >= 0) a.last[b * a.state_stride + at] = carry[e];
    }
  }
};

#endif

template <class T>
__global__ void __launch_bounds__(kClusterThreads, 2)
    cluster_kernel(const __grid_constant__ ClusterArgs<T> a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<ClusterMemory<T>*>(shared);
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
  const int32_t job = static_cast<int32_t>(blockIdx.x) / kMostCluster;
  const ClusterBlock<T> block{a,
                              memory,
                              static_cast<int64_t>(blockIdx.y),
                              job / a.plan.parts,
                              job % a.plan.parts,
                              static_cast<int32_t>(blockIdx.x) % kMostCluster,
                              warp,
                              static_cast<int>(threadIdx.x % kWarp)};
  block.run();
#endif
}

template <class T>
void launch_cluster(Stream& stream, const char* name, const ClusterArgs<T>& a) {
  launch_clusters(stream, name, cluster_kernel<T>,
                  dim3(static_cast<unsigned>(a.plan.H * a.plan.parts * kMostCluster),
                       static_cast<unsigned>(a.plan.B)),
                  dim3(kClusterThreads), sizeof(ClusterMemory<T>), kMostCluster, a);
}

}  // namespace mamba::cuda::ssd
