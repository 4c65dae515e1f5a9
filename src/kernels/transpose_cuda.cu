// SPDX-License-Identifier: Apache-2.0
// transpose for CUDA: a thread for an element.
#include "kernels/cuda.cuh"
#include "kernels/transpose.h"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    transpose_kernel(int64_t rows, int64_t columns, const float* x, float* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < rows * columns) y[i] = x[i % rows * columns + i / rows];
}

}  // namespace

void transpose(Stream& stream, const TransposeArgs& a) noexcept {
  launch(stream, "transpose", transpose_kernel,
         dim3(static_cast<unsigned>(ceil_div(a.rows * a.columns, kThreads))), dim3(kThreads), 0,
         a.rows, a.columns, a.x.as<float>(), a.y.as<float>());
}

}  // namespace mamba::cuda
