// SPDX-License-Identifier: Apache-2.0
// column_sum, reference.
#include "kernels/column_sum.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void column_sum(Stream&, const ColumnSumArgs& a) noexcept {
  with_float(a.sums.dtype, [&]<class T>() {
    T* to = a.sums.as<T>();
    for (int64_t r = 0; r < a.rows; ++r) {
      const T* from = a.x.as<T>() + r * a.x_stride;
      for (int64_t n = 0; n < a.N; ++n) to[n] += from[n];
    }
  });
}

}  // namespace mamba::MAMBA_ISA
