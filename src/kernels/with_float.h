// SPDX-License-Identifier: Apache-2.0
// Turns a run-time dtype into f32 or f64 code, for the references.
#pragma once

#include "base/buf.h"

namespace mamba {

// Calls body.operator()<float>() or <double>(); the references know no other type.
template <class Body>
void with_float(DType dtype, Body&& body) {
  if (dtype == DType::kF64) {
    body.template operator()<double>();
  } else {
    body.template operator()<float>();
  }
}

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
