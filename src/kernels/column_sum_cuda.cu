// SPDX-License-Identifier: Apache-2.0
// column_sum for CUDA: sums of blocks of rows, added in order.
#include "kernels/column_sum.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    column_sum_kernel(int64_t rows, int64_t N, int64_t per_block, const T* x, int64_t stride,
                      float* partial) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= N) return;
  const int64_t begin = blockIdx.y * per_block;
  const int64_t end = begin + per_block < rows ? begin + per_block : rows;
  float sum = 0;
#pragma unroll 8
  for (int64_t row = begin; row < end; ++row) sum += load(x + row * stride + n);
  partial[blockIdx.y * N + n] = sum;
}

}  // namespace

void column_sum(Stream& stream, const ColumnSumArgs& a) noexcept {
  if (a.rows == 0 || a.N == 0) return;
  const RowBlocks blocks(a.rows);
  float* partial = stream.scratch<float>(blocks.count * a.N);
  if (partial == nullptr) return;
  with_training_type(a.x.dtype, [&]<class T>() {
    launch(
        stream, "column_sum", column_sum_kernel<T>,
        dim3(static_cast<unsigned>(ceil_div(a.N, kThreads)), static_cast<unsigned>(blocks.count)),
        dim3(kThreads), 0, a.rows, a.N, blocks.per_block, a.x.as<T>(), a.x_stride, partial);
  });
  add_partials(stream, "column_sum", partial, blocks.count, a.N, a.N, a.sums.as<float>());
}

}  // namespace mamba::cuda
