// SPDX-License-Identifier: Apache-2.0
// grad_norm for CUDA: sums of fixed blocks in f64, then of the blocks in a fixed order.
// sum_of_squares is memory of the device.
#include "kernels/cuda.cuh"
#include "kernels/grad_norm.h"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlock = 16384;  // elements

template <class T, int vec>
__global__ void __launch_bounds__(kThreads)
    partial_kernel(int64_t count, const T* __restrict__ g, double* partial) {
  __shared__ double shared[kThreads / kWarp];
  const int64_t begin = blockIdx.x * kBlock;
  const int64_t end = begin + kBlock < count ? begin + kBlock : count;
  double sum[vec] = {};
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x * vec; i < end; i += kThreads * vec) {
    float v[vec];
    if (i + vec <= end) {
      load_n<vec>(g + i, v);
    } else {
#pragma unroll
      for (int j = 0; j < vec; ++j) v[j] = i + j < end ? load(g + i + j) : 0;
    }
#pragma unroll
    for (int j = 0; j < vec; ++j) sum[j] += static_cast<double>(v[j]) * static_cast<double>(v[j]);
  }
#pragma unroll
  for (int j = 1; j < vec; ++j) sum[0] += sum[j];
  const double total = block_sum<kThreads>(sum[0], shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads)
    total_kernel(int64_t blocks, const double* partial, double* out) {
  __shared__ double shared[kThreads / kWarp];
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) sum += partial[i];
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace

void grad_norm(Stream& stream, const GradNormArgs& a) noexcept {
  const int64_t blocks = ceil_div(a.count, kBlock);
  double* partial = stream.scratch<double>(blocks + 1);
  if (partial == nullptr) return;
  with_training_type(a.g.dtype, [&]<class T>() {
    launch(stream, "grad_norm",
           is_aligned(a.g.data, 4 * sizeof(T)) ? partial_kernel<T, 4> : partial_kernel<T, 1>,
           dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, a.count, a.g.as<T>(), partial);
  });
  launch(stream, "grad_norm", total_kernel, dim3(1), dim3(kThreads), 0, blocks, partial,
         a.sum_of_squares);
}

}  // namespace mamba::cuda
