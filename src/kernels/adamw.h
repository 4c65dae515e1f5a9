// SPDX-License-Identifier: Apache-2.0
// adamw: AdamW (Loshchilov & Hutter 2019) over a range of the flat parameter buffer.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// g' = g * grad_scale;  m = beta1 m + (1 - beta1) g';  v = beta2 v + (1 - beta2) g'^2;
// p = p - lr * weight_decay * p;  p = p - lr * (m / bias1) / (sqrt(v / bias2) + eps),
// bias_i = 1 - beta_i^step. f32 state and arithmetic (f64 in f64).
struct AdamwArgs {
  int64_t count;
  double lr, beta1, beta2, eps, weight_decay;
  double grad_scale;  // clipping and accumulation in one factor
  int64_t step;       // 1 for the first update
  CBuf g;             // (count)
  Buf p, m, v;        // (count)
};

}  // namespace mamba
