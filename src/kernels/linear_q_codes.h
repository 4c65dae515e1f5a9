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

// Bytes `at`.. of the quads i < 4 and i + 4 of a block, a code a byte.
template <int kBits, bool kTableCodes>
MAMBA_INLINE void two_quads(const uint8_t* from, int i, int64_t at, Line* low, Line* up) {
  constexpr int64_t kQuad = panels::kQuad;
  if constexpr (kBits == 8) {
    *low = load_line(from + i * kQuad + at);
    *up = load_line(from + (i + 4) * kQuad + at);
    return;
  }
  const uint8_t* high = from + 4 * kQuad + at;
  const Line both = load_line(from + i * kQuad + at);
  *low = both & 0x0f0f0f0fu, *up = both >> 4 & 0x0f0f0f0fu;
  if constexpr (kBits == 5) {
    const Line h = load_line(high);
    *low |= (h >> i & 0x01010101u) << 4;
    *up |= (h >> (i + 4) & 0x01010101u) << 4;
  } else if constexpr (kBits == 6) {
    *low |= (load_line(high) >> (2 * i) & 0x03030303u) << 4;
    *up |= (load_line(high + kQuad) >> (2 * i) & 0x03030303u) << 4;
  }
  if constexpr (kTableCodes) *low = look_up(*low), *up = look_up(*up);
}

template <int kBits, bool kTableCodes>
MAMBA_INLINE void expand_block(const uint8_t* from, uint8_t* to) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int64_t at = 0; at < panels::kQuad; at += sizeof(Line)) {
      Line low, up;
      two_quads<kBits, kTableCodes>(from, i, at, &low, &up);
      store_line(to + i * panels::kQuad + at, low);
      store_line(to + (i + 4) * panels::kQuad + at, up);
    }
  }
}

// F32::kLanes values of f16, u8 or i8.
MAMBA_INLINE F32 widen_f16(const uint8_t* from) {
#if defined(__AVX512F__)
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from))};
#elif defined(__F16C__)
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from))};
#else
  float to[F32::kLanes];
  for (int i = 0; i < F32::kLanes; ++i) {
    f16 value;
    memcpy(&value, from + 2 * i, 2);
    to[i] = to_f32(value);
  }
  return F32::load(to);
#endif
}
template <bool kSigned>
MAMBA_INLINE F32 widen_ints(const uint8_t* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128((const __m128i*)from);
  return {_mm512_cvtepi32_ps(kSigned ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes))};
#else
  float to[F32::kLanes];
  for (int i = 0; i < F32::kLanes; ++i) {
    to[i] = static_cast<float>(kSigned ? static_cast<int8_t>(from[i]) : static_cast<int>(from[i]));
  }
  return F32::load(to);
#endif
}

// The scales of a run, which lie behind its codes, block by block.
template <bool kSuper, bool kAdd, int kGroups>
struct Scales {
  static constexpr int kVectors = panels::kRows / F32::kLanes;
  const uint8_t* at;
  F32 d[kVectors], minus_dmin[kVectors];

  MAMBA_INLINE explicit Scales(const uint8_t* from) : at(from) {
    if constexpr (kSuper) {
      read(d);
      if constexpr (kAdd) {
        read(minus_dmin);
        for (int v = 0; v < kVectors; ++v) minus_dmin[v] = F32::zero() - minus_dmin[v];
      }
    }
  }
  // Of lanes v * F32::kLanes.. of group g of the block.
  MAMBA_INLINE F32 scale(int g, int v) const {
    if constexpr (!kSuper) return widen_f16(at + 2 * v * F32::kLanes);
    return widen_ints<kGroups == 2>(at + g * panels::kRows + v * F32::kLanes) * d[v];
  }
  MAMBA_INLINE F32 add(int v) const {
    if constexpr (!kSuper) return widen_f16(at + 2 * panels::kRows + 2 * v * F32::kLanes);
    return widen_ints<false>(at + kGroups * panels::kRows + v * F32::kLanes) * minus_dmin[v];
  }
  MAMBA_INLINE void next() {
    at += panels::kRows * (kSuper ? kGroups + (kAdd ? 1 : 0) : (kAdd ? 4 : 2));
  }

 private:
  MAMBA_INLINE void read(F32* to) {
    for (int v = 0; v < kVectors; ++v) to[v] = widen_f16(at + 2 * v * F32::kLanes);
    at += 2 * panels::kRows;
  }
};

template <bool kSuper, bool kAdd, int kGroups>
MAMBA_INLINE void expand_scales(const uint8_t* from, int64_t blocks, Expanded& to) {
  constexpr int kLanes = F32::kLanes;
  Scales<kSuper, kAdd, kGroups> scales(from);
  for (int64_t b = 0; b < blocks; ++b, scales.next()) {
    for (int v = 0; v < panels::kRows / kLanes; ++v) {
      for (int g = 0; g < kGroups; ++g) {
        scales.scale(g, v).store(to.scale + (b * kGroups + g) * panels::kRows + v * kLanes);
      }
      if constexpr (kAdd) scales.add(v).store(to.add + b * panels::kRows + v * kLanes);
    }
  }
}

}  // namespace mamba::MAMBA_ISA
