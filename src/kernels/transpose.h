// SPDX-License-Identifier: Apache-2.0
// transpose: of a small matrix, such as the taps of a convolution.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// y[c, r] = x[r, c]; x and y must not overlap.
struct TransposeArgs {
  int64_t rows, columns;
  CBuf x;  // (rows, columns)
  Buf y;   // (columns, rows), of the same type
};

}  // namespace mamba
