// SPDX-License-Identifier: Apache-2.0
// Elements of recurrent states for the references; the SIMD kernels have theirs in simd_bf16.h.
#pragma once

#include "base/buf.h"

namespace mamba {

// Element i of a state: T itself, or bf16 rounded to nearest even.
template <class T>
T load_state(CBuf state, int64_t i) {
  return state.dtype == DType::kBF16 ? static_cast<T>(to_f32(state.as<bf16>()[i]))
                                     : state.as<T>()[i];
}
template <class T>
void store_state(Buf state, int64_t i, T value) {
  if (state.dtype == DType::kBF16) {
    state.as<bf16>()[i] = to_bf16(static_cast<float>(value));
  } else {
    state.as<T>()[i] = value;
  }
}

}  // namespace mamba
