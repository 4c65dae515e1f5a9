// SPDX-License-Identifier: Apache-2.0
// The product of one row, with the norm in front of it or not: a warp a row of the weight, all of
// which is on its way before the kernel in front has ended.
#include "kernels/linear_rows_cuda.cuh"
#include "kernels/step.cuh"

namespace mamba::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kEach = 8;               // columns of a lane in 16 bytes
constexpr int kSweep = kWarp * kEach;  // columns of a warp
static_assert(kMostNormed == 4 * kSweep);

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
// Adds up and writes y[n ... n + kRows - 1], by a lane each.
template <int kRows, class Y>
__device__ __forceinline__ void put_rows(const Row& p, Y* y, int64_t n, float (&sum)[kRows]) {
  float v = step::sum_each<kRows, kWarp>(sum);
  const int lane = threadIdx.x % kWarp;
  n += lane / (kWarp / kRows);
  if (lane % (kWarp / kRows) != 0 || n >= p.N) return;
  if (p.bias != nullptr) v += p.bias[n];
  if (p.accumulate) v += load(y + n);
  store(y + n, v);
}

// A warp has kRows rows of the weight and loads `held` sweeps of each at once.
template <class W, class X, class Y, int kRows, int held>
__global__ void __launch_bounds__(kWarps* kWarp)
    row_kernel(Row p, const W* weight, const X* x, Y* y) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kRows;
  if (n >= p.N) return;
  const int64_t first = threadIdx.x % kWarp * kEach;
  Vector<uint32_t, 4> w[kRows][held];
  const auto fetch = [&](int64_t k) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const W* from = weight + (n + row < p.N ? n + row : n) * p.weight_stride + k;
#pragma unroll
      for (int i = 0; i < held; ++i) {
        if (k + i * kSweep < p.K) w[row][i] = load_weights(from + i * kSweep);
      }
    }
  };
  fetch(first);
  wait_for_previous();
  float sum[kRows] = {};
  for (int64_t k = first; k < p.K; k += held * kSweep) {
    if (k != first) fetch(k);
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (k + i * kSweep >= p.K) break;
      float v[kEach];
      load_n<kEach>(x + k + i * kSweep, v);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if constexpr (sizeof(X) == 4) v[j] = to_float(from_float<W>(v[j]));
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const auto& values = reinterpret_cast<const Vector<W, kEach>&>(w[row][i]);
          sum[row] = fmaf(to_float(values.at[j]), v[j], sum[row]);
        }
      }
    }
  }
  put_rows<kRows>(p, y, n, sum);
}

// Rows to kNormed sweeps; a warp has kRows rows of the weight. Every warp adds up the squares for
// itself; the first of all writes the residual.
template <class W, class X, class Y, int kRows, int kNormed>
__global__ void __launch_bounds__(kWarps* kWarp)
    normed_row_kernel(Row p, Norm norm, const W* weight, const X* x, Y* y) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kRows;
  if (n >= p.N) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = lane * kEach;
  Vector<uint32_t, 4> w[kRows][kNormed];
  float scale[kNormed][kEach], r[kNormed][kEach], squares = 0;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const W* from = weight + (n + row < p.N ? n + row : n) * p.weight_stride + first;
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
  wait_for_previous();
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
  float sum[kRows] = {};
#pragma unroll
  for (int i = 0; i < kNormed; ++i) {
    const int64_t k = first + i * kSweep;
    if (k >= p.K) break;
    if (n == 0) store_n<kEach>(norm.residual_out + k, r[i]);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float v = to_float(from_float<W>(r[i][j] * s * scale[i][j]));
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const auto& values = reinterpret_cast<const Vector<W, kEach>&>(w[row][i]);
        sum[row] = fmaf(to_float(values.at[j]), v, sum[row]);
      }
    }
  }
  put_rows<kRows>(p, y, n, sum);
}

dim3 blocks_of(int64_t N, int rows) {
  return dim3(static_cast<unsigned>(ceil_div(N, kWarps * rows)));
}

template <class W, class X, class Y>
void launch_row(Stream& stream, const char* name, const Row& p, const W* weight, const X* x, Y* y) {
  const auto run = [&](int rows, auto* kernel) {
    launch_early(stream, name, kernel, blocks_of(p.N, rows), dim3(kWarps * kWarp), 0, p, weight, x,
                 y);
  };
  if (p.K <= 3 * kSweep) return run(1, row_kernel<W, X, Y, 1, 3>);
  if (p.K <= 6 * kSweep) return run(1, row_kernel<W, X, Y, 1, 6>);
  run(1, row_kernel<W, X, Y, 1, 10>);
}

}  // namespace

void multiply_row(Stream& stream, const char* name, const LinearArgs& a, CBuf weight,
                  int64_t weight_stride) noexcept {
  const DType w = weight.dtype, x = a.x.dtype;
  const Row p = {a.N, a.K, weight_stride, a.bias.as<float>(), a.accumulate};
  with_type(a.y.dtype, [&]<class Y>() {
    if (w == DType::kF16) {
      launch_row(stream, name, p, weight.as<f16>(), a.x.as<f16>(), a.y.as<Y>());
    } else if (x == DType::kBF16) {
      launch_row(stream, name, p, weight.as<bf16>(), a.x.as<bf16>(), a.y.as<Y>());
    } else {
      launch_row(stream, name, p, weight.as<bf16>(), a.x.as<float>(), a.y.as<Y>());
    }
  });
}

void multiply_normed_row(Stream& stream, const char* name, const NormLinearArgs& a, CBuf weight,
                         int64_t weight_stride) noexcept {
  const LinearArgs& product = a.product;
  const RmsNormArgs& norm = a.norm;
  const Row p = {product.N, product.K, weight_stride, product.bias.as<float>(), product.accumulate};
  const Norm n = {norm.residual.as<float>(), norm.weight.as<float>(), norm.residual_out.as<float>(),
                  static_cast<float>(norm.eps)};
  with_type(product.y.dtype, [&]<class Y>() {
    with_training_type(norm.x.dtype, [&]<class X>() {
      const auto run = [&](int rows, auto* kernel) {
        launch_early(stream, name, kernel, blocks_of(p.N, rows), dim3(kWarps * kWarp), 0, p, n,
                     weight.as<bf16>(), norm.x.as<X>(), product.y.as<Y>());
      };
      if (p.K <= 3 * kSweep) return run(4, normed_row_kernel<bf16, X, Y, 4, 3>);
      run(2, normed_row_kernel<bf16, X, Y, 2, 4>);
    });
  });
}

}  // namespace mamba::cuda
