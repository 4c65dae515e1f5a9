// SPDX-License-Identifier: Apache-2.0
// What mamba1_step and mamba2_step share on CUDA: the convolution of one token of a channel, states
// in f32 or bf16, and sums over the lanes of a warp for several values at once.
#pragma once

#include "kernels/cuda.cuh"

namespace mamba::cuda::step {

// A recurrent state: f32, or bf16.
struct StateBuf {
  void* data;
  bool is_bf16;
  int64_t stride;  // elements from a sequence to the next

  __device__ __forceinline__ void prefetch_at(int64_t i) const {
    prefetch(static_cast<const char*>(data) + i * (is_bf16 ? 2 : 4));
  }
  __device__ __forceinline__ float load(int64_t i) const {
    return is_bf16 ? to_float(static_cast<const bf16*>(data)[i])
                   : static_cast<const float*>(data)[i];
  }
  __device__ __forceinline__ void store(int64_t i, float v) const {
    if (is_bf16) {
      static_cast<bf16*>(data)[i] = from_float<bf16>(v);
    } else {
      static_cast<float*>(data)[i] = v;
    }
  }
};
inline StateBuf state_buf(const Buf& b, int64_t stride) {
  return {b.data, b.dtype == DType::kBF16, stride};
}

// The convolution of one token.
struct Conv {
  int64_t C, K;
  bool silu;
  const float *taps, *bias;  // (K, C), (C) or null
  StateBuf state;            // (K - 1, C)
};
template <class Args>
Conv conv_of(const Args& a, int64_t C) {
  return {C,
          a.K,
          a.conv_silu,
          a.conv_taps.template as<float>(),
          a.conv_bias.template as<float>(),
          state_buf(a.conv_state, a.state_stride)};
}

// The last kLast taps of a channel are held, all where there are as many or fewer.
constexpr int kLast = 4;
struct Taps {
  float tap[kLast], bias;
  __device__ __forceinline__ void load(const Conv& v, int64_t c) {
    bias = v.bias != nullptr ? v.bias[c] : 0.0f;
#pragma unroll
    for (int i = 0; i < kLast; ++i) {
      const int64_t j = v.K - kLast + i;
      tap[i] = j >= 0 ? v.taps[j * v.C + c] : 0.0f;
    }
  }
};

// A channel of a sequence: what the held taps see of the state.
struct Window {
  float before[kLast - 1];
  __device__ __forceinline__ void load(const Conv& v, int64_t b, int64_t c) {
#pragma unroll
    for (int i = 0; i < kLast - 1; ++i) {
      const int64_t j = v.K - kLast + i;
      before[i] = j >= 0 ? v.state.load(b * v.state.stride + j * v.C + c) : 0.0f;
    }
  }
  // act(bias + sum of taps), in the order of the taps.
  template <class T>
  __device__ __forceinline__ float output(const Conv& v, const Taps& t, int64_t b, int64_t c,
                                          float now) const {
    float sum = t.bias;
    for (int64_t j = 0; j < v.K - kLast; ++j) {
      sum = fmaf(v.taps[j * v.C + c], v.state.load(b * v.state.stride + j * v.C + c), sum);
    }
#pragma unroll
    for (int i = 0; i < kLast - 1; ++i) sum = fmaf(t.tap[i], before[i], sum);
    sum = fmaf(t.tap[kLast - 1], now, sum);
    return v.silu ? sum * sigmoid<T>(sum) : sum;
  }
  // The state moves on by a token.
  __device__ __forceinline__ void shift(const Conv& v, int64_t b, int64_t c, float now) const {
    const int64_t at = b * v.state.stride + c;
    for (int64_t j = 0; j < v.K - kLast; ++j) {
      v.state.store(at + j * v.C, v.state.load(at + (j + 1) * v.C));
    }
#pragma unroll
    for (int i = 1; i < kLast; ++i) {
      const int64_t j = v.K - kLast + i - 1;
      if (j >= 0) v.state.store(at + j * v.C, i < kLast - 1 ? before[i] : now);
    }
  }
};

// Brings the held part of a channel's state nearer.
__device__ __forceinline__ void prefetch_window(const Conv& v, int64_t b, int64_t c) {
#pragma unroll
  for (int i = 0; i < kLast - 1; ++i) {
    const int64_t j = v.K - kLast + i;
    if (j >= 0) v.state.prefetch_at(b * v.state.stride + j * v.C + c);
  }
}

// Sums over groups of `width` neighbouring lanes, of n values (powers of two, n <= width) at once:
// a lane gets the sum of value (lane % width) / (width / n). Each is added up in the same order as
// by warp_sum.
template <int n, int width>
__device__ __forceinline__ float sum_each(float (&v)[n]) {
  const int lane = threadIdx.x % kWarp;
  int offset = width / 2;
#pragma unroll
  for (int m = n / 2; m > 0; m /= 2, offset /= 2) {
    const bool high = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < m; ++i) {
      const float keep = high ? v[i + m] : v[i], give = high ? v[i] : v[i + m];
      v[i] = keep + __shfl_xor_sync(kAllLanes, give, offset);
    }
  }
#pragma unroll
  for (; offset > 0; offset /= 2) v[0] += __shfl_xor_sync(kAllLanes, v[0], offset);
  return v[0];
}

}  // namespace mamba::cuda::step
