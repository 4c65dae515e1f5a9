// SPDX-License-Identifier: Apache-2.0
// grad_norm: sum of squares of a flat buffer, summed in fixed blocks in f64.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// *sum_of_squares = sum_i g[i]^2 (NaN and infinity pass through).
struct GradNormArgs {
  int64_t count;
  CBuf g;  // (count)
  double* sum_of_squares;
};

}  // namespace mamba
