// SPDX-License-Identifier: Apache-2.0
// Blocks of quantised weights (blocks.h) to their codes and to f32.
#pragma once

#include <cstdint>

#include "mamba/dtype.h"

namespace mamba {

// The integers of one block: element i is values[i] * scale of its group (- minimum, see the type).
// values has block_elements(type) places; IQ4_NL gives its table's values, Q4_0 code - 8 and so on,
// so that a type without minimum is values[i] * scale alone.
void block_values(DType type, const void* block, int8_t* values);

// `elements` (a multiple of block_elements(type)) of f32 from blocks at any alignment; each is
// rounded to f32 as GGUF's reference does it. type: one that is_quantized.
void dequantize(DType type, const void* blocks, int64_t elements, float* out);

}  // namespace mamba
