// SPDX-License-Identifier: Apache-2.0
// A build without CUDA: there are no such devices.
#include "base/check.h"
#include "device/cuda.h"

namespace mamba::cuda {

Inventory inventory() {
  return {0, "this build has no CUDA (nvcc was not found, or MAMBA_CUDA=OFF)"};
}

std::shared_ptr<Connection> connect(int, const std::string& name, Stream&) {
  fail(ErrorCode::kDevice, "[device] '{}': {}", name, inventory().why_none);
}

const Kernels& kernels() { return ref_kernels(); }

bool share_host_memory(void*, int64_t) { return false; }

}  // namespace mamba::cuda
