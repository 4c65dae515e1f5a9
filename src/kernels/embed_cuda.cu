// SPDX-License-Identifier: Apache-2.0
// embed for CUDA. The backward needs no sorting: the block of the first row with a token walks over
// the rows behind it and adds what belongs to its token, in their order.
#include "kernels/cuda.cuh"
#include "kernels/embed.h"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;
// Columns that a thread of the backward adds up in registers.
constexpr int kColumns = 4;
// Ids that a block of the backward looks at before it adds.
constexpr int kTile = 2048;

template <class W, class Y, int vec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(int64_t dim, const int32_t* ids, const W* weight, Y* y) {
  wait_for_previous();
  const int64_t row = blockIdx.x, id = ids[row];
  for (int64_t c = threadIdx.x * vec; c < dim; c += kThreads * vec) {
    float v[vec] = {};
    if (id >= 0) load_n<vec>(weight + id * dim + c, v);
    store_n<vec>(y + row * dim + c, v);
  }
}

// The places, in order, of `id` among the ids of rows [begin, begin + kTile) go to `places`;
// returns how many.
__device__ int find(const int32_t* ids, int64_t begin, int64_t rows, int32_t id, int* places,
                    int* counts) {
  constexpr int kPer = kTile / kThreads;
  const int64_t first = begin + threadIdx.x * kPer;
  unsigned mine = 0;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (first + i < rows && ids[first + i] == id) mine |= 1u << i;
  }
  if (!__syncthreads_or(mine != 0)) return 0;
  counts[threadIdx.x] = __popc(mine);
  __syncthreads();
  int before = 0, total = 0;
  for (int i = 0; i < kThreads; ++i) {
    if (i == static_cast<int>(threadIdx.x)) before = total;
    total += counts[i];
  }
  for (; mine != 0; mine &= mine - 1) {
    places[before++] = static_cast<int>(threadIdx.x) * kPer + __ffs(static_cast<int>(mine)) - 1;
  }
  __syncthreads();
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(int64_t rows, int64_t dim, const int32_t* ids, const T* dy, float* dweight) {
  __shared__ int places[kTile], counts[kThreads];
  const int64_t row = blockIdx.x;
  const int32_t id = ids[row];
  if (id < 0) return;
  for (int64_t begin = 0; begin < row; begin += kThreads) {
    const int64_t r = begin + threadIdx.x;
    if (__syncthreads_or(r < row && ids[r] == id)) return;  // a block before has this token
  }
  const int64_t c0 = static_cast<int64_t>(blockIdx.y) * kThreads * kColumns + threadIdx.x;
  float sum[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int64_t c = c0 + j * kThreads;
    sum[j] = c < dim ? dweight[id * dim + c] : 0;
  }
  for (int64_t begin = row; begin < rows; begin += kTile) {
    const int found = find(ids, begin, rows, id, places, counts);
#pragma unroll 4
    for (int i = 0; i < found; ++i) {
      const T* from = dy + (begin + places[i]) * dim;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int64_t c = c0 + j * kThreads;
        if (c < dim) sum[j] += load(from + c);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int64_t c = c0 + j * kThreads;
    if (c < dim) dweight[id * dim + c] = sum[j];
  }
}

}  // namespace

void embed_forward(Stream& stream, const EmbedArgs& a) noexcept {
  const bool vectors = a.dim % 4 == 0 &&
                       rows_aligned(a.weight, a.dim, 4 * dtype_size(a.weight.dtype)) &&
                       rows_aligned(a.y, a.dim, 4 * dtype_size(a.y.dtype));
  with_type(a.weight.dtype, [&]<class W>() {
    with_type(a.y.dtype, [&]<class Y>() {
      launch_early(stream, "embed_forward",
                   vectors ? forward_kernel<W, Y, 4> : forward_kernel<W, Y, 1>,
                   dim3(static_cast<unsigned>(a.rows)), dim3(kThreads), 0, a.dim,
                   a.ids.as<int32_t>(), a.weight.as<W>(), a.y.as<Y>());
    });
  });
}

void embed_backward(Stream& stream, const EmbedBackwardArgs& a) noexcept {
  const dim3 grid(static_cast<unsigned>(a.rows),
                  static_cast<unsigned>(ceil_div(a.dim, kThreads * kColumns)));
  with_training_type(a.dy.dtype, [&]<class T>() {
    launch(stream, "embed_backward", backward_kernel<T>, grid, dim3(kThreads), 0, a.rows, a.dim,
           a.ids.as<int32_t>(), a.dy.as<T>(), a.dweight.as<float>());
  });
}

}  // namespace mamba::cuda
