// SPDX-License-Identifier: Apache-2.0
// What linear_pack returns: one allocation in the layout of the backend that made it.
#pragma once

#include "kernels/linear.h"

namespace mamba {

struct PackedLinear {
  int64_t N, K;
  int32_t
      panel;  // columns of a panel, which tells the layouts apart; 0: a copy of the weight (ref)
  Product product;
  DType dtype;  // f32, or bf16, f16: elements k and k + 1 of a column in one 32-bit word
  void* data;
  int64_t bytes;  // of data
  void* rows;     // a copy by rows of the same dtype, or null
};

}  // namespace mamba
