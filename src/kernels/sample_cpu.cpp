// SPDX-License-Identifier: Apache-2.0
// sample for the CPU: the reference, a thread a row, at 1.0 ms a row for top_k 50, top_p and
// temperature over 50280 tokens (bench kernel sample; EPYC).
#include "kernels/sample.h"

namespace mamba::ref {
void sample(Stream& stream, const SampleArgs& args) noexcept;
}

namespace mamba::MAMBA_ISA {

void sample(Stream& stream, const SampleArgs& args) noexcept {
#pragma omp parallel for num_threads(stream.threads) schedule(dynamic, 1) if (args.count > 1)
  for (int64_t r = 0; r < args.count; ++r) {
    Stream own;  // for its failure
    ref::sample(own, {1, args.rows + r});
    if (own.failed == nullptr) continue;
#pragma omp critical
    stream.failed = own.failed, stream.failed_bytes = own.failed_bytes;
  }
}

}  // namespace mamba::MAMBA_ISA
