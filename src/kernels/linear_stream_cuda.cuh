// SPDX-License-Identifier: Apache-2.0
// The product of one row with a large weight: few enough blocks that those of the next kernels find
// room beside them, each of which prepares x once in shared memory and whose warps walk over rows
// of the weight. Included by *_cuda.cu alone.
#pragma once

#include "kernels/linear_row_cuda.cuh"

namespace mamba::cuda::row {

constexpr int kStreamWarps = 8;
constexpr int kStreamThreads = kStreamWarps * kWarp;
constexpr int kPanel = kStreamThreads * kEach;  // columns of a block
constexpr int kPanels = 4;                      // of x that a thread holds
constexpr int kInFlight = 10;                   // loads of a lane
static_assert(kMostNormed == kPanels * kPanel);

// As load_weights, but not moved behind what is written after it.
__device__ __forceinline__ Vector<uint32_t, 4> load_weights_now(const void* p) {
  Vector<uint32_t, 4> v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.at[0]), "=r"(v.at[1]), "=r"(v.at[2]), "=r"(v.at[3])
               : "l"(p));
  return v;
}

// What comes before the product is a Source:
//   kBlocks           of a multiprocessor
//   prepare(p)        brings weights of its own nearer
//   fill(p, row)      after the kernel in front: x as p.K values of W to shared memory

// The warps of the grid take rows of the weight by turns. What a lane reads of a row it holds in
// kInFlight registers; as soon as one is used it is loaded again, with what comes next.
template <class W, class Y, class Source>
__global__ void __launch_bounds__(kStreamThreads, Source::kBlocks)
    stream_kernel(Row p, const W* weight, Source source, Y* y) {
  extern __shared__ __align__(16) unsigned char room[];
  W* row = reinterpret_cast<W*>(room);
  const int lane = threadIdx.x % kWarp, first = lane * kEach, K = static_cast<int>(p.K);
  const int N = static_cast<int>(p.N), step = static_cast<int>(gridDim.x) * kStreamWarps;
  int n = static_cast<int>(blockIdx.x) * kStreamWarps + static_cast<int>(threadIdx.x) / kWarp;
  const W* at = weight + n * p.weight_stride + first;
  const int64_t next = step * p.weight_stride;
  Vector<uint32_t, 4> w[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    if (n < N && first + i * kSweep < K) w[i] = load_weights_now(at + i * kSweep);
  }
  source.prepare(p);
  wait_for_previous();
  source.fill(p, row);
  __syncthreads();
#pragma unroll 1
  for (; n < N; n += step) {
    const W* after = at + next;
    const bool more = n + step < N;
    const W* x_at = row + first;
    float sum[2] = {};
#pragma unroll 1
    for (int left = K - first; left > 0; left -= kInFlight * kSweep) {
      at += kInFlight * kSweep;
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (i * kSweep >= left) break;
        const auto values = reinterpret_cast<const Vector<W, kEach>&>(w[i]);
        const auto x = *reinterpret_cast<const Vector<W, kEach>*>(x_at + i * kSweep);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          sum[j % 2] = fmaf(to_float(values.at[j]), to_float(x.at[j]), sum[j % 2]);
        }
        const bool same = (i + kInFlight) * kSweep < left;
        if (same || more) w[i] = load_weights_now((same ? at : after) + i * kSweep);
      }
      x_at += kInFlight * kSweep;
    }
    at = after;
    const float total = warp_sum(sum[0] + sum[1]);
    if (lane == 0) {
      float v = total;
      if (p.bias != nullptr) v += p.bias[n];
      if (p.accumulate) v += load(y + n);
      store(y + n, v);
    }
  }
}

// Elements of a weight that is large; warps of its grid, a dozen a multiprocessor. Weights of up to
// 32 MB brought to the L2 cache before x is there made a layer of mamba-2.8b 37.8 us, from 35.3.
constexpr int64_t kLargeWeight = int64_t{4} << 20;
constexpr int64_t kStreamingWarps = 132 * 12;

inline bool is_streamed(const Row& p) {
  constexpr int64_t kMostBytes = static_cast<int64_t>(kPlainShared) - 64;
  return p.N * p.K >= kLargeWeight && p.N <= INT32_MAX / 2 && 2 * p.K <= kMostBytes;
}

template <class W, class Y, class Source>
void launch_stream(Stream& stream, const char* name, const Row& p, const W* weight,
                   const Source& source, Y* y) {
  const int64_t turns = ceil_div(p.N, kStreamingWarps);
  const dim3 blocks(static_cast<unsigned>(ceil_div(p.N, turns * kStreamWarps)));
  launch_early(stream, name, stream_kernel<W, Y, Source>, blocks, dim3(kStreamThreads),
               static_cast<size_t>(p.K) * sizeof(W), p, weight, source, y);
}

}  // namespace mamba::cuda::row
