// SPDX-License-Identifier: Apache-2.0
// Element types of tensors in memory and in files.
#pragma once

#include <cstdint>

namespace mamba {

enum class DType : uint8_t { kF32, kF64, kBF16, kF16, kI64, kI32, kU8 };

// Bytes of one element.
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
  }
  return 0;
}

// "f32", "bf16", ...
const char* dtype_name(DType t) noexcept;

}  // namespace mamba
