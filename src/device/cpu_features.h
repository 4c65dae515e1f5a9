// SPDX-License-Identifier: Apache-2.0
// What this CPU and process can do.
#pragma once

#include <string>

namespace mamba {

struct CpuFeatures {
  bool avx2 = false;         // with FMA, F16C, BMI2
  bool avx512 = false;       // F, BW, CD, DQ, VL (x86-64-v4)
  bool avx512_bf16 = false;  // with VNNI
  bool amx = false;          // tiles with bf16 (used by oneDNN alone)
};

// Read once from the CPU and the operating system.
const CpuFeatures& cpu_features();
// The model name of /proc/cpuinfo, or "unknown CPU".
std::string cpu_model_name();
// Physical cores in this process's affinity mask, at least 1.
int physical_cores();
// Binds thread i of OpenMP's teams, the caller being the first, to the i-th physical core of this
// process, for good. threads: 0 means one a core. False, and nothing done, where there are fewer
// cores than threads or OpenMP binds threads itself (OMP_PROC_BIND).
bool pin_threads(int threads);

}  // namespace mamba
