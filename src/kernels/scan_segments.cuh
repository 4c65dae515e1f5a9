// SPDX-License-Identifier: Apache-2.0
// Segments of time in scan's CUDA kernels: how many there are, and the chain through their states.
#pragma once

#include "kernels/scan_cuda.cuh"

namespace mamba::cuda {

// Segments of at least 64 tokens, as many as run at once; documents are cut into fewer.
constexpr int64_t kEnoughWarps = 800;
template <class T>
int64_t segments_of(int64_t warps, int64_t L, bool documents) {
  constexpr int64_t kRoom = sizeof(T) == 4 ? 132 * 15 : 132 * 24, kLong = 512;
  if (warps >= kEnoughWarps || L < kLong) return 1;
  const int64_t wanted = kRoom / warps, most = L / (documents ? 256 : 64);
  return wanted < most ? wanted : most;
}

// segment_h: from last states of segments alone to first states, in place.
constexpr int kChainThreads = 128;
static __global__ void __launch_bounds__(256)
    chain_kernel(int64_t B, int64_t segments, int64_t N, int64_t E, const float* __restrict__ A_t,
                 const float* __restrict__ h0, int64_t h_stride,
                 const float* __restrict__ segment_d, float* __restrict__ segment_h) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= B * N * E) return;
  const int64_t b = i / (N * E), at = i % (N * E), c = at % E;
  const float rate = decay_rate(A_t[at]);
  // Without a word to the walk behind it, whose blocks spread evenly over a card that is free.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  float h = h0 == nullptr ? 0.0f : h0[b * h_stride + at];
  constexpr int kAhead = 16;  // loads side by side
  for (int64_t s0 = 0; s0 < segments; s0 += kAhead) {
    float alone[kAhead] = {}, d[kAhead] = {};
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (s0 + k + 1 >= segments) continue;
      alone[k] = segment_h[(b * segments + s0 + k) * N * E + at];
      d[k] = segment_d[(b * segments + s0 + k) * E + c];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (s0 + k >= segments) break;
      segment_h[(b * segments + s0 + k) * N * E + at] = h;
      h = fmaf(exp2_approx(d[k] * rate), h, alone[k]);
    }
  }
}

}  // namespace mamba::cuda
