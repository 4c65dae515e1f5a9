// SPDX-License-Identifier: Apache-2.0
// transpose for the CPU: the reference; a few elements an update.
#include "kernels/transpose.h"

namespace mamba::ref {
void transpose(Stream& stream, const TransposeArgs& a) noexcept;
}

namespace mamba::MAMBA_ISA {

void transpose(Stream& stream, const TransposeArgs& a) noexcept { ref::transpose(stream, a); }

}  // namespace mamba::MAMBA_ISA
