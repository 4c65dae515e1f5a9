// SPDX-License-Identifier: Apache-2.0
// gate: y = a * silu(z), the gate of Mamba-1 and of the gated MLP.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

struct GateArgs {
  int64_t rows, dim;
  CBuf a;  // (rows, dim), row stride a_stride
  int64_t a_stride;
  CBuf z;  // (rows, dim), row stride z_stride
  int64_t z_stride;
  Buf y;  // (rows, dim), row stride y_stride; may alias a
  int64_t y_stride;
};

// da = dy * silu(z);  dz = dy * a * s(z) * (1 + z * (1 - s(z))),  s = sigmoid.
struct GateBackwardArgs {
  int64_t rows, dim;
  CBuf a;
  int64_t a_stride;
  CBuf z;
  int64_t z_stride;
  CBuf dy;  // (rows, dim), row stride dy_stride
  int64_t dy_stride;
  Buf da;  // row stride da_stride; may alias dy
  int64_t da_stride;
  Buf dz;  // row stride dz_stride
  int64_t dz_stride;
};

}  // namespace mamba
