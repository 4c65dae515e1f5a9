// SPDX-License-Identifier: Apache-2.0
// gate for CUDA: elementwise, 16 or more bytes a thread and buffer.
#include "kernels/gate.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridY = 65535;

// All buffers of a call have one type.
template <class T, int vec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(int64_t rows, int64_t dim, const T* a, int64_t a_stride, const T* z,
                   int64_t z_stride, T* y, int64_t y_stride) {
  wait_for_previous();
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vec;
  if (c >= dim) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float av[vec], zv[vec];
    load_n<vec>(a + row * a_stride + c, av);
    load_n<vec>(z + row * z_stride + c, zv);
#pragma unroll
    for (int i = 0; i < vec; ++i) av[i] *= zv[i] * sigmoid<T>(zv[i]);
    store_n<vec>(y + row * y_stride + c, av);
  }
}

template <class T, int vec>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(int64_t rows, int64_t dim, const T* a, int64_t a_stride, const T* z,
                    int64_t z_stride, const T* dy, int64_t dy_stride, T* da, int64_t da_stride,
                    T* dz, int64_t dz_stride) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vec;
  if (c >= dim) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float av[vec], zv[vec], g[vec];
    load_n<vec>(a + row * a_stride + c, av);
    load_n<vec>(z + row * z_stride + c, zv);
    load_n<vec>(dy + row * dy_stride + c, g);
#pragma unroll
    for (int i = 0; i < vec; ++i) {
      const float s = sigmoid<T>(zv[i]);
      av[i] = g[i] * av[i] * s * (1 + zv[i] * (1 - s));
      g[i] *= zv[i] * s;
    }
    store_n<vec>(da + row * da_stride + c, g);
    store_n<vec>(dz + row * dz_stride + c, av);
  }
}

template <int vec>
dim3 grid_of(int64_t rows, int64_t dim) {
  return dim3(static_cast<unsigned>(ceil_div(dim, kThreads * vec)),
              static_cast<unsigned>(rows < kMaxGridY ? rows : kMaxGridY));
}

// Calls body.operator()<elements of a vector>().
template <class T, class Body>
void with_vectors(bool aligned, Body&& body) {
  if (aligned) {
    body.template operator()<static_cast<int>(16 / sizeof(T))>();
  } else {
    body.template operator()<1>();
  }
}

}  // namespace

void gate_forward(Stream& stream, const GateArgs& a) noexcept {
  with_type(a.a.dtype, [&]<class T>() {
    const bool aligned = a.dim * sizeof(T) % 16 == 0 && rows_aligned(a.a, a.a_stride, 16) &&
                         rows_aligned(a.z, a.z_stride, 16) && rows_aligned(a.y, a.y_stride, 16);
    with_vectors<T>(aligned, [&]<int vec>() {
      launch_early(stream, "gate_forward", forward_kernel<T, vec>, grid_of<vec>(a.rows, a.dim),
                   dim3(kThreads), 0, a.rows, a.dim, a.a.as<T>(), a.a_stride, a.z.as<T>(),
                   a.z_stride, a.y.as<T>(), a.y_stride);
    });
  });
}

void gate_backward(Stream& stream, const GateBackwardArgs& a) noexcept {
  with_training_type(a.a.dtype, [&]<class T>() {
    const bool aligned = a.dim * sizeof(T) % 16 == 0 && rows_aligned(a.a, a.a_stride, 16) &&
                         rows_aligned(a.z, a.z_stride, 16) && rows_aligned(a.dy, a.dy_stride, 16) &&
                         rows_aligned(a.da, a.da_stride, 16) && rows_aligned(a.dz, a.dz_stride, 16);
    with_vectors<T>(aligned, [&]<int vec>() {
      launch(stream, "gate_backward", backward_kernel<T, vec>, grid_of<vec>(a.rows, a.dim),
             dim3(kThreads), 0, a.rows, a.dim, a.a.as<T>(), a.a_stride, a.z.as<T>(), a.z_stride,
             a.dy.as<T>(), a.dy_stride, a.da.as<T>(), a.da_stride, a.dz.as<T>(), a.dz_stride);
    });
  });
}

}  // namespace mamba::cuda
