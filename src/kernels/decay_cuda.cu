// SPDX-License-Identifier: Apache-2.0
// decay for CUDA: a thread for an element.
#include "kernels/cuda.cuh"
#include "kernels/decay.h"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    decay_kernel(int64_t E, int64_t N, const float* A_log, float* A_t) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < E * N) A_t[i] = -expf(A_log[i % E * N + i / E]);
}

__global__ void __launch_bounds__(kThreads)
    decay_backward_kernel(int64_t E, int64_t N, const float* dA_t, const float* A_t,
                          float* dA_log) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < E * N) dA_log[i % E * N + i / E] += __fmul_rn(dA_t[i], A_t[i]);
}

dim3 blocks(int64_t count) { return dim3(static_cast<unsigned>(ceil_div(count, kThreads))); }

}  // namespace

void decay_forward(Stream& stream, const DecayArgs& a) noexcept {
  launch(stream, "decay_forward", decay_kernel, blocks(a.E * a.N), dim3(kThreads), 0, a.E, a.N,
         a.A_log.as<float>(), a.A_t.as<float>());
}

void decay_backward(Stream& stream, const DecayBackwardArgs& a) noexcept {
  launch(stream, "decay_backward", decay_backward_kernel, blocks(a.E * a.N), dim3(kThreads), 0, a.E,
         a.N, a.dA_t.as<float>(), a.A_t.as<float>(), a.dA_log.as<float>());
}

}  // namespace mamba::cuda
