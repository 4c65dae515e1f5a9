// SPDX-License-Identifier: Apache-2.0
// norm_linear: the specification is that of its parts, one after the other.
#include "kernels/kernels.h"

namespace mamba::MAMBA_ISA {

void norm_linear(Stream& stream, const NormLinearArgs& a) noexcept {
  ref_kernels().rms_norm_forward(stream, a.norm);
  ref_kernels().linear_forward(stream, a.product);
}

}  // namespace mamba::MAMBA_ISA
