// SPDX-License-Identifier: Apache-2.0
// The two limits that the other benchmarks compare with.
#include "bench/roofline.h"

#include <algorithm>

#include "bench/machine.h"

namespace mamba {

Limits measure_limits(const std::string& kernels, int threads) {
  constexpr int64_t kReadBytes = int64_t{256} << 20;  // 8 times the last cache of a large core
  const int used = std::max(1, threads);
  return {read_rate(kernels, kReadBytes, used, 0.2),
          compute_rate(kernels, "f32", used, 0.1).gop_per_s};
}

}  // namespace mamba
