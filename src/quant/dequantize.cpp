// SPDX-License-Identifier: Apache-2.0
// Blocks of quantised weights to integers and to f32.
#include "quant/dequantize.h"

#include <cstring>

#include "base/check.h"
#include "quant/blocks.h"

namespace mamba {
namespace {

template <class Block>
Block load(const void* at) {
  Block block;
  memcpy(&block, at, sizeof block);
  return block;
}

int8_t to_i8(int v) { return static_cast<int8_t>(v); }

// Codes of 4 bits in the order of 32-element blocks, less `zero`.
void low_and_high(const uint8_t qs[16], int zero, int8_t* values) {
  for (int i = 0; i < 16; ++i) {
    values[i] = to_i8((qs[i] & 15) - zero);
    values[i + 16] = to_i8((qs[i] >> 4) - zero);
  }
}

void with_fifth_bit(const uint8_t qs[16], const uint8_t qh[4], int zero, int8_t* values) {
  low_and_high(qs, zero, values);
  for (int i = 0; i < 32; ++i) {
    values[i] = to_i8(values[i] + (qh[i / 8] >> i % 8 & 1) * 16);
  }
}

// Groups of 32 of Q4_K and Q5_K (qh null for Q4_K).
void groups_of_k(const uint8_t qs[128], const uint8_t* qh, int8_t* values) {
  for (int g = 0; g < 8; ++g) {
    for (int i = 0; i < 32; ++i) {
      int code = qs[g / 2 * 32 + i] >> (g % 2 * 4) & 15;
      if (qh != nullptr) code |= (qh[i] >> g & 1) << 4;
      values[g * 32 + i] = to_i8(code);
    }
  }
}

void values_of_q6_k(const BlockQ6_K& b, int8_t* values) {
  for (int e = 0; e < 256; ++e) {
    const int half = e / 128, k = e % 128 / 32, i = e % 32;
    const int low = b.ql[64 * half + 32 * (k % 2) + i] >> (k < 2 ? 0 : 4) & 15;
    const int high = b.qh[32 * half + i] >> (2 * k) & 3;
    values[e] = to_i8((low | high << 4) - 32);
  }
}

// value * d for the types of 32 elements, and value * d + m (for which -0 + 0 would be +0).
template <class Block>
void dequantize_small(DType type, const void* block, float* out) {
  const float d = to_f32(load<Block>(block).d);
  int8_t values[32];
  block_values(type, block, values);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(values[i]) * d;
}
template <class Block>
void dequantize_with_min(DType type, const void* block, float* out) {
  dequantize_small<Block>(type, block, out);
  const float m = to_f32(load<Block>(block).m);
  for (int i = 0; i < 32; ++i) out[i] += m;
}

template <class Block>
void dequantize_k(DType type, const void* at, float* out) {
  const Block block = load<Block>(at);
  const float d = to_f32(block.d), dmin = to_f32(block.dmin);
  int8_t values[256];
  block_values(type, at, values);
  for (int g = 0; g < 8; ++g) {
    const GroupScale s = scale_of_group(block.scales, g);
    const float scale = d * static_cast<float>(s.scale), min = dmin * static_cast<float>(s.min);
    for (int i = 32 * g; i < 32 * g + 32; ++i) {
      out[i] = scale * static_cast<float>(values[i]) - min;
    }
  }
}

void dequantize_q6_k(const void* at, float* out) {
  const BlockQ6_K block = load<BlockQ6_K>(at);
  const float d = to_f32(block.d);
  int8_t values[256];
  values_of_q6_k(block, values);
  for (int i = 0; i < 256; ++i) {
    out[i] = d * static_cast<float>(block.scales[i / 16]) * static_cast<float>(values[i]);
  }
}

void dequantize_block(DType type, const void* block, float* out) {
  switch (type) {
    case DType::kQ4_0:
      return dequantize_small<BlockQ4_0>(type, block, out);
    case DType::kQ4_1:
      return dequantize_with_min<BlockQ4_1>(type, block, out);
    case DType::kQ5_0:
      return dequantize_small<BlockQ5_0>(type, block, out);
    case DType::kQ5_1:
      return dequantize_with_min<BlockQ5_1>(type, block, out);
    case DType::kQ8_0:
      return dequantize_small<BlockQ8_0>(type, block, out);
    case DType::kIQ4_NL:
      return dequantize_small<BlockIQ4_NL>(type, block, out);
    case DType::kQ4_K:
      return dequantize_k<BlockQ4_K>(type, block, out);
    case DType::kQ5_K:
      return dequantize_k<BlockQ5_K>(type, block, out);
    case DType::kQ6_K:
      return dequantize_q6_k(block, out);
    default:
      MAMBA_CHECK(is_quantized(type));
  }
}

}  // namespace

void block_values(DType type, const void* block, int8_t* values) {
  switch (type) {
    case DType::kQ4_0:
      return low_and_high(load<BlockQ4_0>(block).qs, 8, values);
    case DType::kQ4_1:
      return low_and_high(load<BlockQ4_1>(block).qs, 0, values);
    case DType::kQ5_0: {
      const BlockQ5_0 b = load<BlockQ5_0>(block);
      return with_fifth_bit(b.qs, b.qh, 16, values);
    }
    case DType::kQ5_1: {
      const BlockQ5_1 b = load<BlockQ5_1>(block);
      return with_fifth_bit(b.qs, b.qh, 0, values);
    }
    case DType::kQ8_0: {
      const BlockQ8_0 b = load<BlockQ8_0>(block);
      memcpy(values, b.qs, sizeof b.qs);
      return;
    }
    case DType::kIQ4_NL:
      low_and_high(load<BlockIQ4_NL>(block).qs, 0, values);
      for (int i = 0; i < 32; ++i) values[i] = kIQ4_NLValues[values[i]];
      return;
    case DType::kQ4_K:
      return groups_of_k(load<BlockQ4_K>(block).qs, nullptr, values);
    case DType::kQ5_K: {
      const BlockQ5_K b = load<BlockQ5_K>(block);
      return groups_of_k(b.qs, b.qh, values);
    }
    case DType::kQ6_K:
      return values_of_q6_k(load<BlockQ6_K>(block), values);
    default:
      MAMBA_CHECK(is_quantized(type));
  }
}

void dequantize(DType type, const void* blocks, int64_t elements, float* out) {
  MAMBA_CHECK(is_quantized(type) && elements % block_elements(type) == 0);
  const char* at = static_cast<const char*>(blocks);
  for (int64_t i = 0; i < elements; i += block_elements(type), at += block_bytes(type)) {
    dequantize_block(type, at, out + i);
  }
}

}  // namespace mamba
