// SPDX-License-Identifier: Apache-2.0
// Main memory: huge pages, and how much there is.
#pragma once

#include <cstdint>

namespace mamba {

constexpr int64_t kHugePage = 2 << 20;  // bytes

// Asks for huge pages where whole ones lie within; before the memory is first written.
void prefer_huge_pages(void* data, int64_t bytes);

// Bytes of main memory of this machine.
double machine_bytes();

}  // namespace mamba
