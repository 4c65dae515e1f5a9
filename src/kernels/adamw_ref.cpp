// SPDX-License-Identifier: Apache-2.0
// adamw, reference.
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void adamw(Stream&, const AdamwArgs& a) noexcept {
  const double bias1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double bias2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  with_float(a.p.dtype, [&]<class T>() {
    for (int64_t i = 0; i < a.count; ++i) {
      const double g = a.g.as<T>()[i] * a.grad_scale;
      T& m = a.m.as<T>()[i];
      T& v = a.v.as<T>()[i];
      T& p = a.p.as<T>()[i];
      m = static_cast<T>(a.beta1 * m + (1 - a.beta1) * g);
      v = static_cast<T>(a.beta2 * v + (1 - a.beta2) * g * g);
      const double decayed = p - a.lr * a.weight_decay * p;
      p = static_cast<T>(decayed - a.lr * (m / bias1) / (std::sqrt(v / bias2) + a.eps));
    }
  });
}

}  // namespace mamba::MAMBA_ISA
