// SPDX-License-Identifier: Apache-2.0
// sample for the CPU: the reference, at 0.8 ms for 50280 tokens (top_k 50: 1.4 ms, Zen 4).
#include "kernels/sample.h"

namespace mamba::ref {
void sample(Stream& stream, const SampleArgs& a) noexcept;
}

namespace mamba::MAMBA_ISA {

void sample(Stream& stream, const SampleArgs& a) noexcept { ref::sample(stream, a); }

}  // namespace mamba::MAMBA_ISA
