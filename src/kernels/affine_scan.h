// SPDX-License-Identifier: Apache-2.0
// affine_scan: H_t = A_t * H_{t-1} + X_t elementwise, the bare recurrence under every linear SSM.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

enum class ScanOrder : uint8_t {
  kSequential,  // one pass over time
  kParallel,    // fixed blocks of time: blocks alone, then their carries, then the blocks again
};

// All f32 or all f64. reverse runs from the last token to the first (H_t = A_t * H_{t+1} + X_t).
// Both orders agree up to rounding. h may alias x. L may be 0.
struct AffineScanArgs {
  int64_t B, L, D;
  ScanOrder order;
  bool reverse;
  CBuf a, x;  // (B, L, D)
  CBuf h0;    // (B, D) or null (zero): the state before the first step taken
  Buf h;      // (B, L, D)
};

// With G_t = dh_t + a_{t+1} G_{t+1} (indices in the direction of the scan): dx_t = G_t,
// da_t = G_t * h_{t-1}, dh0 = a_0 G_0.
struct AffineScanBackwardArgs {
  int64_t B, L, D;
  ScanOrder order;
  bool reverse;
  CBuf a, h;   // (B, L, D): the inputs and the result of the forward
  CBuf h0;     // (B, D) or null
  CBuf dh;     // (B, L, D)
  Buf da, dx;  // (B, L, D) overwritten; dx may alias dh
  Buf dh0;     // (B, D) or null, overwritten
};

}  // namespace mamba
