// SPDX-License-Identifier: Apache-2.0
// Blocks of a cluster (compute capability 9.0): barriers that count bytes, sums sent to each
// other's shared memory, and launches. Included by *_cuda.cu alone.
#pragma once

#include "kernels/mma.cuh"

namespace mamba::cuda {

constexpr int kMostCluster = 8;  // blocks of a cluster that every card takes

// In shared memory; a phase ends when `count` threads have arrived and all bytes are there.
using Barrier = unsigned long long;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// By all threads of all blocks, once each: after the wait all blocks have started, with barriers
// that were published before. Relaxed: a release would wait for all of memory.
__device__ __forceinline__ void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

__device__ __forceinline__ void start_barrier(Barrier* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
// By the thread that started barriers, before copies or other blocks use them.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive_at(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
__device__ __forceinline__ void arrive_and_expect(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Until the phase of this parity has ended.
__device__ __forceinline__ void wait_for(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The address in block `rank` of the cluster of what lies at p in this one.
__device__ __forceinline__ uint32_t address_in(const void* p, int rank) {
  uint32_t to;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(p)), "r"(rank));
  return to;
}
// Writes v there; its bytes count at the barrier of that block.
__device__ __forceinline__ void send(uint32_t to, uint32_t barrier, float4 v) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::
          "r"(to),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void send(uint32_t to, uint32_t barrier, float2 v) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(to),
      "f"(v.x), "f"(v.y), "r"(barrier)
      : "memory");
}

#endif

// launch_early() of clusters of `cluster` blocks, with as much shared memory as a block can have.
template <class... Params, class... Args>
void launch_clusters(Stream& stream, const char* name, void (*kernel)(Params...), dim3 grid,
                     dim3 block, size_t shared, int cluster, const Args&... args) {
  if (stream.failed != nullptr || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t kStatic = 4096;  // that a kernel may have beside
  if (shared + kStatic > kPlainShared &&
      !expect_success(stream, name,
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared)))) {
    return;
  }
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  if (stream.overlaps) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& size = attributes[config.numAttrs++];
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = static_cast<unsigned>(cluster);
    size.val.clusterDim.y = size.val.clusterDim.z = 1;
  }
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = cuda_stream(stream);
  config.attrs = attributes;
  expect_success(stream, name, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

}  // namespace mamba::cuda
