// SPDX-License-Identifier: Apache-2.0
// decay: the rates A = -exp(A_log) of a state-space model (Mamba-1, section 3; Mamba-2, section 7)
// as the scans take them, and their gradient.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// A_t[n, e] = -exp(A_log[e, n]), with the exp in f64 on the CPU.
struct DecayArgs {
  int64_t E, N;
  CBuf A_log;  // (E, N)
  Buf A_t;     // (N, E)
};

// dA_log[e, n] += dA_t[n, e] * A_t[n, e].
struct DecayBackwardArgs {
  int64_t E, N;
  CBuf dA_t, A_t;  // (N, E)
  Buf dA_log;      // (E, N), accumulated
};

}  // namespace mamba
