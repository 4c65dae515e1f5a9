// SPDX-License-Identifier: Apache-2.0
// Copies from global to shared memory that run behind the computation (cp.async), and how a block
// of rows is copied so. Included by *_cuda.cu alone.
#pragma once

#include "kernels/cuda.cuh"

namespace mamba::cuda {

// 16 bytes, both sides aligned; zeros where not `valid` (nothing is read then).
__device__ __forceinline__ void copy16_async(void* shared, const void* global, bool valid = true) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until all but the `pending` latest groups of this thread have arrived.
template <int pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace mamba::cuda
