// SPDX-License-Identifier: Apache-2.0
// rms_norm: RMSNorm (Zhang & Sennrich 2019), plain or fused with the residual addition.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// r = x + residual (r = x without residual);  s = 1 / sqrt(mean_d(r^2) + eps);  y = r * s * weight.
// Statistics per row in f32 (f64 in f64). y may alias x; residual_out may alias residual or x.
struct RmsNormArgs {
  int64_t rows, dim;
  double eps;
  CBuf x;  // (rows, dim), row stride x_stride
  int64_t x_stride;
  CBuf residual;     // (rows, dim) or null
  CBuf weight;       // (dim) or null (weightless)
  Buf residual_out;  // (rows, dim) or null: r
  Buf y;             // (rows, dim), row stride y_stride
  int64_t y_stride;
  Buf rstd;  // (rows) or null: s, for the backward
};

// With n = r * s and g = dy * weight:
//   dr = s * (g - n * mean_d(g * n)) + dresidual_out;  dweight += sum_rows dy * n.
// dr is the gradient of both x and residual. Row sums of dweight run in fixed blocks of rows.
struct RmsNormBackwardArgs {
  int64_t rows, dim;
  CBuf r;  // (rows, dim) the normalised input, row stride r_stride
  int64_t r_stride;
  CBuf weight;  // (dim) or null
  CBuf rstd;    // (rows)
  CBuf dy;      // (rows, dim), row stride dy_stride
  int64_t dy_stride;
  CBuf dresidual_out;  // (rows, dim) or null
  Buf dr;              // (rows, dim), row stride dr_stride; may alias dy or dresidual_out
  int64_t dr_stride;
  Buf dweight;  // (dim) or null, accumulated
};

}  // namespace mamba
