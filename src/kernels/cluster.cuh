// SPDX-License-Identifier: Apache-2.0
// Clusters of blocks, which read each other's shared memory: from compute capability 9.0.
#pragma once

#include "kernels/cuda.cuh"

namespace mamba::cuda {

// Whether the card of `stream` has clusters.
inline bool has_clusters(const Stream& stream) { return stream.overlaps; }

// launch_early in clusters of `size` blocks along x, which divides grid.x.
template <class... Params, class... Args>
void launch_clusters(Stream& stream, const char* name, void (*kernel)(Params...), dim3 grid,
                     dim3 block, size_t shared, unsigned size, const Args&... args) {
  if (stream.failed != nullptr || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = size;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = cuda_stream(stream);
  config.attrs = attributes;
  config.numAttrs = 2;
  expect_success(stream, name, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// Whether blocks of `kernel` form clusters of 16, which not every card has.
template <class... Params>
bool fits_clusters_of_16(void (*kernel)(Params...), dim3 block, size_t shared) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = 16;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(16);
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const bool fits = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                         1) == cudaSuccess &&
                    cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess &&
                    clusters > 0;
  if (!fits) cudaGetLastError();
  return fits;
}

// What a thread of the cluster writes to shared memory before it arrives, others read after they
// have waited.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// *p of the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float load_of_block(const float* p, unsigned rank) {
  float v = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto own = static_cast<uint32_t>(__cvta_generic_to_shared(p));
  uint32_t at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(own), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
#endif
  return v;
}

}  // namespace mamba::cuda
