// SPDX-License-Identifier: Apache-2.0
// norm_linear on the CPU: its parts one after the other.
#include "kernels/step_sequence.h"

namespace mamba::MAMBA_ISA {

void norm_linear(Stream& stream, const NormLinearArgs& a) noexcept {
  const Kernels& k = MAMBA_TABLE_OF(MAMBA_ISA)();
  k.rms_norm_forward(stream, a.norm);
  k.linear_forward(stream, a.product);
}

}  // namespace mamba::MAMBA_ISA
