// SPDX-License-Identifier: Apache-2.0
// The product of one row, with the norm in front of it or not. Small weights: a warp a row, or a
// few, all of which are on their way before the kernel in front has ended. Large ones stream.
#include "kernels/linear_row_cuda.cuh"
#include "kernels/linear_stream_cuda.cuh"

namespace mamba::cuda {
namespace {

using namespace row;

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

// Rows to kNormed sweeps; a warp has kRows rows of the weight.
template <class X, class Y, int kRows, int kNormed>
__global__ void __launch_bounds__(kWarps* kWarp)
    normed_row_kernel(Row p, Norm norm, const bf16* weight, const X* x, Y* y) {
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kRows;
  if (n >= p.N) return;
  NormedRows<kRows, kNormed> rows;
  rows.fetch(p, norm, weight, n);
  wait_for_previous();
  float sum[kRows] = {};
  rows.multiply(p, norm, x, n, sum);
  put_rows<kRows>(p, y, n, sum);
}

// ---- Large weights ----

// x as the block of a streaming kernel has it: p.K values of W in shared memory.
template <class X>
struct PlainSource {
  static constexpr int kBlocks = 3;  // on a multiprocessor
  const X* x;
  __device__ __forceinline__ void prepare(const Row&) const {}
  template <class W>
  __device__ __forceinline__ void fill(const Row& p, W* row) const {
    constexpr int kAtOnce = sizeof(X) == 4 ? 2 : 4;
    using Values = Vector<X, kEach>;
    const int K = static_cast<int>(p.K);
#pragma unroll 1
    for (int k = static_cast<int>(threadIdx.x) * kEach; k < K; k += kAtOnce * kPanel) {
      Values v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (k + i * kPanel < K) v[i] = *reinterpret_cast<const Values*>(x + k + i * kPanel);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (k + i * kPanel >= K) break;
        float wide[kEach];
#pragma unroll
        for (int j = 0; j < kEach; ++j) wide[j] = to_float(v[i].at[j]);
        store_n<kEach>(row + k + i * kPanel, wide);
      }
    }
  }
};

// Normed; the first block writes the residual.
template <class X, int panels>
struct NormedSource {
  static constexpr int kBlocks = panels <= 2 ? 3 : 2;
  const X* x;
  Norm norm;
  __device__ __forceinline__ void prepare(const Row& p) const {
    if (norm.weight == nullptr) return;
    for (int64_t k = threadIdx.x * kEach; k < p.K; k += kPanel) {
      asm volatile("prefetch.global.L1 [%0];" ::"l"(norm.weight + k));
    }
  }
  template <class W>
  __device__ __forceinline__ void fill(const Row& p, W* row) const {
    __shared__ float shared[kStreamWarps];
    const int K = static_cast<int>(p.K), mine = static_cast<int>(threadIdx.x) * kEach;
    float r[panels][kEach], squares = 0;
#pragma unroll
    for (int i = 0; i < panels; ++i) {
      const int k = mine + i * kPanel;
      if (k >= K) continue;
      load_n<kEach>(x + k, r[i]);
      if (norm.residual == nullptr) continue;
      float more[kEach];
      load_n<kEach>(norm.residual + k, more);
#pragma unroll
      for (int j = 0; j < kEach; ++j) r[i][j] += more[j];
    }
#pragma unroll
    for (int i = 0; i < panels; ++i) {
      if (mine + i * kPanel >= K) continue;
#pragma unroll
      for (int j = 0; j < kEach; ++j) squares = fmaf(r[i][j], r[i][j], squares);
    }
    squares = block_sum<kStreamThreads>(squares, shared);
    const float s = 1.0f / sqrtf(squares / static_cast<float>(p.K) + norm.eps);
#pragma unroll
    for (int i = 0; i < panels; ++i) {
      const int k = mine + i * kPanel;
      if (k >= K) continue;
      if (blockIdx.x == 0) store_n<kEach>(norm.residual_out + k, r[i]);
      float scale[kEach];
#pragma unroll
      for (int j = 0; j < kEach; ++j) scale[j] = 1;
      if (norm.weight != nullptr) load_n<kEach>(norm.weight + k, scale);
#pragma unroll
      for (int j = 0; j < kEach; ++j) r[i][j] *= s * scale[j];
      store_n<kEach>(row + k, r[i]);
    }
  }
};

// ---- Host ----

dim3 blocks_of(int64_t N, int rows) {
  return dim3(static_cast<unsigned>(ceil_div(N, kWarps * rows)));
}

template <class W, class X, class Y>
void launch_row(Stream& stream, const char* name, const Row& p, const W* weight, const X* x, Y* y) {
  const auto run = [&](int rows, auto* kernel) {
    launch_early(stream, name, kernel, blocks_of(p.N, rows), dim3(kWarps * kWarp), 0, p, weight, x,
                 y);
  };
  if (is_streamed(p)) return launch_stream(stream, name, p, weight, PlainSource<X>{x}, y);
  if (p.K <= 3 * kSweep) return run(1, row_kernel<W, X, Y, 1, 3>);
  if (p.K <= 6 * kSweep) return run(1, row_kernel<W, X, Y, 1, 6>);
  run(1, row_kernel<W, X, Y, 1, 10>);
}

}  // namespace

void multiply_row(Stream& stream, const char* name, const LinearArgs& a, CBuf weight,
                  int64_t weight_stride) noexcept {
  const DType w = weight.dtype, x = a.x.dtype;
  const Row p = row_of(a, weight_stride);
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
  const Row p = row_of(product, weight_stride);
  const Norm n = norm_of(norm);
  with_type(product.y.dtype, [&]<class Y>() {
    with_training_type(norm.x.dtype, [&]<class X>() {
      const auto run = [&](int rows, auto* kernel) {
        launch_early(stream, name, kernel, blocks_of(p.N, rows), dim3(kWarps * kWarp), 0, p, n,
                     weight.as<bf16>(), norm.x.as<X>(), product.y.as<Y>());
      };
      if (p.K > kNormedByWarps || is_streamed(p)) {
        const auto stream_of = [&]<int panels>() {
          launch_stream(stream, name, p, weight.as<bf16>(),
                        NormedSource<X, panels>{norm.x.as<X>(), n}, product.y.as<Y>());
        };
        return p.K <= 2 * kPanel ? stream_of.template operator()<2>()
                                 : stream_of.template operator()<kPanels>();
      }
      if (p.K <= 3 * kSweep) return run(4, normed_row_kernel<X, Y, 4, 3>);
      run(2, normed_row_kernel<X, Y, 2, 4>);
    });
  });
}

}  // namespace mamba::cuda
