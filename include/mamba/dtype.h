// SPDX-License-Identifier: Apache-2.0
// Element types of tensors in memory and in files.
#pragma once

#include <cstdint>

namespace mamba {

// Types from kQ4_0 on hold blocks of several elements with common scales, as GGUF files have them
// (src/base/quant_blocks.h); they are types of weight matrices alone.
enum class DType : uint8_t {
  kF32,
  kF64,
  kBF16,
  kF16,
  kI64,
  kI32,
  kU8,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
};

// True for the types that hold blocks.
constexpr bool is_quantized(DType t) { return t >= DType::kQ4_0; }

// Bytes of one element; 0 for the types that hold blocks.
constexpr int64_t dtype_size(DType t) {
  switch (t) {
    case DType::kF32:
      return 4;
    case DType::kF64:
      return 8;
    case DType::kBF16:
      return 2;
    case DType::kF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kI32:
      return 4;
    case DType::kU8:
      return 1;
    default:
      return 0;
  }
}

// Elements of a block (1 for plain types), and bytes of a block.
constexpr int64_t block_elements(DType t) {
  if (!is_quantized(t)) return 1;
  return t == DType::kQ4_K || t == DType::kQ5_K || t == DType::kQ6_K ? 256 : 32;
}
constexpr int64_t block_bytes(DType t) {
  switch (t) {
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      return 18;
    case DType::kQ4_1:
      return 20;
    case DType::kQ5_0:
      return 22;
    case DType::kQ5_1:
      return 24;
    case DType::kQ8_0:
      return 34;
    case DType::kQ4_K:
      return 144;
    case DType::kQ5_K:
      return 176;
    case DType::kQ6_K:
      return 210;
    default:
      return dtype_size(t);
  }
}

// Bytes of `elements` of a type, a multiple of its block.
constexpr int64_t dtype_bytes(DType t, int64_t elements) {
  return elements / block_elements(t) * block_bytes(t);
}

// "f32", "bf16", ...
const char* dtype_name(DType t) noexcept;

}  // namespace mamba
