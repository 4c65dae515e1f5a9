// SPDX-License-Identifier: Apache-2.0
// cast for the CPU: the reference; models there keep f32 activations and need it in tests alone.
#include "kernels/cast.h"

namespace mamba::ref {
void cast(Stream& stream, const CastArgs& a) noexcept;
}

namespace mamba::MAMBA_ISA {

void cast(Stream& stream, const CastArgs& a) noexcept { ref::cast(stream, a); }

}  // namespace mamba::MAMBA_ISA
