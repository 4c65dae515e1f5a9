// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured: reading memory, and f32 multiply-adds on each ISA.
#pragma once

#include <string>

namespace mamba {

struct Limits {
  double read_gb_per_s = 0;    // a buffer several times larger than the last cache, all threads
  double f32_gflop_per_s = 0;  // independent fused multiply-adds in registers, all threads
};

// `kernels` is the name of a table: "base", "avx2", "avx512", "avx512_bf16"; "ref" is measured as
// "base". Takes about half a second.
Limits measure_limits(const std::string& kernels, int threads);

}  // namespace mamba
