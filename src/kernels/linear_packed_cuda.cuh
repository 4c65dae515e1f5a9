// SPDX-License-Identifier: Apache-2.0
// Packed weights on a CUDA device: linear_cuda.cu has the plain matrix in rows of whole 16 bytes,
// linear_q_cuda.cu the blocks as files have them.
#pragma once

#include <stdlib.h>

#include "kernels/cuda.cuh"
#include "kernels/linear_packed.h"

namespace mamba::cuda {

constexpr int32_t kPackedOnCuda = -2016;  // PackedLinear::panel of these layouts

inline int64_t packed_stride(const PackedLinear& packed) { return (packed.K + 7) / 8 * 8; }

// Records a failure where `packed` is of another shape or backend.
inline bool expect_packed(Stream& stream, const char* name, const PackedLinear& packed, int64_t N,
                          int64_t K) {
  const bool fits = packed.panel == kPackedOnCuda && packed.N == N && packed.K == K;
  return expect_success(stream, name, fits ? cudaSuccess : cudaErrorInvalidValue);
}

// `packed` on the heap with packed.bytes of device memory as its data, or null and a recorded
// failure.
inline PackedLinear* new_packed(Stream& stream, const char* name, const PackedLinear& packed) {
  auto* made = static_cast<PackedLinear*>(malloc(sizeof(PackedLinear)));
  void* data = made == nullptr ? nullptr : stream.take(stream, packed.bytes);
  if (data == nullptr) {
    free(made);
    if (stream.failed == nullptr) stream.failed_bytes = packed.bytes;
    expect_success(stream, name, cudaErrorMemoryAllocation);
    return nullptr;
  }
  *made = packed;
  made->data = data;
  return made;
}

}  // namespace mamba::cuda
