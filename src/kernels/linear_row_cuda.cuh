// SPDX-License-Identifier: Apache-2.0
// What products of one row share: a warp has rows of the weight, which are on their way before the
// kernel in front has ended, and norms the row for itself. Included by *_cuda.cu alone.
#pragma once

#include "kernels/linear_rows_cuda.cuh"
#include "kernels/step.cuh"

namespace mamba::cuda::row {

constexpr int kWarps = 4;
constexpr int kEach = 8;                        // columns of a lane in 16 bytes
constexpr int kSweep = kWarp * kEach;           // columns of a warp
constexpr int64_t kNormedByWarps = 4 * kSweep;  // columns that every warp norms for itself

struct Row {
  int64_t N, K, weight_stride;
  const float* bias;
  bool accumulate;
};
struct Norm {
  const float *residual, *weight;
  float* residual_out;
  float eps;
};

__device__ __forceinline__ Vector<uint32_t, 4> load_weights(const void* p) {
  Vector<uint32_t, 4> v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.at[0]), "=r"(v.at[1]), "=r"(v.at[2]), "=r"(v.at[3])
      : "l"(p));
  return v;
}
// Adds up and writes y[n ... n + kRows - 1], by a lane each, which gets the value.
template <int kRows, class Y>
__device__ __forceinline__ float put_rows(const Row& p, Y* y, int64_t n, float (&sum)[kRows]) {
  float v = step::sum_each<kRows, kWarp>(sum);
  const int lane = threadIdx.x % kWarp;
  n += lane / (kWarp / kRows);
  if (lane % (kWarp / kRows) != 0 || n >= p.N) return v;
  if (p.bias != nullptr) v += p.bias[n];
  if (p.accumulate) v += load(y + n);
  store(y + n, v);
  return v;
}

inline Row row_of(const LinearArgs& a, int64_t weight_stride) {
  return {a.N, a.K, weight_stride, a.bias.as<float>(), a.accumulate};
}
inline Norm norm_of(const RmsNormArgs& a) {
  return {a.residual.as<float>(), a.weight.as<float>(), a.residual_out.as<float>(),
          static_cast<float>(a.eps)};
}

// kRows rows of the weight from n on, of up to kNormed sweeps. Every warp adds up the squares for
// itself; that of row 0 writes the residual.
template <int kRows, int kNormed>
struct NormedRows {
  Vector<uint32_t, 4> w[kRows][kNormed];
  float scale[kNormed][kEach];

  __device__ __forceinline__ void fetch(const Row& p, const Norm& norm, const bf16* weight,
                                        int64_t n) {
    const int64_t first = threadIdx.x % kWarp * kEach;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const bf16* from = weight + (n + row < p.N ? n + row : n) * p.weight_stride + first;
#pragma unroll
      for (int i = 0; i < kNormed; ++i) {
        if (first + i * kSweep < p.K) w[row][i] = load_weights(from + i * kSweep);
      }
    }
#pragma unroll
    for (int i = 0; i < kNormed; ++i) {
      const int64_t k = first + i * kSweep;
#pragma unroll
      for (int j = 0; j < kEach; ++j) scale[i][j] = 1;
      if (k < p.K && norm.weight != nullptr) load_n<kEach>(norm.weight + k, scale[i]);
    }
  }

  // sum: of this lane's columns.
  template <class X>
  __device__ __forceinline__ void multiply(const Row& p, const Norm& norm, const X* x, int64_t n,
                                           float (&sum)[kRows]) const {
    const int64_t first = threadIdx.x % kWarp * kEach;
    float r[kNormed][kEach], squares = 0;
#pragma unroll
    for (int i = 0; i < kNormed; ++i) {
      const int64_t k = first + i * kSweep;
#pragma unroll
      for (int j = 0; j < kEach; ++j) r[i][j] = 0;
      if (k >= p.K) continue;
      load_n<kEach>(x + k, r[i]);
      if (norm.residual == nullptr) continue;
      float more[kEach];
      load_n<kEach>(norm.residual + k, more);
#pragma unroll
      for (int j = 0; j < kEach; ++j) r[i][j] += more[j];
    }
#pragma unroll
    for (int i = 0; i < kNormed; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) squares = fmaf(r[i][j], r[i][j], squares);
    }
    const float s = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(p.K) + norm.eps);
#pragma unroll
    for (int i = 0; i < kNormed; ++i) {
      const int64_t k = first + i * kSweep;
      if (k >= p.K) break;
      if (n == 0) store_n<kEach>(norm.residual_out + k, r[i]);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const float v = to_float(from_float<bf16>(r[i][j] * s * scale[i][j]));
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const auto& values = reinterpret_cast<const Vector<bf16, kEach>&>(w[row][i]);
          sum[row] = fmaf(to_float(values.at[j]), v, sum[row]);
        }
      }
    }
  }
};

}  // namespace mamba::cuda::row
