// SPDX-License-Identifier: Apache-2.0
// sample for the CPU: the reference, at 1.0 ms for top_k 50, top_p and temperature over 50280
// tokens (bench kernel sample; EPYC).
#include "kernels/sample.h"

namespace mamba::ref {
void sample(Stream& stream, const SampleArgs& a) noexcept;
}

namespace mamba::MAMBA_ISA {

void sample(Stream& stream, const SampleArgs& a) noexcept { ref::sample(stream, a); }

}  // namespace mamba::MAMBA_ISA
