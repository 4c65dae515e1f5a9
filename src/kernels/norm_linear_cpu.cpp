// SPDX-License-Identifier: Apache-2.0
// norm_linear on the CPU: its parts one after the other.
#include "kernels/step_sequence.h"

namespace mamba::MAMBA_ISA {

void norm_linear(Stream& stream, const NormLinearArgs& a) noexcept {
  only_in_sequence(MAMBA_TABLE_OF(MAMBA_ISA)(), stream, a);
}

}  // namespace mamba::MAMBA_ISA
