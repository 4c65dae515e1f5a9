// SPDX-License-Identifier: Apache-2.0
// The size of main memory.
#include "device/memory.h"

#include <unistd.h>

#include "base/check.h"

namespace mamba {

double machine_bytes() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

void expect_memory(double bytes, const std::string& where, const std::string& what,
                   const std::string& advice) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  if (bytes <= machine_bytes()) return;
  fail(ErrorCode::kOutOfMemory,
       "[{}] expected to need at most the {:.1f} GiB of this machine, got {:.1f} GiB for {}; {}",
       where, machine_bytes() / kGiB, bytes / kGiB, what, advice);
}

}  // namespace mamba
