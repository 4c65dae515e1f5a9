// SPDX-License-Identifier: Apache-2.0
// Aligned memory.
#include "device/arena.h"

#include <cstring>

#include "device/memory.h"

namespace mamba {

AlignedBlock::AlignedBlock(int64_t bytes, const char* purpose) : size_(bytes) {
  const int64_t rounded = (bytes + 63) / 64 * 64;
  if (rounded == 0) return;
  void* p = std::aligned_alloc(64, static_cast<size_t>(rounded));
  if (p == nullptr) {
    fail(ErrorCode::kOutOfMemory,
         "[memory] expected {:.1f} MiB for {}, got none from the system; use a smaller batch or "
         "sequence length",
         static_cast<double>(rounded) / 1048576.0, purpose);
  }
  prefer_huge_pages(p, rounded);
  std::memset(p, 0, static_cast<size_t>(rounded));
  data_.reset(p);
}

}  // namespace mamba
