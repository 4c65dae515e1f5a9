// SPDX-License-Identifier: Apache-2.0
// The inner kernel of linear_cpu.cpp: a few rows of A times one packed panel of B. Part of that
// file alone (compiled per ISA, everything inline).
#pragma once

#include "kernels/simd_bf16.h"
#include "kernels/simd_f16.h"

namespace mamba::MAMBA_ISA {

// A panel is kPanel columns of B, depth outermost: with kRows rows the accumulators and one step of
// the panel fill the register file (24 + 3 of 32, or 12 + 3 of 16).
constexpr int kVectors = 3;
constexpr int kPanel = kVectors * F32::kLanes;
constexpr int kRows = F32::kLanes == 16 ? 8 : 4;
// Row step of a transposed copy of A: the rows of a tile.
constexpr int64_t kTileRows = 64;

// How a word (32 bits) of a panel is used.
enum Kind {
  kFloat,  // one f32
  kShift,  // two bf16 (k in the low half, k + 1 in the high half), widened to f32; A is f32
  kDot,    // two bf16 for vdpbf16ps; A is such words too
  kHalf,   // two f16, widened to f32; A is f32. A vector of words holds all of k, then of k + 1
};

#ifdef __AVX512BF16__
constexpr Kind kBf16Kind = kDot;
#else
constexpr Kind kBf16Kind = kShift;
#endif

// Words (even, odd) of two vectors.
MAMBA_INLINE F32 pair_bf16(F32 even, F32 odd) {
#ifdef __AVX512BF16__
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even.v));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd.v));
  return floats_of((Words)low | (Words)high << 16);
#else
  return floats_of((words_of(round_bf16(even)) >> 16) | words_of(round_bf16(odd)));
#endif
}

// Where the results of a block of the depth go.
struct Output {
  float* c;  // the first row and column
  int64_t stride;
  int64_t columns;    // valid columns of the panel
  const float* bias;  // of these columns, or null
  bool add;           // to what c holds
};

MAMBA_INLINE void write_out(F32 sum, const Output& out, int64_t row, int vector) {
  const int64_t at = vector * F32::kLanes;
  const int64_t n = out.columns - at;
  if (n <= 0) return;
  float* c = out.c + row * out.stride + at;
  if (n >= F32::kLanes) {
    if (out.bias != nullptr) sum = sum + F32::load(out.bias + at);
    if (out.add) sum = sum + F32::load(c);
    sum.store(c);
  } else {
    if (out.bias != nullptr) sum = sum + F32::load_n(out.bias + at, n);
    if (out.add) sum = sum + F32::load_n(c, n);
    sum.store_n(c, n);
  }
}

// c[r, :] (+)= sum over `words` of A(r, .) B(., :), for R rows. Each element is one chain of
// multiply-adds in the order of the depth, whatever R: a row does not notice its neighbours.
// A(r, k) is a[r * a_row + k * kStep]; of the panel only the first V vectors are used.
template <Kind kKind, int64_t kStep, int R, int V>
MAMBA_INLINE void micro(int64_t words, const float* a, int64_t a_row, const float* b,
                        const Output& out) {
  F32 acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) acc[r][v] = F32::zero();
  }
  const float* rows[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) rows[r] = a + r * a_row;
  for (int64_t k = 0; k < words; ++k) {
    // 2 KiB ahead: with one or two rows the panel comes from memory.
    if (R <= 2) {
      for (int v = 0; v < V; ++v) {
        __builtin_prefetch(b + k * kPanel + 512 + v * F32::kLanes);
      }
    }
    F32 bk[V];
    if constexpr (kKind == kHalf) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
          const f16* pair = reinterpret_cast<const f16*>(b + k * kPanel + v * F32::kLanes);
          bk[v] = load_f16(pair + half * F32::kLanes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const F32 ak = F32::set(rows[r][(2 * k + half) * kStep]);
#pragma GCC unroll 3
          for (int v = 0; v < V; ++v) acc[r][v] = fma(ak, bk[v], acc[r][v]);
        }
      }
      continue;
    }
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) bk[v] = F32::load(b + k * kPanel + v * F32::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (kKind == kShift) {
        const F32 even = F32::set(rows[r][2 * k * kStep]);
        const F32 odd = F32::set(rows[r][(2 * k + 1) * kStep]);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
          acc[r][v] = fma(even, floats_of(words_of(bk[v]) << 16), acc[r][v]);
          acc[r][v] = fma(odd, floats_of(words_of(bk[v]) & 0xffff0000u), acc[r][v]);
        }
      } else {
        const F32 ak = F32::set(rows[r][k * kStep]);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
#ifdef __AVX512BF16__
          if constexpr (kKind == kDot) {
            acc[r][v].v = _mm512_dpbf16_ps(acc[r][v].v, (__m512bh)ak.v, (__m512bh)bk[v].v);
            continue;
          }
#endif
          acc[r][v] = fma(ak, bk[v], acc[r][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) write_out(acc[r][v], out, r, v);
  }
}

}  // namespace mamba::MAMBA_ISA
