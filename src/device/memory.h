// SPDX-License-Identifier: Apache-2.0
// Huge pages, how much memory there is, and refusing what cannot fit before anything is allocated.
#pragma once

#include <cstdint>
#include <string>

namespace mamba {

constexpr int64_t kHugePage = 2 << 20;  // bytes

// Asks for huge pages where whole ones lie within; before the memory is first written.
void prefer_huge_pages(void* data, int64_t bytes);

// Bytes of main memory of this machine.
double machine_bytes();
// Throws out_of_memory unless `bytes` fit into this machine. where: a flag or a command; what:
// what needs them; advice: what to change.
void expect_memory(double bytes, const std::string& where, const std::string& what,
                   const std::string& advice);

}  // namespace mamba
