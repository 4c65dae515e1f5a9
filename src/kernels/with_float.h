// SPDX-License-Identifier: Apache-2.0
// Turns a run-time dtype into f32 or f64 code, for the references.
#pragma once

#include "mamba/dtype.h"

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

}  // namespace mamba
