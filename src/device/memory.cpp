// SPDX-License-Identifier: Apache-2.0
// Huge pages and the size of main memory.
#include "device/memory.h"

#include <sys/mman.h>
#include <unistd.h>

namespace mamba {

void prefer_huge_pages(void* data, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), page = kHugePage;
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t end = (begin + static_cast<uintptr_t>(bytes)) / page * page;
  // Where the system has none, small pages serve as well.
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

double machine_bytes() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

}  // namespace mamba
