// SPDX-License-Identifier: Apache-2.0
// cross_entropy for CUDA: a block of threads a row, which it reads twice. Few enough rows are in
// work at a time that the second reading finds them in the cache.
#include "kernels/cross_entropy.h"
#include "kernels/cuda.cuh"

namespace mamba::cuda {
namespace {

// Rows longer than this are in work one a multiprocessor, so that those of a card (132 of 200 KB)
// fit its cache; a block asks for more than half of the shared memory to be alone. With four, the
// second reading of 2048 rows of 50280 f32 came from memory: 0.37 ms, and 0.27 so (H200).
constexpr int64_t kLongRow = 128 * 1024;
constexpr size_t kAloneShared = 120 * 1024;

struct Row {
  int64_t vocab, stride;
  const int32_t* targets;
  bool write_gradient;
  float scale;
  float* nll;
};

// Adds x to sum = sum exp(x - max); sums of nothing have max = -infinity.
template <int n>
__device__ __forceinline__ void add(const float (&x)[n], float& max, float& sum) {
  float most = max;
#pragma unroll
  for (int i = 0; i < n; ++i) most = fmaxf(most, x[i]);
  // -infinity - -infinity is none; a row of it has a sum of 0.
  const float zero = most == -INFINITY ? 0 : most;
  sum *= __expf(max - zero);
#pragma unroll
  for (int i = 0; i < n; ++i) sum += __expf(x[i] - zero);
  max = most;
}

template <class T, int vec, int kThreads>
__global__ void __launch_bounds__(kThreads) row_kernel(Row a, T* logits) {
  __shared__ float maxima[kThreads / kWarp], sums[kThreads / kWarp];
  logits += blockIdx.x * a.stride;
  const int32_t target = a.targets[blockIdx.x];
  const int64_t whole = a.vocab / vec * vec, step = kThreads * vec;
  if (target < 0) {
    if (threadIdx.x == 0) a.nll[blockIdx.x] = 0;
    const float zeros[vec] = {};
    if (!a.write_gradient) return;
    for (int64_t v = threadIdx.x * vec; v < whole; v += step) store_n<vec>(logits + v, zeros);
    for (int64_t v = whole + threadIdx.x; v < a.vocab; v += kThreads) store(logits + v, 0);
    return;
  }
  float max = -INFINITY, sum = 0;
#pragma unroll 4
  for (int64_t v = threadIdx.x * vec; v < whole; v += step) {
    float x[vec];
    load_n<vec>(logits + v, x);
    add(x, max, sum);
  }
  for (int64_t v = whole + threadIdx.x; v < a.vocab; v += kThreads) {
    const float x[1] = {load(logits + v)};
    add(x, max, sum);
  }
  float most = warp_max(max);
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = most;
  __syncthreads();
  for (int i = 0; i < kThreads / kWarp; ++i) most = fmaxf(most, maxima[i]);
  sum = block_sum<kThreads>(max == -INFINITY ? sum : sum * __expf(max - most), sums);
  const float at_target = load(logits + target);
  if (threadIdx.x == 0) {
    a.nll[blockIdx.x] = static_cast<float>(static_cast<double>(logf(sum)) + most - at_target);
  }
  if (!a.write_gradient) return;
  __syncthreads();  // the target was read before it is written
  const float share = a.scale / sum;
#pragma unroll 4
  for (int64_t v = threadIdx.x * vec; v < whole; v += step) {
    float x[vec];
    load_n<vec>(logits + v, x);
#pragma unroll
    for (int i = 0; i < vec; ++i) {
      x[i] = __expf(x[i] - most) * share;
      if (v + i == target) x[i] -= a.scale;
    }
    store_n<vec>(logits + v, x);
  }
  for (int64_t v = whole + threadIdx.x; v < a.vocab; v += kThreads) {
    const float x = __expf(load(logits + v) - most) * share;
    store(logits + v, v == target ? x - a.scale : x);
  }
}

}  // namespace

void cross_entropy(Stream& stream, const CrossEntropyArgs& a) noexcept {
  const Row row = {a.vocab,
                   a.logits_stride,
                   a.targets.as<int32_t>(),
                   a.write_gradient,
                   static_cast<float>(a.scale),
                   a.nll.as<float>()};
  // Without the second reading more blocks in work are better: 0.11 ms for 0.14.
  const bool alone = a.write_gradient && a.vocab * dtype_size(a.logits.dtype) > kLongRow;
  const dim3 grid(static_cast<unsigned>(a.rows));
  with_training_type(a.logits.dtype, [&]<class T>() {
    const auto start = [&]<int vec>() {
      if (alone) {
        launch(stream, "cross_entropy", row_kernel<T, vec, 1024>, grid, dim3(1024), kAloneShared,
               row, a.logits.as<T>());
      } else {
        launch(stream, "cross_entropy", row_kernel<T, vec, 512>, grid, dim3(512), 0, row,
               a.logits.as<T>());
      }
    };
    if (rows_aligned(a.logits, a.logits_stride, 16)) {
      start.template operator()<static_cast<int>(16 / sizeof(T))>();
    } else {
      start.template operator()<1>();
    }
  });
}

}  // namespace mamba::cuda
