// SPDX-License-Identifier: Apache-2.0
// Blocks of 256 weights for quantize(): scales of groups, themselves in whole numbers of 6 or 8
// bits, and the two levels fitted together.
#pragma once

#include "quant/blocks.h"

namespace mamba::quant {

// x: 256 finite values; w: their weights, of mean 1.
BlockQ4_K make_q4_k(const float* x, const float* w);
BlockQ5_K make_q5_k(const float* x, const float* w);
BlockQ6_K make_q6_k(const float* x, const float* w);

}  // namespace mamba::quant
