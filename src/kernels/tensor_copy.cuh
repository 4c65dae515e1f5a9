// SPDX-License-Identifier: Apache-2.0
// Tiles of a matrix that the copy engine brings from global to shared memory (compute capability
// 9.0). Included by *_cuda.cu alone.
#pragma once

#include <cuda.h>

#include "kernels/cluster.cuh"

namespace mamba::cuda {

// A row of a tile: 128 bytes, whose 16-byte parts i lie at i ^ (row % 8).
constexpr int kTileColumns = 64;  // of 16 bits
constexpr int kTileRowBytes = 128;

// ---- Host ----

// Describes `rows` x `columns` of a 16-bit type, rows and data aligned to 16 bytes, in tiles of
// tile_rows x kTileColumns, zero beyond the matrix. False, and a failure recorded, where the driver
// cannot.
inline bool describe_tiles(Stream& stream, const char* name, CUtensorMap& map, const void* data,
                           int64_t rows, int64_t columns, int64_t stride, int tile_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                     &result);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    return reinterpret_cast<Encode>(result == cudaDriverEntryPointSuccess ? found : nullptr);
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t tile[] = {kTileColumns, static_cast<cuuint32_t>(tile_rows)};
  const cuuint32_t steps[] = {1, 1};
  const bool made =
      encode != nullptr &&
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(data), sizes, strides, tile,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  return expect_success(stream, name, made ? cudaSuccess : cudaErrorNotSupported);
}

// ---- Device ----

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// The tile from (row, column) on to `to`; its bytes count at `barrier`.
__device__ __forceinline__ void copy_tile(void* to, const CUtensorMap& map, int column, int row,
                                          Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
#endif

}  // namespace mamba::cuda
