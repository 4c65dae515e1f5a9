// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured: reading from each level of memory, and multiply-adds
// of each type, by numbers of threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba {

struct ReadRate {
  std::string level;  // "L2", "L3", "memory"
  int threads = 0;
  int64_t bytes = 0;  // read again and again by all threads together
  double gb_per_s = 0;
};

struct ComputeRate {
  std::string type;         // "f32", "bf16", "int8": of the factors
  std::string instruction;  // "vfmadd (zmm)", "vdpbf16ps", ...
  int threads = 0;
  double gop_per_s = 0;  // a multiply-add counts as two
};

struct MachineLimits {
  int64_t l2_bytes = 0, l3_bytes = 0;  // of a core; of all
  std::vector<ReadRate> reads;
  std::vector<ComputeRate> computes;

  // The best of all numbers of threads: fewer are a limit for more as well. 0 where the CPU has no
  // instruction for the type.
  double read(const std::string& level) const;
  double compute(const std::string& type) const;
};

// Each figure is the best of the runs of about `seconds`. `kernels` is the name of a table, no
// wider vectors than whose are used: "base", "avx2", "avx512", "avx512_bf16"; "ref" is measured as
// "base".
MachineLimits measure_machine(const std::string& kernels, const std::vector<int>& threads,
                              double seconds);

// The larger of each figure of two measurements of the same machine.
MachineLimits best_of(MachineLimits a, const MachineLimits& b);

// The best rate of a read of `bytes` of fresh memory, in GB/s.
double read_rate(const std::string& kernels, int64_t bytes, int threads, double seconds);
// Of one type, in GOP/s; 0 where the table has no such instruction.
ComputeRate compute_rate(const std::string& kernels, const std::string& type, int threads,
                         double seconds);

}  // namespace mamba
