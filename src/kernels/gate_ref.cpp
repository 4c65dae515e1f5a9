// SPDX-License-Identifier: Apache-2.0
// gate: the specification.
#include <cmath>

#include "kernels/gate.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void gate_forward(Stream&, const GateArgs& a) noexcept {
  with_float(a.a.dtype, [&]<class T>() {
    for (int64_t row = 0; row < a.rows; ++row) {
      for (int64_t d = 0; d < a.dim; ++d) {
        // y = a * silu(z)
        const T z = a.z.as<T>()[row * a.z_stride + d];
        const T s = 1 / (1 + std::exp(-z));
        a.y.as<T>()[row * a.y_stride + d] = a.a.as<T>()[row * a.a_stride + d] * (z * s);
      }
    }
  });
}

void gate_backward(Stream&, const GateBackwardArgs& a) noexcept {
  with_float(a.a.dtype, [&]<class T>() {
    for (int64_t row = 0; row < a.rows; ++row) {
      for (int64_t d = 0; d < a.dim; ++d) {
        // da = dy * silu(z);  dz = dy * a * s * (1 + z * (1 - s))
        const T x = a.a.as<T>()[row * a.a_stride + d];
        const T z = a.z.as<T>()[row * a.z_stride + d];
        const T dy = a.dy.as<T>()[row * a.dy_stride + d];
        const T s = 1 / (1 + std::exp(-z));
        a.da.as<T>()[row * a.da_stride + d] = dy * (z * s);
        a.dz.as<T>()[row * a.dz_stride + d] = dy * x * s * (1 + z * (1 - s));
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
