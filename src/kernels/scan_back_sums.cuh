// SPDX-License-Identifier: Apache-2.0
// Sums over the channels of a warp of g du (for dB) and of h dy (for dC) in scan's CUDA backward
// pass: products on tensor cores. Lane (part, channel) holds four states of its channel; rows of
// the product are (part, four channels), its inner dimension is the channel among the four.
#pragma once

#include "kernels/scan_back_memory.cuh"

namespace mamba::cuda {

// d[m][n] += sum over k of a[m][k] b[k][n], 16 x 8 by 8 x 8, in TF32.
__device__ __forceinline__ void mma_16x8x8(float (&d)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// Tokens come from the last of 8 to the first; `sums` is the block's memory for these 8.
template <class T, int R>
struct ChannelSums {
  using Memory = BackMemory<T, R>;
  static constexpr int kStates = Memory::kStates, kN = Memory::kN;
  // 16-bit results: du and dy are an operand. Two columns a token, of which a row means the one of
  // its four channels, so four tokens a result, and two tokens a product.
  static constexpr bool kDirect = R == 4 && sizeof(T) == 2;
  float columns[2][kStates / 2][4] = {};
  float after[2][kDirect ? kStates : 1] = {}, after_du = 0, after_dy = 0;  // of token t + 1
  float upper[2][kDirect ? kStates : 1] = {};                              // sums of 4 tokens

  // Which of the 8 tokens the element at i % 8 is of.
  static __device__ __forceinline__ int token_of(int i) {
    return kDirect ? i % 8 / 2 + i % 2 * 4 : i % 8;
  }

  __device__ __forceinline__ void add(float* sums, int warp, int lane, int t,
                                      const float (&g)[kStates], float du,
                                      const float (&h)[kStates], float dy) {
    const int part = lane / Memory::kChannels;
    if constexpr (kDirect) {
      const bool here = part == t % 4;
      du = here ? du : 0.0f, dy = here ? dy : 0.0f;
      if (t % 2 != 0) {
#pragma unroll
        for (int i = 0; i < kStates; ++i) after[0][i] = g[i], after[1][i] = h[i];
        after_du = du, after_dy = dy;
        return;
      }
#pragma unroll
      for (int i = 0; i < kStates; i += 2) {
        mma_16x8x8(columns[0][i / 2], {g[i], g[i + 1], after[0][i], after[0][i + 1]}, du, after_du);
        mma_16x8x8(columns[1][i / 2], {h[i], h[i + 1], after[1][i], after[1][i + 1]}, dy, after_dy);
      }
      if (t % 4 != 0) return;
      const int group = lane / 4 % Memory::kGroups, slot = warp * Memory::kGroups + group;
      float* to = sums + slot * Memory::kSlot + kStates * part * kSteps + lane % 4 * 2;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          float* two = columns[k][i / 2] + i % 2 * 2;
          const float sum = group == 0 ? two[0] : two[1];
          if (t == 4) {
            upper[k][i] = sum;
            two[0] = two[1] = 0;
          } else {
            *reinterpret_cast<float2*>(to + (k * kN + i) * kSteps) = make_float2(sum, upper[k][i]);
          }
        }
      }
    } else if constexpr (Memory::kChannels >= 4) {  // a column of ones for the token
      const float one = lane / 4 == t ? 1.0f : 0.0f;
#pragma unroll
      for (int i = 0; i < kStates; i += 2) {
        add_columns<T>(columns[0][i / 2], g[i] * du, g[i + 1] * du, one);
        add_columns<T>(columns[1][i / 2], h[i] * dy, h[i + 1] * dy, one);
      }
      if (t != 0) return;
      const int slot = warp * Memory::kGroups + lane / 4 % Memory::kGroups;
      float* to = sums + slot * Memory::kSlot + kStates * part * kSteps + lane % 4 * 2;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          const float* two = columns[k][i / 2] + i % 2 * 2;
          *reinterpret_cast<float2*>(to + (k * kN + i) * kSteps) = make_float2(two[0], two[1]);
        }
      }
    } else {  // one channel: nothing to add
      float* to = sums + warp * Memory::kSlot + kStates * part * kSteps + t;
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        to[i * kSteps] = g[i] * du;
        to[(kN + i) * kSteps] = h[i] * dy;
      }
    }
  }
};

}  // namespace mamba::cuda
