// SPDX-License-Identifier: Apache-2.0
// F32: a vector of kLanes floats, 4 (base x86-64), 8 (avx2) or 16 (avx512), chosen by the flags of
// the file that includes this. One source, compiled once per ISA into namespace mamba::MAMBA_ISA.
// Only C headers here and everything always_inline: an inline function that an AVX-512 file emits
// as a weak symbol could be linked into the baseline (a test counts them).
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/bf16.h"

#ifdef __SSE2__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's AVX-512 header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#ifndef MAMBA_ISA
#define MAMBA_ISA base
#endif

namespace mamba::MAMBA_ISA {

#if defined(__AVX512F__)
struct F32 {
  static constexpr int kLanes = 16;
  __m512 v;
  static MAMBA_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
  static MAMBA_INLINE F32 set(float x) { return {_mm512_set1_ps(x)}; }
  static MAMBA_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  // The first n of kLanes (0 <= n <= kLanes); the others are 0 and their memory is not touched.
  static MAMBA_INLINE F32 load_n(const float* p, int64_t n) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p)};
  }
  MAMBA_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  MAMBA_INLINE void store_n(float* p, int64_t n) const {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
  }
};
MAMBA_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
MAMBA_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
MAMBA_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
MAMBA_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c in one rounding.
MAMBA_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// c - a * b in one rounding.
MAMBA_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
MAMBA_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
MAMBA_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
MAMBA_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
MAMBA_INLINE F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, 0x08)}; }
// a > b ? x : y, lane by lane.
MAMBA_INLINE F32 select_gt(F32 a, F32 b, F32 x, F32 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
// x * 2^k for an integral k in [-127, 127].
MAMBA_INLINE F32 scale_pow2(F32 x, F32 k) { return {_mm512_scalef_ps(x.v, k.v)}; }
// Exponent and mantissa in [0.5, 1) of a normal positive x.
MAMBA_INLINE void split_exponent(F32 x, F32* mantissa, F32* exponent) {
  const __m512i bits = _mm512_castps_si512(x.v);
  exponent->v =
      _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_srli_epi32(bits, 23), _mm512_set1_epi32(126)));
  mantissa->v = _mm512_castsi512_ps(_mm512_or_epi32(
      _mm512_and_epi32(bits, _mm512_set1_epi32(0x007fffff)), _mm512_set1_epi32(0x3f000000)));
}
MAMBA_INLINE float reduce_add(F32 a) {
  const __m256 lo = _mm512_castps512_ps256(a.v);
  const __m256 hi = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m256 s = _mm256_add_ps(lo, hi);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
MAMBA_INLINE float reduce_max(F32 a) {
  const __m256 lo = _mm512_castps512_ps256(a.v);
  const __m256 hi = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m256 s = _mm256_max_ps(lo, hi);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

#elif defined(__AVX2__)
struct F32 {
  static constexpr int kLanes = 8;
  __m256 v;
  static MAMBA_INLINE __m256i tail_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static MAMBA_INLINE F32 zero() { return {_mm256_setzero_ps()}; }
  static MAMBA_INLINE F32 set(float x) { return {_mm256_set1_ps(x)}; }
  static MAMBA_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static MAMBA_INLINE F32 load_n(const float* p, int64_t n) {
    return {_mm256_maskload_ps(p, tail_mask(n))};
  }
  MAMBA_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  MAMBA_INLINE void store_n(float* p, int64_t n) const { _mm256_maskstore_ps(p, tail_mask(n), v); }
};
MAMBA_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
MAMBA_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
MAMBA_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
MAMBA_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
MAMBA_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
MAMBA_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
MAMBA_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
MAMBA_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
MAMBA_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
MAMBA_INLINE F32 round(F32 a) { return {_mm256_round_ps(a.v, 0x08)}; }
MAMBA_INLINE F32 select_gt(F32 a, F32 b, F32 x, F32 y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
MAMBA_INLINE F32 scale_pow2(F32 x, F32 k) {
  const __m256i e =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k.v), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(e))};
}
MAMBA_INLINE void split_exponent(F32 x, F32* mantissa, F32* exponent) {
  const __m256i bits = _mm256_castps_si256(x.v);
  exponent->v =
      _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(126)));
  mantissa->v = _mm256_castsi256_ps(_mm256_or_si256(
      _mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff)), _mm256_set1_epi32(0x3f000000)));
}
MAMBA_INLINE float reduce_add(F32 a) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
MAMBA_INLINE float reduce_max(F32 a) {
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

#else  // baseline: GCC / Clang vector extensions, 4 lanes, no intrinsics of one CPU family
struct F32 {
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  Vec v;
  static MAMBA_INLINE F32 zero() { return {Vec{0, 0, 0, 0}}; }
  static MAMBA_INLINE F32 set(float x) { return {Vec{x, x, x, x}}; }
  static MAMBA_INLINE F32 load(const float* p) {
    F32 r;
    memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  static MAMBA_INLINE F32 load_n(const float* p, int64_t n) {
    F32 r = zero();
    for (int i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
  }
  MAMBA_INLINE void store(float* p) const { memcpy(p, &v, sizeof v); }
  MAMBA_INLINE void store_n(float* p, int64_t n) const {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
};
MAMBA_INLINE F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
MAMBA_INLINE F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
MAMBA_INLINE F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
MAMBA_INLINE F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
MAMBA_INLINE F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }  // two roundings here
MAMBA_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {c.v - a.v * b.v}; }
MAMBA_INLINE F32 select_gt(F32 a, F32 b, F32 x, F32 y) {
  const F32::Int m = a.v > b.v;
  return {(F32::Vec)(((F32::Int)x.v & m) | ((F32::Int)y.v & ~m))};
}
MAMBA_INLINE F32 min(F32 a, F32 b) { return select_gt(b, a, a, b); }
MAMBA_INLINE F32 max(F32 a, F32 b) { return select_gt(a, b, a, b); }
MAMBA_INLINE F32 sqrt(F32 a) {
  F32 r;
  for (int i = 0; i < 4; ++i) r.v[i] = __builtin_sqrtf(a.v[i]);
  return r;
}
MAMBA_INLINE F32 round(F32 a) {  // to nearest even, for |a| < 2^22
  const F32 magic = F32::set(12582912.0f);
  return {(a.v + magic.v) - magic.v};
}
MAMBA_INLINE F32 scale_pow2(F32 x, F32 k) {
  const F32::Int e = (__builtin_convertvector(k.v, F32::Int) + 127) << 23;
  return {x.v * (F32::Vec)e};
}
MAMBA_INLINE void split_exponent(F32 x, F32* mantissa, F32* exponent) {
  const F32::Int bits = (F32::Int)x.v;
  exponent->v = __builtin_convertvector((bits >> 23) - 126, F32::Vec);
  mantissa->v = (F32::Vec)((bits & 0x007fffff) | 0x3f000000);
}
MAMBA_INLINE float reduce_add(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
MAMBA_INLINE float reduce_max(F32 a) {
  const float p = a.v[0] > a.v[2] ? a.v[0] : a.v[2], q = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return p > q ? p : q;
}
#endif

// exp(x), relative error below 2 ulp on [-87.3, 88.3]; below -87.3 it is 0, above 88.3 it stays at
// exp(88.3) = 2.2e38. Cody-Waite reduction by ln 2 and a degree-6 polynomial (docs/numerics.md).
MAMBA_INLINE F32 exp(F32 x) {
  const F32 lowest = F32::set(-87.3f);
  const F32 clamped = min(F32::set(88.3f), max(lowest, x));  // this order lets NaN through
  const F32 k = round(clamped * F32::set(1.44269504088896341f));
  F32 r = fnma(k, F32::set(0.693359375f), clamped);
  r = fnma(k, F32::set(-2.12194440e-4f), r);
  F32 p = F32::set(1.9875691500e-4f);
  p = fma(p, r, F32::set(1.3981999507e-3f));
  p = fma(p, r, F32::set(8.3334519073e-3f));
  p = fma(p, r, F32::set(4.1665795894e-2f));
  p = fma(p, r, F32::set(1.6666665459e-1f));
  p = fma(p, r, F32::set(5.0000001201e-1f));
  p = fma(p, r * r, r + F32::set(1.0f));
  return select_gt(lowest, x, F32::zero(), scale_pow2(p, k));
}

// 1 / (1 + exp(-x)).
MAMBA_INLINE F32 sigmoid(F32 x) {
  const F32 one = F32::set(1.0f);
  return one / (one + exp(F32::zero() - x));
}

// Natural logarithm of a normal positive x, relative error below 2 ulp away from 1.
MAMBA_INLINE F32 log(F32 x) {
  F32 m, e;
  split_exponent(x, &m, &e);
  const F32 root = F32::set(0.707106781186547524f);
  const F32 one = F32::set(1.0f);
  // m in [sqrt(1/2), sqrt(2)), minus one.
  const F32 small = select_gt(root, m, one, F32::zero());
  e = e - small;
  m = fma(m, small, m) - one;
  const F32 z = m * m;
  F32 p = F32::set(7.0376836292e-2f);
  p = fma(p, m, F32::set(-1.1514610310e-1f));
  p = fma(p, m, F32::set(1.1676998740e-1f));
  p = fma(p, m, F32::set(-1.2420140846e-1f));
  p = fma(p, m, F32::set(1.4249322787e-1f));
  p = fma(p, m, F32::set(-1.6668057665e-1f));
  p = fma(p, m, F32::set(2.0000714765e-1f));
  p = fma(p, m, F32::set(-2.4999993993e-1f));
  p = fma(p, m, F32::set(3.3333331174e-1f));
  p = p * m * z;
  p = fma(e, F32::set(-2.12194440e-4f), p);
  p = fnma(z, F32::set(0.5f), p);
  return fma(e, F32::set(0.693359375f), m + p);
}

// log(1 + exp(x)), and x itself above 20. For small exp(x) the usual correction
// log1p(u) = log(1+u) * u / ((1+u) - 1) keeps the relative error.
MAMBA_INLINE F32 softplus(F32 x) {
  const F32 one = F32::set(1.0f);
  const F32 twenty = F32::set(20.0f);
  const F32 u = exp(min(twenty, x));
  const F32 w = one + u;
  const F32 d = w - one;
  const F32 exact = select_gt(d, F32::zero(), log(w) * (u / max(d, F32::set(1e-30f))), u);
  return select_gt(x, twenty, x, exact);
}

}  // namespace mamba::MAMBA_ISA
