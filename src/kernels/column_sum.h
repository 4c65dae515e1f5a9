// SPDX-License-Identifier: Apache-2.0
// column_sum: what many rows add to one, such as the gradient of a bias.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// sums[n] += sum_r x[r, n], in an order that the shape alone decides (on the CPU that of the rows,
// each added to what is there).
struct ColumnSumArgs {
  int64_t rows, N;
  CBuf x;  // (rows, N), row stride x_stride
  int64_t x_stride;
  Buf sums;  // (N), accumulated
};

}  // namespace mamba
