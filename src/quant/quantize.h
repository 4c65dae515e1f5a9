// SPDX-License-Identifier: Apache-2.0
// f32 weights to blocks (blocks.h) with the least weighted square error that a search finds.
#pragma once

#include <cstdint>

#include "mamba/dtype.h"

namespace mamba {

// `elements` (a multiple of block_elements(type)) of a row, or of a run of whole blocks of it, to
// blocks of any alignment. `importance`, when not null, has one weight >= 0 for each element: how
// much an error there costs, such as the mean square of the activation that it multiplies. Without
// it all errors cost the same. What comes out depends on a block's own values and weights alone.
// False if a value or a weight is not finite, or too large for scales in f16; the blocks then hold
// nothing of use.
bool quantize(DType type, const float* values, const float* importance, int64_t elements,
              void* blocks);

}  // namespace mamba
