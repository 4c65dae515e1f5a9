// SPDX-License-Identifier: Apache-2.0
// What a kernel call runs on: threads, scratch memory and a sticky error. Plain data, so that files
// compiled for one ISA may include it.
#pragma once

#include "base/bf16.h"
#include "mamba/dtype.h"

namespace mamba {

struct Choices;  // kernels/choices.h

struct Stream {
  int threads = 1;
  // Scratch of the running kernel, 64-byte aligned; grown by `grow` to its high-water mark, so a
  // steady state allocates nothing. Valid until the kernel returns; kernels do not nest scratch.
  void* scratch_data = nullptr;
  int64_t scratch_bytes = 0;
  bool (*grow)(Stream&, int64_t bytes) = nullptr;  // false and `failed` set when memory is short
  // Memory that lives longer, for weights: 64-byte aligned, null when memory is short.
  void* (*take)(Stream&, int64_t bytes) = nullptr;
  void (*give)(Stream&, void*) = nullptr;
  // First failure, with the name of the kernel; Device::sync() throws it.
  const char* failed = nullptr;
  int64_t failed_bytes = 0;          // that it asked for, where memory was short
  const char* failed_why = nullptr;  // what the system said, or null
  void* owner = nullptr;             // the Device
  // On a CUDA device: its cudaStream_t, on which everything is enqueued (scratch is memory of that
  // device), and its MatrixLibrary (kernels/matrix_library.h), or null.
  void* cuda = nullptr;
  void* products = nullptr;
  Choices* choices = nullptr;  // which kernels to take; null: those of every device
  bool overlaps = false;       // kernels may start before the one in front of them has ended

  // `count` elements of T, or null (then the kernel returns at once).
  template <class T>
  MAMBA_INLINE T* scratch(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > scratch_bytes && !grow(*this, bytes)) return nullptr;
    return static_cast<T*>(scratch_data);
  }
};

// What a call costs: for GB/s, GFLOP/s and the share of the machine's limits.
struct Cost {
  double bytes = 0;  // moved to and from memory, each tensor once
  double flops = 0;  // one multiply-add = 2, one exp = 1
};

}  // namespace mamba
