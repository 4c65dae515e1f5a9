// SPDX-License-Identifier: Apache-2.0
// mamba1_step on the CPU: its parts one after another.
#include "kernels/step_sequence.h"

namespace mamba::MAMBA_ISA {

void mamba1_step(Stream& stream, const Mamba1StepArgs& a) noexcept {
  only_in_sequence(MAMBA_TABLE_OF(MAMBA_ISA)(), stream, a);
}

}  // namespace mamba::MAMBA_ISA
