// SPDX-License-Identifier: Apache-2.0
// decay, reference.
#include <cmath>

#include "kernels/decay.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void decay_forward(Stream&, const DecayArgs& a) noexcept {
  with_float(a.A_t.dtype, [&]<class T>() {
    const T* A_log = a.A_log.as<T>();
    T* A_t = a.A_t.as<T>();
    for (int64_t e = 0; e < a.E; ++e) {
      for (int64_t n = 0; n < a.N; ++n) {
        A_t[n * a.E + e] = static_cast<T>(-std::exp(static_cast<double>(A_log[e * a.N + n])));
      }
    }
  });
}

void decay_backward(Stream&, const DecayBackwardArgs& a) noexcept {
  with_float(a.dA_log.dtype, [&]<class T>() {
    const T* dA_t = a.dA_t.as<T>();
    const T* A_t = a.A_t.as<T>();
    T* dA_log = a.dA_log.as<T>();
    for (int64_t e = 0; e < a.E; ++e) {
      for (int64_t n = 0; n < a.N; ++n) {
        dA_log[e * a.N + n] += dA_t[n * a.E + e] * A_t[n * a.E + e];
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
