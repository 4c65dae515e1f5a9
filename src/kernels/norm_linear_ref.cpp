// SPDX-License-Identifier: Apache-2.0
// norm_linear: the specification is that of its parts, one after the other.
#include "kernels/step_sequence.h"

namespace mamba::MAMBA_ISA {

void norm_linear(Stream& stream, const NormLinearArgs& a) noexcept {
  only_in_sequence(ref_kernels(), stream, a);
}

}  // namespace mamba::MAMBA_ISA
