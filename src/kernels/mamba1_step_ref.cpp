// SPDX-License-Identifier: Apache-2.0
// mamba1_step: the specification is that of its parts, one after another.
#include "kernels/step_sequence.h"

namespace mamba::MAMBA_ISA {

void mamba1_step(Stream& stream, const Mamba1StepArgs& a) noexcept {
  only_in_sequence(ref_kernels(), stream, a);
}

}  // namespace mamba::MAMBA_ISA
