// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels share: launches that record errors, loads and stores as f32, sums in a
// fixed order and the choice of a type at run time. Included by *_cuda.cu alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/buf.h"
#include "base/f16.h"
#include "device/stream.h"

namespace mamba::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// What a block may use of shared memory without asking for more.
constexpr size_t kPlainShared = 48 * 1024;

// ---- Host: launches ----

inline cudaStream_t cuda_stream(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.cuda);
}

// Records a failure of `kernel` unless there is one already; true where there was none.
inline bool expect_success(Stream& stream, const char* kernel, cudaError_t error) {
  if (error == cudaSuccess) return true;
  if (stream.failed == nullptr) {
    stream.failed = kernel;
    stream.failed_why = cudaGetErrorString(error);
  }
  return false;
}

// A launch asked for as dynamic shared memory, beyond 48 KiB too. An empty grid launches nothing.
// Nothing is launched after a failure: what it would read was not computed.
template <class... Params, class... Args>
void launch(Stream& stream, const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
            size_t shared, const Args&... args) {
  if (stream.failed != nullptr || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > kPlainShared &&
      !expect_success(stream, name,
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared)))) {
    return;
  }
  kernel<<<grid, block, shared, cuda_stream(stream)>>>(static_cast<Params>(args)...);
  expect_success(stream, name, cudaGetLastError());
}

// The same, for a kernel that calls wait_for_previous() before it touches what others write, and
// where its predecessor may be one that lets it start early: it may then begin beside it.
template <class... Params, class... Args>
void launch_early(Stream& stream, const char* name, void (*kernel)(Params...), dim3 grid,
                  dim3 block, size_t shared, const Args&... args) {
  if (!stream.overlaps || shared > kPlainShared) {
    return launch(stream, name, kernel, grid, block, shared, args...);
  }
  if (stream.failed != nullptr || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = cuda_stream(stream);
  config.attrs = &early;
  config.numAttrs = 1;
  expect_success(stream, name, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// Calls body.operator()<float>(), <bf16>() or <f16>().
template <class Body>
void with_type(DType dtype, Body&& body) {
  if (dtype == DType::kBF16) {
    body.template operator()<bf16>();
  } else if (dtype == DType::kF16) {
    body.template operator()<f16>();
  } else {
    body.template operator()<float>();
  }
}

// The same for training, which has no f16.
template <class Body>
void with_training_type(DType dtype, Body&& body) {
  if (dtype == DType::kBF16) {
    body.template operator()<bf16>();
  } else {
    body.template operator()<float>();
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether p is null or a multiple of `bytes`.
inline bool is_aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}
// Whether rows of `stride` elements of b all begin at multiples of `bytes` (null buffers do).
inline bool rows_aligned(CBuf b, int64_t stride, int64_t bytes) {
  return !b || (is_aligned(b.data, bytes) && stride * dtype_size(b.dtype) % bytes == 0);
}

// ---- Device: order of kernels ----

// Lets the kernel behind this one start, which waits in the same way, then returns when everything
// that the kernels before this one wrote is there. Several kernels may be waiting in a row, so what
// one of them writes must not be read before it: weights alone may. What else will be read can be
// brought nearer by prefetch().
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void prefetch(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// ---- Device: elements as f32 ----

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) {
  return __uint_as_float(static_cast<uint32_t>(v.bits) << 16);
}
__device__ __forceinline__ float to_float(f16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}

// To the nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float v) {
  f16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}

template <class T>
__device__ __forceinline__ float load(const T* p) {
  return to_float(*p);
}
template <class T>
__device__ __forceinline__ void store(T* p, float v) {
  *p = from_float<T>(v);
}

// n elements that one instruction moves where n * sizeof(T) is 4, 8 or 16.
template <class T, int n>
struct alignas(sizeof(T) * n) Vector {
  T at[n];
};

// v[i] = p[i], i < n; p aligned to min(16, n * sizeof(T)) bytes.
template <int n, class T>
__device__ __forceinline__ void load_n(const T* p, float (&v)[n]) {
  constexpr int kStep = n * sizeof(T) > 16 ? 16 / sizeof(T) : n;
#pragma unroll
  for (int i = 0; i < n; i += kStep) {
    const Vector<T, kStep> raw = *reinterpret_cast<const Vector<T, kStep>*>(p + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) v[i + j] = to_float(raw.at[j]);
  }
}
template <int n, class T>
__device__ __forceinline__ void store_n(T* p, const float (&v)[n]) {
  constexpr int kStep = n * sizeof(T) > 16 ? 16 / sizeof(T) : n;
#pragma unroll
  for (int i = 0; i < n; i += kStep) {
    Vector<T, kStep> raw;
#pragma unroll
    for (int j = 0; j < kStep; ++j) raw.at[j] = from_float<T>(v[i + j]);
    *reinterpret_cast<Vector<T, kStep>*>(p + i) = raw;
  }
}

// 1 / (1 + exp(-z)): within 4 ulp for f32, and within 2^-18 where the result is rounded to 16 bits.
template <class T = float>
__device__ __forceinline__ float sigmoid(float z) {
  const float e = sizeof(T) == 4 ? expf(-z) : __expf(-z);
  return __fdividef(1.0f, 1.0f + e);
}

// ---- Device: sums in an order that the shape alone decides ----

// Every lane gets the sum (the same bits) over groups of `width` neighbouring lanes.
template <int width = kWarp, class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}
template <int width = kWarp>
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2) {
    v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, offset));
  }
  return v;
}

// Every thread of a block of `threads` (a multiple of 32) gets the sum. `shared` has threads / 32
// elements, and may be used again after the call.
template <int threads, class T>
__device__ __forceinline__ T block_sum(T v, T* shared) {
  v = warp_sum(v);
  if constexpr (threads > kWarp) {
    __syncthreads();
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = v;
    __syncthreads();
    v = shared[0];
#pragma unroll
    for (int i = 1; i < threads / kWarp; ++i) v += shared[i];
  }
  return v;
}

}  // namespace mamba::cuda
