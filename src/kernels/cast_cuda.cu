// SPDX-License-Identifier: Apache-2.0
// cast for CUDA: 8 elements a thread, in vectors where both sides are aligned for them.
#include "kernels/cast.h"
#include "kernels/cuda.cuh"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256, kEach = 8;

// The elements behind the last whole vector go one by one to the first threads.
template <class X, class Y, int vec>
__global__ void __launch_bounds__(kThreads) cast_kernel(int64_t count, const X* x, Y* y) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t whole = count / vec * vec;
  const int64_t i = thread * vec;
  if (i < whole) {
    float v[vec];
    load_n<vec>(x + i, v);
    store_n<vec>(y + i, v);
  }
  if (thread < count - whole) store(y + whole + thread, load(x + whole + thread));
}

}  // namespace

void cast(Stream& stream, const CastArgs& a) noexcept {
  const bool vectors = is_aligned(a.x.data, 16) && is_aligned(a.y.data, 16);
  const dim3 grid(
      static_cast<unsigned>(ceil_div(ceil_div(a.count, vectors ? kEach : 1), kThreads)));
  with_training_type(a.x.dtype, [&]<class X>() {
    with_training_type(a.y.dtype, [&]<class Y>() {
      launch(stream, "cast", vectors ? cast_kernel<X, Y, kEach> : cast_kernel<X, Y, 1>, grid,
             dim3(kThreads), 0, a.count, a.x.as<X>(), a.y.as<Y>());
    });
  });
}

}  // namespace mamba::cuda
