// SPDX-License-Identifier: Apache-2.0
// transpose, reference.
#include "kernels/transpose.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void transpose(Stream&, const TransposeArgs& a) noexcept {
  with_float(a.y.dtype, [&]<class T>() {
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t c = 0; c < a.columns; ++c) {
        a.y.as<T>()[c * a.rows + r] = a.x.as<T>()[r * a.columns + c];
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
