// SPDX-License-Identifier: Apache-2.0
// Part of linear_q_cpu.cpp: codes and scales of a run of blocks of a panel, expanded to bytes and
// f32 so that one inner kernel serves all types.
#pragma once

#include "kernels/linear_q_packed.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {

namespace panels = mamba::panels;

constexpr int64_t kRunBlocks = panels::kRun / panels::kBlock;

struct Expanded {
  alignas(64) uint8_t codes[kRunBlocks * 8 * panels::kQuad];  // [quad][row of the panel][4]
  alignas(64) float scale[kRunBlocks * 2 * panels::kRows];    // [group][row]
  alignas(64) float add[kRunBlocks * panels::kRows];          // [block][row]
};

// A register of 32-bit words: a part of a quad, or all of it.
typedef uint32_t Line __attribute__((vector_size(4 * F32::kLanes)));

MAMBA_INLINE Line load_line(const uint8_t* p) {
  Line v;
  memcpy(&v, p, sizeof v);
  return v;
}
MAMBA_INLINE void store_line(uint8_t* p, Line v) { memcpy(p, &v, sizeof v); }

// IQ4_NL's values plus 128, so that they are not negative.
alignas(64) constexpr uint8_t kTable[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                            129, 141, 153, 166, 181, 197, 217, 241};

MAMBA_INLINE Line look_up(Line codes) {
#if defined(__AVX512BW__)
  const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)kTable));
  return (Line)_mm512_shuffle_epi8(table, (__m512i)codes);
#else
  uint8_t bytes[sizeof(Line)];
  memcpy(bytes, &codes, sizeof bytes);
  for (uint8_t& b : bytes) b = kTable[b];
  return load_line(bytes);
#endif
}

template <int kBits, bool kTableCodes>
MAMBA_INLINE void expand_block(const uint8_t* from, uint8_t* to) {
  constexpr int64_t kQuad = panels::kQuad;
  constexpr int64_t kWidth = sizeof(Line);
#pragma GCC unroll 4
  for (int64_t at = 0; at < 4 * kQuad; at += kWidth) {
    const int i = static_cast<int>(at / kQuad);
    const uint8_t* high = from + 4 * kQuad + at % kQuad;
    const Line both = load_line(from + at);
    Line low = both & 0x0f0f0f0fu, up = both >> 4 & 0x0f0f0f0fu;
    if constexpr (kBits == 5) {
      const Line h = load_line(high);
      low |= (h >> i & 0x01010101u) << 4;
      up |= (h >> (i + 4) & 0x01010101u) << 4;
    } else if constexpr (kBits == 6) {
      low |= (load_line(high) >> (2 * i) & 0x03030303u) << 4;
      up |= (load_line(high + kQuad) >> (2 * i) & 0x03030303u) << 4;
    }
    store_line(to + at, kTableCodes ? look_up(low) : low);
    store_line(to + 4 * kQuad + at, kTableCodes ? look_up(up) : up);
  }
}

// 16 values of f16, u8 or i8 as f32.
MAMBA_INLINE void widen_f16(const uint8_t* from, float* to) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)));
#elif defined(__F16C__)
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)));
  _mm256_storeu_ps(to + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 16))));
#else
  for (int i = 0; i < 16; ++i) {
    f16 value;
    memcpy(&value, from + 2 * i, 2);
    to[i] = to_f32(value);
  }
#endif
}
template <class Int>
MAMBA_INLINE void scale_ints(const uint8_t* from, const float* by, float* to) {
  for (int i = 0; i < 16; ++i) {
    const float v = static_cast<float>(static_cast<Int>(from[i]));
    to[i] = v * by[i];
  }
}

// Scales of a run of `blocks` blocks, which lie behind its codes.
template <bool kSuper, bool kAdd, int kGroups>
MAMBA_INLINE void expand_scales(const uint8_t* from, int64_t blocks, Expanded& to) {
  constexpr int64_t kRows = panels::kRows;
  if constexpr (!kSuper) {
    for (int64_t b = 0; b < blocks; ++b) {
      widen_f16(from, to.scale + b * kRows);
      from += 2 * kRows;
      if constexpr (kAdd) {
        widen_f16(from, to.add + b * kRows);
        from += 2 * kRows;
      }
    }
  } else {
    alignas(64) float d[kRows], dmin[kRows];
    widen_f16(from, d);
    from += 2 * kRows;
    if constexpr (kAdd) {
      widen_f16(from, dmin);
      from += 2 * kRows;
      for (int i = 0; i < kRows; ++i) dmin[i] = -dmin[i];
    }
    for (int64_t b = 0; b < blocks; ++b) {
      for (int g = 0; g < kGroups; ++g) {
        float* scale = to.scale + (b * kGroups + g) * kRows;
        if constexpr (kGroups == 2) {
          scale_ints<int8_t>(from, d, scale);
        } else {
          scale_ints<uint8_t>(from, d, scale);
        }
        from += kRows;
      }
      if constexpr (kAdd) {
        scale_ints<uint8_t>(from, dmin, to.add + b * kRows);
        from += kRows;
      }
    }
  }
}

}  // namespace mamba::MAMBA_ISA
