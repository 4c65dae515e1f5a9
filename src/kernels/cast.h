// SPDX-License-Identifier: Apache-2.0
// cast: f32 to bf16 and back, such as the copy of matrices that products in bf16 read.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// y[i] = x[i], rounded to nearest even (NaN stays NaN) where y is bf16. x and y must not overlap.
struct CastArgs {
  int64_t count;
  CBuf x;  // (count) f32 or bf16
  Buf y;   // (count) f32 or bf16
};

}  // namespace mamba
