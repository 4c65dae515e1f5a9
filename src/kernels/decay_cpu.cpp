// SPDX-License-Identifier: Apache-2.0
// decay for the CPU: the reference; a few elements an update.
#include "kernels/decay.h"

namespace mamba::ref {
void decay_forward(Stream& stream, const DecayArgs& a) noexcept;
void decay_backward(Stream& stream, const DecayBackwardArgs& a) noexcept;
}  // namespace mamba::ref

namespace mamba::MAMBA_ISA {

void decay_forward(Stream& stream, const DecayArgs& a) noexcept { ref::decay_forward(stream, a); }
void decay_backward(Stream& stream, const DecayBackwardArgs& a) noexcept {
  ref::decay_backward(stream, a);
}

}  // namespace mamba::MAMBA_ISA
