// SPDX-License-Identifier: Apache-2.0
// grad_norm, reference.
#include "kernels/grad_norm.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void grad_norm(Stream&, const GradNormArgs& a) noexcept {
  *a.sum_of_squares = 0;
  with_float(a.g.dtype, [&]<class T>() {
    for (int64_t i = 0; i < a.count; ++i) {
      const double g = a.g.as<T>()[i];
      *a.sum_of_squares += g * g;
    }
  });
}

}  // namespace mamba::MAMBA_ISA
