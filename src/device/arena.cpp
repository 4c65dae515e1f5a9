// SPDX-License-Identifier: Apache-2.0
// Aligned memory.
#include "device/arena.h"

namespace mamba {

AlignedBlock::AlignedBlock(int64_t bytes, const char* purpose, DeviceMemory& memory)
    : data_(memory.allocate(bytes, purpose), ReleaseMemory{&memory}), size_(bytes) {}

}  // namespace mamba
