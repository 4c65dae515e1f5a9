// SPDX-License-Identifier: Apache-2.0
// mamba2_step: the specification is that of its parts, one after another.
#include "kernels/step_sequence.h"

namespace mamba::MAMBA_ISA {

void mamba2_step(Stream& stream, const Mamba2StepArgs& a) noexcept {
  only_in_sequence(ref_kernels(), stream, a);
}

}  // namespace mamba::MAMBA_ISA
