// SPDX-License-Identifier: Apache-2.0
// Small matrix products on tensor cores for CUDA kernels: fragments of 16 x 16 and 16 x 8 elements
// from shared memory, for bf16 and f16 (one instruction a step) and for f32 (three products of TF32
// parts, which keep 21 bits). Included by *_cuda.cu alone.
#pragma once

#include <type_traits>

#include "kernels/cuda.cuh"

namespace mamba::cuda {

// Elements that pad a row of a tile in shared memory, so that 8 rows lie in different banks.
template <class T>
constexpr int kPad = 16 / sizeof(T);

// Two values as neighbours in a register.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  uint32_t r;
  if constexpr (std::is_same_v<T, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  }
  return r;
}
template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t v) {
  T low, high;
  low.bits = static_cast<uint16_t>(v);
  high.bits = static_cast<uint16_t>(v >> 16);
  return make_float2(to_float(low), to_float(high));
}

// Two neighbours, aligned.
template <class T>
__device__ __forceinline__ void store_pair(T* p, const float (&v)[2]) {
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float2*>(p) = make_float2(v[0], v[1]);
  } else {
    *reinterpret_cast<uint32_t*>(p) = pack2<T>(v[0], v[1]);
  }
}

// 16 rows (m) by 16 columns (k) of A: with g = lane / 4 and q = lane % 4 the elements of a lane are
// (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1) and the same with k + 8. For f32 the order of
// k within a step of 8 is so chosen too, in A and in B alike.
template <class T>
struct FragmentA {
  uint32_t v[4];
};
template <>
struct FragmentA<float> {
  float v[8];
};
// 16 rows (k) by 8 columns (n) of B: elements (2q, g), (2q + 1, g) and the same with k + 8.
template <class T>
struct FragmentB {
  uint32_t v[2];
};
template <>
struct FragmentB<float> {
  float v[4];
};

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&v)[4], uint32_t address) {
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
  }
}

// A(m, k) = tile[m * ld + k], or tile[k * ld + m] if transposed; m from m0, k from k0.
template <bool transposed, class T>
__device__ __forceinline__ void load_a(FragmentA<T>& a, const T* tile, int ld, int m0, int k0) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (sizeof(T) == 2) {
    // Matrices of 8 x 8: (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8).
    const int r = lane % 8, m8 = lane / 8 % 2 * 8, k8 = lane / 16 * 8;
    const T* p =
        transposed ? tile + (k0 + k8 + r) * ld + m0 + m8 : tile + (m0 + m8 + r) * ld + k0 + k8;
    load_matrices<transposed>(a.v, shared_address(p));
  } else {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int m = m0 + g + i / 2 % 2 * 8, k = k0 + 2 * q + i % 2 + i / 4 * 8;
      a.v[i] = transposed ? tile[k * ld + m] : tile[m * ld + k];
    }
  }
}
// Two fragments, columns n0 ... n0 + 7 and n0 + 8 ... n0 + 15: B(k, n) = tile[n * ld + k], or
// tile[k * ld + n] if transposed.
template <bool transposed, class T>
__device__ __forceinline__ void load_b(FragmentB<T> (&b)[2], const T* tile, int ld, int n0,
                                       int k0) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (sizeof(T) == 2) {
    // Matrices: (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8).
    const int r = lane % 8, k8 = lane / 8 % 2 * 8, n8 = lane / 16 * 8;
    const T* p =
        transposed ? tile + (k0 + k8 + r) * ld + n0 + n8 : tile + (n0 + n8 + r) * ld + k0 + k8;
    uint32_t v[4];
    load_matrices<transposed>(v, shared_address(p));
    b[0].v[0] = v[0], b[0].v[1] = v[1], b[1].v[0] = v[2], b[1].v[1] = v[3];
  } else {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int n = n0 + g + i / 4 * 8, k = k0 + 2 * q + i % 2 + i / 2 % 2 * 8;
      b[i / 4].v[i % 4] = transposed ? tile[k * ld + n] : tile[n * ld + k];
    }
  }
}

// The accumulators of two products of 8 columns as A of the next: k = those 16 columns.
template <class T>
__device__ __forceinline__ void to_a(FragmentA<T>& a, const float (&low)[4],
                                     const float (&high)[4]) {
  if constexpr (sizeof(T) == 2) {
    a.v[0] = pack2<T>(low[0], low[1]), a.v[1] = pack2<T>(low[2], low[3]);
    a.v[2] = pack2<T>(high[0], high[1]), a.v[3] = pack2<T>(high[2], high[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.v[i] = low[i], a.v[4 + i] = high[i];
  }
}
// The elements of a lane in the order of the comment at FragmentA.
template <class T>
__device__ __forceinline__ void a_values(const FragmentA<T>& a, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      const float2 two = unpack2<T>(a.v[i]);
      v[2 * i] = two.x, v[2 * i + 1] = two.y;
    } else {
      v[2 * i] = a.v[2 * i], v[2 * i + 1] = a.v[2 * i + 1];
    }
  }
}
template <class T>
__device__ __forceinline__ void set_a(FragmentA<T>& a, const float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      a.v[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
    } else {
      a.v[2 * i] = v[2 * i], a.v[2 * i + 1] = v[2 * i + 1];
    }
  }
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// x = high + low in TF32 but for 2^-22 x.
__device__ __forceinline__ void split_tf32(float x, uint32_t& high, uint32_t& low) {
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(high) : "f"(x));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(low) : "f"(x - __uint_as_float(high)));
}

// c += a b; c has (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1).
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const FragmentA<T>& a, const FragmentB<T>& b) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      // The instruction wants (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4).
      const float* from = a.v + 4 * step;
      uint32_t high[4], low[4], b_high[2], b_low[2];
      split_tf32(from[0], high[0], low[0]), split_tf32(from[2], high[1], low[1]);
      split_tf32(from[1], high[2], low[2]), split_tf32(from[3], high[3], low[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) split_tf32(b.v[2 * step + i], b_high[i], b_low[i]);
      mma_tf32(c, low, b_high);
      mma_tf32(c, high, b_low);
      mma_tf32(c, high, b_high);
    }
  } else if constexpr (std::is_same_v<T, bf16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[0]), "r"(b.v[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[0]), "r"(b.v[1]));
  }
}

// d[m][n] += sum over k of a[m][k] b[k][n], 16 x 4 by 4 x 8.
__device__ __forceinline__ void mma_16x8x4(float (&d)[4], float a0, float a1, float b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)));
}
// The same with a in f32 (exact but for 2^-21) or, for 16-bit results, in TF32.
template <class T>
__device__ __forceinline__ void add_columns(float (&d)[4], float a0, float a1, float b) {
  if constexpr (sizeof(T) == 4) {
    const float high0 = __uint_as_float(__float_as_uint(a0) & 0xffffe000u);
    const float high1 = __uint_as_float(__float_as_uint(a1) & 0xffffe000u);
    mma_16x8x4(d, a0 - high0, a1 - high1, b);
    mma_16x8x4(d, high0, high1, b);
  } else {
    mma_16x8x4(d, a0, a1, b);
  }
}

}  // namespace mamba::cuda
