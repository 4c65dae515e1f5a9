// SPDX-License-Identifier: Apache-2.0
// bf16 in memory, f32 in registers: rounding to nearest even on every ISA alike.
#pragma once

#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {

typedef uint32_t Words __attribute__((vector_size(4 * F32::kLanes)));

MAMBA_INLINE Words words_of(F32 x) { return (Words)x.v; }
MAMBA_INLINE F32 floats_of(Words u) { return {(decltype(F32::v))u}; }

// To nearest even bf16, still as f32; NaN stays NaN (as to_bf16 of base/bf16.h).
MAMBA_INLINE F32 round_bf16(F32 x) {
  const Words u = words_of(x);
  const Words nan = (Words)((u & 0x7fffffffu) > 0x7f800000u);
  const Words rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return floats_of(((nan & (u | 0x400000u)) | (~nan & rounded)) & 0xffff0000u);
}

MAMBA_INLINE F32 load_bf16(const bf16* p) {
#if defined(__AVX512F__)
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
#elif defined(__AVX2__)
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))};
#else
  float v[F32::kLanes];
  for (int i = 0; i < F32::kLanes; ++i) v[i] = to_f32(p[i]);
  return F32::load(v);
#endif
}
MAMBA_INLINE void store_bf16(F32 x, bf16* p) {
#if defined(__AVX512F__)
  const __m512i words = _mm512_srli_epi32((__m512i)words_of(round_bf16(x)), 16);
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(words));
#else
  float v[F32::kLanes];
  round_bf16(x).store(v);
  for (int i = 0; i < F32::kLanes; ++i) {
    uint32_t word;
    memcpy(&word, v + i, 4);
    p[i].bits = static_cast<uint16_t>(word >> 16);
  }
#endif
}

// Elements of a state in memory, f32 or bf16; the first n lanes, or all where n is larger.
MAMBA_INLINE F32 load_state(const float* p, int64_t n = F32::kLanes) {
  return n >= F32::kLanes ? F32::load(p) : F32::load_n(p, n);
}
MAMBA_INLINE F32 load_state(const bf16* p, int64_t n = F32::kLanes) {
  if (n >= F32::kLanes) return load_bf16(p);
  bf16 part[F32::kLanes] = {};
  memcpy(part, p, static_cast<size_t>(n) * sizeof(bf16));
  return load_bf16(part);
}
MAMBA_INLINE void store_state(F32 x, float* p, int64_t n = F32::kLanes) {
  if (n >= F32::kLanes) {
    x.store(p);
  } else {
    x.store_n(p, n);
  }
}
MAMBA_INLINE void store_state(F32 x, bf16* p, int64_t n = F32::kLanes) {
  if (n >= F32::kLanes) {
    store_bf16(x, p);
    return;
  }
  bf16 part[F32::kLanes];
  store_bf16(x, part);
  memcpy(p, part, static_cast<size_t>(n) * sizeof(bf16));
}

}  // namespace mamba::MAMBA_ISA
