// SPDX-License-Identifier: Apache-2.0
// What scan's CUDA kernels share: how channels and states lie on the lanes of a warp, the
// arithmetic of one token (the same bits in the full scan and in a step), the marks of documents
// and the tiles of tokens. Included by scan_*cuda.cu, and by
// mamba1_step_cuda.cu for that arithmetic.
#pragma once

#include <type_traits>

#include "kernels/async.cuh"
#include "kernels/mma.cuh"
#include "kernels/scan.h"

namespace mamba::cuda {

constexpr float kLog2e = 1.4426950408889634f;
constexpr int kTile = 16;  // tokens of a tile

// A warp has 32 / R channels; lane r * (32 / R) + c has kStates states of channel c, from kStates
// r.
template <int R>
struct Lanes {
  static constexpr int kChannels = kWarp / R;
  static constexpr int kStates = R <= 4 ? 16 / R : 8;
  static constexpr int kN = kStates * R;  // N, padded
};

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// load_n with words taken apart by one instruction an element.
template <int n, class T>
__device__ __forceinline__ void load_words(const T* p, float (&v)[n]) {
  if constexpr (std::is_same_v<T, bf16> && n % 2 == 0) {
    constexpr int kWords = n / 2, kStep = kWords > 4 ? 4 : kWords;
#pragma unroll
    for (int i = 0; i < kWords; i += kStep) {
      const auto raw = *reinterpret_cast<const Vector<uint32_t, kStep>*>(
          reinterpret_cast<const uint32_t*>(p) + i);
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
        v[2 * (i + j)] = __uint_as_float(raw.at[j] << 16);
        v[2 * (i + j) + 1] = __uint_as_float(raw.at[j] & 0xffff0000u);
      }
    }
  } else {
    load_n<n>(p, v);
  }
}

// softplus: within 2 ulp for f32, about 20 for 16-bit activations.
template <class T>
__device__ __forceinline__ float softplus(float x) {
  if constexpr (sizeof(T) == 4) {
    return x > 20.0f ? x : log1pf(expf(x));
  } else {
    const float e = exp2_approx(x * kLog2e);
    const float near0 =
        e * fmaf(e, fmaf(e, fmaf(e, fmaf(e, 0.2f, -0.25f), 0.33333333f), -0.5f), 1.0f);
    const float far = log2_approx(1.0f + e) * 0.69314718f;
    return x > 20.0f ? x : e < 0.0625f ? near0 : far;
  }
}
template <class T>
__device__ __forceinline__ float sigmoid_of(float z) {
  if constexpr (sizeof(T) == 4) {
    return 1.0f / (1.0f + expf(-z));
  } else {
    return __fdividef(1.0f, 1.0f + exp2_approx(-z * kLog2e));
  }
}

// A in units of log2, never quite 0: a step size of infinity forgets the state, one of 0 keeps it.
__device__ __forceinline__ float decay_rate(float A) { return fminf(A * kLog2e, -1e-35f); }

// h <- exp(d A) h + du B with du = d u.
template <int kStates>
__device__ __forceinline__ void advance(float (&h)[kStates], const float (&rate)[kStates], float d,
                                        float du, const float (&B)[kStates]) {
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    h[i] = fmaf(exp2_approx(__fmul_rn(d, rate[i])), h[i], __fmul_rn(du, B[i]));
  }
}
// sum of C h over the states of the lane.
template <int kStates>
__device__ __forceinline__ float lane_output(const float (&h)[kStates], const float (&C)[kStates]) {
  float even = __fmul_rn(C[0], h[0]), odd = __fmul_rn(C[1], h[1]);
#pragma unroll
  for (int i = 2; i < kStates; i += 2) {
    even = fmaf(C[i], h[i], even);
    odd = fmaf(C[i + 1], h[i + 1], odd);
  }
  return __fadd_rn(even, odd);
}
// The same bits as four lanes of four states that add theirs, for lanes that have more of 16.
template <int R>
__device__ __forceinline__ float part_output(const float (&h)[Lanes<R>::kStates],
                                             const float (&C)[Lanes<R>::kStates]) {
  if constexpr (R >= 4) {
    return lane_output(h, C);
  } else {
    float sums[Lanes<R>::kStates / 4];
#pragma unroll
    for (int k = 0; k < Lanes<R>::kStates / 4; ++k) {
      const float four_h[4] = {h[4 * k], h[4 * k + 1], h[4 * k + 2], h[4 * k + 3]};
      const float four_C[4] = {C[4 * k], C[4 * k + 1], C[4 * k + 2], C[4 * k + 3]};
      sums[k] = lane_output(four_h, four_C);
    }
    if constexpr (R == 2) return __fadd_rn(sums[0], sums[1]);
    if constexpr (R == 1) {
      return __fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3]));
    }
  }
}
// Sums over the lanes of a channel; every lane gets the same bits.
template <int R>
__device__ __forceinline__ float channel_sum(float v) {
#pragma unroll
  for (int offset = Lanes<R>::kChannels; offset < kWarp; offset *= 2) {
    v = __fadd_rn(v, __shfl_xor_sync(kAllLanes, v, offset));
  }
  return v;
}
// y silu(z).
template <class T>
__device__ __forceinline__ float gate(float y, float z) {
  return __fmul_rn(y, __fmul_rn(z, sigmoid_of<T>(z)));
}
// What the tokens of a tile are, a bit each: `padding` (or beyond the end), `reset` (the first of a
// further document).
struct Marks {
  uint32_t padding, reset;
};

// Marks of tokens [t, t + count) of a sequence, count <= 32; `last` is the id of the last token
// before them that is no padding (-1: none) and moves on.
__device__ __forceinline__ Marks marks_of(const int32_t* ids, int64_t t, int count, int& last) {
  const int lane = threadIdx.x % kWarp;
  if (ids == nullptr) return {count >= 32 ? 0 : ~0u << count, 0};
  const int id = lane < count ? ids[t + lane] : -1;
  const uint32_t real = __ballot_sync(kAllLanes, id >= 0);
  const uint32_t before = real & ((1u << lane) - 1);
  const int previous = __shfl_sync(kAllLanes, id, before == 0 ? 0 : 31 - __clz(before));
  const bool reset = id >= 0 && (before == 0 ? last >= 0 && last != id : previous != id);
  const Marks marks{~real, __ballot_sync(kAllLanes, reset)};
  const int latest = __shfl_sync(kAllLanes, id, real == 0 ? 0 : 31 - __clz(real));
  if (real != 0) last = latest;
  return marks;
}
// The id of the last token before t that is no padding.
__device__ __forceinline__ int last_id_before(const int32_t* ids, int64_t t) {
  const int lane = threadIdx.x % kWarp;
  if (ids == nullptr) return -1;
  for (; t > 0; t -= kWarp) {
    const int64_t at = t - kWarp + lane;
    const int id = at >= 0 ? ids[at] : -1;
    const uint32_t real = __ballot_sync(kAllLanes, id >= 0);
    if (real != 0) return __shfl_sync(kAllLanes, id, 31 - __clz(real));
  }
  return -1;
}

// Rows of a (B, L, ...) tensor as kernels see them.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

// What forward and backward read.
template <class T>
struct ScanInput {
  int64_t B, L, E, N, group;              // group: channels of a group
  bool constant, constant_f32, softplus;  // B and C that are constant may be f32
  Rows<T> u, delta, Bm, Cm, z;
  const float *delta_bias, *A_t, *D;
  const int32_t* ids;

  // Channels are taken in slabs of at most `width` of one group.
  __host__ __device__ int64_t slabs_of_group(int64_t width) const {
    return (group + width - 1) / width;
  }
  __host__ __device__ int64_t slabs(int64_t width) const {
    return E / group * slabs_of_group(width);
  }
  __device__ int64_t first_channel(int64_t slab, int64_t width) const {
    const int64_t of_group = slabs_of_group(width);
    return slab / of_group * group + slab % of_group * width;
  }
  // The end of the channels of c's group.
  __device__ int64_t limit(int64_t c) const { return (c / group + 1) * group; }
  __host__ __device__ int64_t tiles() const { return (L + 7) / 8; }

  // State n of B or C of token `row` and channel c.
  __device__ __forceinline__ float bc(const Rows<T>& r, int64_t row, int64_t c, int64_t n) const {
    if (!constant) return load(r.data + row * r.stride + c / group * N + n);
    return constant_f32 ? reinterpret_cast<const float*>(r.data)[c * N + n]
                        : load(r.data + c * N + n);
  }
};

template <class T, class Args>
ScanInput<T> scan_input(const Args& a) {
  ScanInput<T> in{};
  in.B = a.B, in.E = a.E, in.N = a.N;
  in.constant = a.bc == ScanBC::kConstant, in.softplus = a.delta_softplus;
  in.constant_f32 = a.Bm.dtype == DType::kF32;
  in.group = in.constant ? a.E : a.E / a.G;
  in.u = {a.u.template as<T>(), a.u_stride};
  in.delta = {a.delta.template as<T>(), a.delta_stride};
  in.Bm = {a.Bm.template as<T>(), a.B_stride};
  in.Cm = {a.Cm.template as<T>(), a.C_stride};
  in.z = {a.z.template as<T>(), a.z_stride};
  in.delta_bias = a.delta_bias.template as<float>();
  in.A_t = a.A_t.template as<float>();
  in.D = a.D.template as<float>();
  return in;
}

// Lanes of a channel for N states: 4, 8 or 32; 0 if there are too many.
inline int lanes_of(int64_t N) { return N <= 16 ? 4 : N <= 64 ? 8 : N <= 256 ? 32 : 0; }

// Whether tiles can be copied by 16 bytes: rows aligned, and the channels of a warp in one group.
template <class Args>
bool takes_copies(const Args& a, int R) {
  const int64_t channels = kWarp / R;
  if (R > 4 || a.bc != ScanBC::kGrouped || a.N != 16) return false;
  if (a.E % channels != 0 || a.E / a.G % channels != 0) return false;
  return rows_aligned(a.u, a.u_stride, 16) && rows_aligned(a.delta, a.delta_stride, 16) &&
         rows_aligned(a.Bm, a.B_stride, 16) && rows_aligned(a.Cm, a.C_stride, 16) &&
         rows_aligned(a.z, a.z_stride, 16);
}

}  // namespace mamba::cuda
