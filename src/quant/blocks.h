// SPDX-License-Identifier: Apache-2.0
// The blocks of quantised weights as GGUF files hold them, little endian. A row of a matrix is a
// run of blocks; element i of a block is value(code i) as said below. `d` and `m` are f16.
#pragma once

#include <cstdint>

#include "base/f16.h"

namespace mamba {

// 32 elements a block. Codes of 4 bits: element i < 16 in the low half of qs[i], i + 16 in its high
// half.
struct BlockQ4_0 {  // (code - 8) * d
  f16 d;
  uint8_t qs[16];
};
struct BlockQ4_1 {  // code * d + m
  f16 d, m;
  uint8_t qs[16];
};
struct BlockQ5_0 {  // (code - 16) * d; bit i of qh (32 bits) is the fifth bit of element i
  f16 d;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ5_1 {  // code * d + m
  f16 d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ8_0 {  // code * d
  f16 d;
  int8_t qs[32];
};
struct BlockIQ4_NL {  // kIQ4_NLValues[code] * d
  f16 d;
  uint8_t qs[16];
};
inline constexpr int8_t kIQ4_NLValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                             1,    13,   25,  38,  53,  69,  89,  113};

// 256 elements a block, in 8 groups of 32 (Q4_K, Q5_K) or 16 groups of 16 (Q6_K).
// scales holds 6-bit numbers sc[g] and mn[g] (scale_of_group below). Elements of groups 2j and
// 2j + 1 are the low and the high halves of qs[32 j .. 32 j + 31].
struct BlockQ4_K {  // code * d * sc[g] - dmin * mn[g]
  f16 d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
struct BlockQ5_K {  // the same; bit g of qh[i] is the fifth bit of element i of group g
  f16 d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
// Halves of 128 elements. Element 32 k + i of half h: its low 4 bits are in ql[64 h + 32 (k % 2) +
// i], in the low half of the byte for k < 2 and the high one for k >= 2; its 2 high bits are bits
// 2 k and 2 k + 1 of qh[32 h + i].
struct BlockQ6_K {  // (code - 32) * d * scales[g]
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  f16 d;
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// The scale and minimum of a group of Q4_K and Q5_K, each 6 bits: groups 0-3 in bytes 0-3 and 4-7,
// groups 4-7 in bytes 8-11 (low 4 bits) with their top 2 bits above those of groups 0-3.
struct GroupScale {
  uint8_t scale, min;
};
inline GroupScale scale_of_group(const uint8_t scales[12], int group) {
  const auto byte = [](int v) { return static_cast<uint8_t>(v); };
  if (group < 4) return {byte(scales[group] & 63), byte(scales[group + 4] & 63)};
  return {byte((scales[group + 4] & 15) | (scales[group - 4] >> 6) << 4),
          byte((scales[group + 4] >> 4) | (scales[group] >> 6) << 4)};
}

}  // namespace mamba
