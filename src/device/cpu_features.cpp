// SPDX-License-Identifier: Apache-2.0
// What this CPU and process can do.
#include "device/cpu_features.h"

#include <omp.h>
#include <sched.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <fstream>
#include <set>
#include <utility>
#include <vector>

namespace mamba {
namespace {

// The first line "key : value" of /proc/cpuinfo.
std::string cpuinfo_field(const std::string& key) {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    return line.substr(std::min(line.size(), colon + 2));
  }
  return "";
}

CpuFeatures detect() {
  CpuFeatures f;
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // clang 14 does not know "f16c" by name
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2") && f16c;
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  f.avx512_bf16 =
      f.avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  f.amx = cpuinfo_field("flags").find("amx_bf16") != std::string::npos;
#endif
  return f;
}

int read_int(const std::string& path) {
  std::ifstream in(path);
  int value = -1;
  in >> value;
  return value;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures kFeatures = detect();
  return kFeatures;
}

std::string cpu_model_name() {
  const std::string name = cpuinfo_field("model name");
  return name.empty() ? "unknown CPU" : name;
}

namespace {

// The first logical CPU of each physical core that this process may use, from before any thread was
// pinned.
const std::vector<int>& core_cpus() {
  static const std::vector<int> cpus = [] {
    std::vector<int> first;
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return first;
    std::set<std::pair<int, int>> cores;  // (package, core)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &mask)) continue;
      const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      const int core = read_int(base + "core_id");
      const bool fresh =
          core < 0 || cores.insert({read_int(base + "physical_package_id"), core}).second;
      if (fresh) first.push_back(cpu);
    }
    return first;
  }();
  return cpus;
}

}  // namespace

int physical_cores() {
  // With OMP_PLACES or OMP_PROC_BIND the caller's own mask is one place; OpenMP remembers them all.
  if (omp_get_num_places() > 0) return omp_get_num_places();
  return std::max(1, static_cast<int>(core_cpus().size()));
}

bool pin_threads(int threads) {
  const std::vector<int>& cpus = core_cpus();
  const int count = threads > 0 ? threads : physical_cores();
  if (omp_get_num_places() > 0 || count > static_cast<int>(cpus.size())) return false;
  std::atomic<bool> pinned = true;
#pragma omp parallel num_threads(count)
  {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus[static_cast<size_t>(omp_get_thread_num())], &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) pinned = false;
  }
  return pinned;
}

}  // namespace mamba
