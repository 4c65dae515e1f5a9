// SPDX-License-Identifier: Apache-2.0
// layer_norm: LayerNorm with bias (Ba et al. 2016), plain or fused with the residual addition.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// r = x + residual (r = x without);  m = mean_d(r);  s = 1 / sqrt(mean_d((r - m)^2) + eps);
// y = (r - m) * s * weight + bias. All (rows, dim) buffers are contiguous. residual_out may alias
// residual or x.
struct LayerNormArgs {
  int64_t rows, dim;
  double eps;
  CBuf x, residual;   // (rows, dim); residual may be null
  CBuf weight, bias;  // (dim)
  Buf residual_out;   // (rows, dim) or null
  Buf y;              // (rows, dim)
  Buf mean, rstd;     // (rows) or null
};

// With n = (r - m) * s, g = dy * weight: dr = s * (g - mean(g) - n * mean(g * n)) + dresidual_out;
// dweight += sum dy * n; dbias += sum dy (fixed blocks of rows).
struct LayerNormBackwardArgs {
  int64_t rows, dim;
  CBuf r;              // (rows, dim)
  CBuf weight;         // (dim)
  CBuf mean, rstd;     // (rows)
  CBuf dy;             // (rows, dim)
  CBuf dresidual_out;  // (rows, dim) or null
  Buf dr;              // (rows, dim), may alias dy or dresidual_out
  Buf dweight, dbias;  // (dim), accumulated
};

}  // namespace mamba
