// SPDX-License-Identifier: Apache-2.0
// The functions of simd.h over arrays, compiled once per ISA for test_simd.cpp.
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {

// y[i] = function(x[i]), i < count; function: 0 exp, 1 sigmoid, 2 log, 3 softplus.
void simd_function(int function, const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += F32::kLanes) {
    const int64_t n = count - i < F32::kLanes ? count - i : F32::kLanes;
    const F32 v = F32::load_n(x + i, n);
    F32 result = F32::zero();
    if (function == 0) result = exp(v);
    if (function == 1) result = sigmoid(v);
    if (function == 2) result = log(v);
    if (function == 3) result = softplus(v);
    result.store_n(y + i, n);
  }
}

}  // namespace mamba::MAMBA_ISA
