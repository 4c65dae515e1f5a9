// SPDX-License-Identifier: Apache-2.0
// gated_norm: grouped RMSNorm with a silu gate, in both orders (Mamba-2's norm before out_proj).
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// Groups of dim / groups channels are normalised separately; rms(v) = v / sqrt(mean_group(v^2) +
// eps).
//   norm_before_gate == false: y = rms(x * silu(z)) * weight
//   norm_before_gate == true:  y = rms(x) * weight * silu(z)
struct GatedNormArgs {
  int64_t rows, dim, groups;
  double eps;
  bool norm_before_gate;
  CBuf x;  // (rows, dim), row stride x_stride
  int64_t x_stride;
  CBuf z;  // (rows, dim), row stride z_stride
  int64_t z_stride;
  CBuf weight;  // (dim)
  Buf y;        // (rows, dim), row stride y_stride; may alias x
  int64_t y_stride;
  Buf rstd;  // (rows, groups) or null
};

struct GatedNormBackwardArgs {
  int64_t rows, dim, groups;
  bool norm_before_gate;
  CBuf x;  // (rows, dim), row stride x_stride
  int64_t x_stride;
  CBuf z;  // (rows, dim), row stride z_stride
  int64_t z_stride;
  CBuf weight;  // (dim)
  CBuf rstd;    // (rows, groups)
  CBuf dy;      // (rows, dim), row stride dy_stride
  int64_t dy_stride;
  Buf dx;  // (rows, dim), row stride dx_stride; may alias dy
  int64_t dx_stride;
  Buf dz;  // (rows, dim), row stride dz_stride
  int64_t dz_stride;
  Buf dweight;  // (dim), accumulated in fixed blocks of rows
};

}  // namespace mamba
