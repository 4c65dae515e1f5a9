// SPDX-License-Identifier: Apache-2.0
// linear_q for the CPU. Rows of x become bytes once; then each panel of 16 rows of W is expanded
// 256 columns at a time into L1 and meets all rows of x there. Sums within a group are exact
// integers and groups are added in order, so a row's bits do not depend on anything else.
#include <omp.h>

#include "kernels/choices.h"
#include "kernels/linear_q.h"
#include "kernels/linear_q_codes.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int64_t kTile = 256;        // rows of x that are bytes at once
constexpr int64_t kSerial = 1 << 16;  // multiply-adds below which threads do not pay
// Registers hold sums in both integers and f32 of this many rows.
constexpr int kMicroRows = F32::kLanes == 16 ? 8 : 2;
constexpr int kVectors = panels::kRows / F32::kLanes;

MAMBA_INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

// --- 8-bit dot products of four codes with four bytes of x, per lane
// -------------------------------

#if defined(__AVX512VNNI__)
struct I32 {
  __m512i v;
};
struct Quad {  // four bytes of x in each lane
  __m512i v;
};
typedef int8_t Byte;  // of x, as it is held
MAMBA_INLINE I32 set_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
MAMBA_INLINE Quad load_quad(const Byte* x) {
  int32_t word;
  memcpy(&word, x, 4);
  return {_mm512_set1_epi32(word)};
}
struct Codes {
  __m512i v;
};
MAMBA_INLINE Codes to_codes(Line line) { return {(__m512i)line}; }
MAMBA_INLINE I32 dot(I32 sum, Codes w, Quad x) { return {_mm512_dpbusd_epi32(sum.v, w.v, x.v)}; }
MAMBA_INLINE I32 plus(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
MAMBA_INLINE F32 to_f32(I32 x) { return {_mm512_cvtepi32_ps(x.v)}; }
#elif defined(__AVX2__)
// Without such an instruction: bytes 0, 2 and bytes 1, 3 as 16-bit numbers. x is held so, and codes
// that many rows meet are widened once.
#if defined(__AVX512BW__)
typedef __m512i Ints;
MAMBA_INLINE Ints set_ints(int32_t x) { return _mm512_set1_epi32(x); }
MAMBA_INLINE Ints right_8(Ints x) { return _mm512_srli_epi16(x, 8); }
MAMBA_INLINE Ints both(Ints x, Ints y) { return _mm512_and_si512(x, y); }
MAMBA_INLINE Ints pairs(Ints x, Ints y) { return _mm512_madd_epi16(x, y); }
MAMBA_INLINE Ints sum(Ints x, Ints y) { return _mm512_add_epi32(x, y); }
MAMBA_INLINE F32 floats(Ints x) { return {_mm512_cvtepi32_ps(x)}; }
#else
typedef __m256i Ints;
MAMBA_INLINE Ints set_ints(int32_t x) { return _mm256_set1_epi32(x); }
MAMBA_INLINE Ints right_8(Ints x) { return _mm256_srli_epi16(x, 8); }
MAMBA_INLINE Ints both(Ints x, Ints y) { return _mm256_and_si256(x, y); }
MAMBA_INLINE Ints pairs(Ints x, Ints y) { return _mm256_madd_epi16(x, y); }
MAMBA_INLINE Ints sum(Ints x, Ints y) { return _mm256_add_epi32(x, y); }
MAMBA_INLINE F32 floats(Ints x) { return {_mm256_cvtepi32_ps(x)}; }
#endif
struct I32 {
  Ints v;
};
struct Quad {
  Ints even, odd;
};
struct Codes {
  Ints even, odd;
};
MAMBA_INLINE I32 set_i32(int32_t x) { return {set_ints(x)}; }
typedef int16_t Byte;  // of x, as it is held: 0, 2, 1, 3 of every four
MAMBA_INLINE Quad load_quad(const Byte* x) {
  int32_t words[2];
  memcpy(words, x, 8);
  return {set_ints(words[0]), set_ints(words[1])};
}
MAMBA_INLINE Codes to_codes(Line line) {
  const Ints bytes = (Ints)line;
  return {both(bytes, set_ints(0x00ff00ff)), right_8(bytes)};
}
#define MAMBA_WIDE_CODES 1
MAMBA_INLINE void store_codes(Codes w, uint8_t* to) { memcpy(to, &w, sizeof w); }
MAMBA_INLINE Codes load_codes(const uint8_t* from) {
  Codes w;
  memcpy(&w, from, sizeof w);
  return w;
}
MAMBA_INLINE I32 dot(I32 total, Codes w, Quad x) {
  Ints v = sum(total.v, sum(pairs(w.even, x.even), pairs(w.odd, x.odd)));
  asm("" : "+v"(v));  // or all products of a group are made first, and go through memory
  return {v};
}
MAMBA_INLINE I32 plus(I32 a, I32 b) { return {sum(a.v, b.v)}; }
MAMBA_INLINE F32 to_f32(I32 x) { return floats(x.v); }
#else
struct I32 {
  F32::Int v;
};
struct Quad {
  int32_t x[4];
};
struct Codes {
  F32::Int v;
};
MAMBA_INLINE I32 set_i32(int32_t x) { return {F32::Int{x, x, x, x}}; }
typedef int8_t Byte;  // of x, as it is held
MAMBA_INLINE Quad load_quad(const Byte* x) { return {{x[0], x[1], x[2], x[3]}}; }
MAMBA_INLINE Codes to_codes(Line line) { return {(F32::Int)line}; }
MAMBA_INLINE I32 dot(I32 sum, Codes w, Quad x) {
  const F32::Int byte = {255, 255, 255, 255};
  return {sum.v + (w.v & byte) * x.x[0] + (w.v >> 8 & byte) * x.x[1] + (w.v >> 16 & byte) * x.x[2] +
          (w.v >> 24 & byte) * x.x[3]};
}
MAMBA_INLINE I32 plus(I32 a, I32 b) { return {a.v + b.v}; }
MAMBA_INLINE F32 to_f32(I32 x) { return {__builtin_convertvector(x.v, F32::Vec)}; }
#endif

// --- Rows of x as bytes
// ----------------------------------------------------------------------------

// Of a tile of rows: bytes, and per group the step s, -zero * sum of bytes, s * sum of bytes.
struct Bytes {
  int64_t K, groups;  // groups of a row
  Byte* q;            // (rows, K)
  float* step;        // (rows, groups)
  int32_t* start;     // (rows, groups)
  float* total;       // (rows, groups)
};

#if defined(__AVX512F__)
// 16 numbers of a byte each.
MAMBA_INLINE void store_bytes(__m512i v, Byte* q) {
#if defined(__AVX512VNNI__)
  _mm_storeu_si128((__m128i*)q, _mm512_cvtsepi32_epi8(v));
#else
  constexpr int kOrder = 0xd8;  // 0, 2, 1, 3
  const __m256i low = _mm256_shufflelo_epi16(_mm512_cvtsepi32_epi16(v), kOrder);
  _mm256_storeu_si256((__m256i*)q, _mm256_shufflehi_epi16(low, kOrder));
#endif
}
#endif

// 32 numbers to bytes, and the sums of their halves; returns the largest magnitude, or NaN where
// one is not finite.
MAMBA_INLINE float block_to_bytes(const float* x, Byte* q, int32_t sums[2]) {
  constexpr float kTiny = 0x1p-100f;
#if defined(__AVX512F__)
  const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
  const F32 most = max({_mm512_abs_ps(low)}, {_mm512_abs_ps(high)});
  const __m512 zero = _mm512_setzero_ps();
  const __m512 bad = _mm512_add_ps(_mm512_mul_ps(low, zero), _mm512_mul_ps(high, zero));
  const float m = reduce_max(most);
  const __m512 inverse = _mm512_set1_ps(m > kTiny ? 127.0f / m : 0.0f);
  // A NaN converts to the smallest number, of which a sum may not hold two.
  const __m512i least = _mm512_set1_epi32(-127);
  const __m512i a = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)), least);
  const __m512i b = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(high, inverse)), least);
  store_bytes(a, q);
  store_bytes(b, q + 16);
  sums[0] = _mm512_reduce_add_epi32(a);
  sums[1] = _mm512_reduce_add_epi32(b);
  return _mm512_cmp_ps_mask(bad, bad, _CMP_UNORD_Q) != 0 ? __builtin_nanf("") : m;
#else
  F32 most = F32::zero(), bad = F32::zero();
  for (int64_t i = 0; i < panels::kBlock; i += F32::kLanes) {
    const F32 v = F32::load(x + i);
    most = max(most, max(v, F32::zero() - v));
    bad = bad + v * F32::zero();  // NaN for NaN and infinity
  }
  const float m = reduce_max(most);
#if defined(__AVX2__)
  const __m256 inverse = _mm256_set1_ps(m > kTiny ? 127.0f / m : 0.0f);
  const __m256i least = _mm256_set1_epi32(-127), largest = _mm256_set1_epi32(127);
  for (int half = 0; half < 2; ++half) {
    __m256i part[2];
    for (int i = 0; i < 2; ++i) {
      const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + 16 * half + 8 * i), inverse);
      part[i] = _mm256_min_epi32(_mm256_max_epi32(_mm256_cvtps_epi32(v), least), largest);
    }
    const __m256i both = _mm256_add_epi32(part[0], part[1]);
    __m128i total = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0xb1));
    sums[half] = _mm_cvtsi128_si32(total);
    constexpr int kOrder = 0xd8;  // 0, 2, 1, 3
    __m256i packed = _mm256_packs_epi32(part[0], part[1]);
    packed = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(packed, kOrder), kOrder);
    _mm256_storeu_si256((__m256i*)(q + 16 * half), _mm256_permute4x64_epi64(packed, kOrder));
  }
#else
  const F32 inverse = F32::set(m > kTiny ? 127.0f / m : 0.0f);
  sums[0] = sums[1] = 0;
  for (int64_t i = 0; i < panels::kBlock; i += F32::kLanes) {
    float rounded[F32::kLanes];
    round(F32::load(x + i) * inverse).store(rounded);
    for (int j = 0; j < F32::kLanes; ++j) {
      // A NaN compares false: any byte will do.
      const bool fits = rounded[j] >= -127.0f && rounded[j] <= 127.0f;
      const int32_t byte = fits ? static_cast<int32_t>(rounded[j]) : 0;
      q[i + j] = static_cast<int8_t>(byte);
      sums[i / 16] += byte;
    }
  }
#endif
  return m + reduce_add(bad);
#endif
}

MAMBA_INLINE void to_bytes(const float* x, const panels::Layout& l, int64_t row, const Bytes& to) {
  for (int64_t k = 0, at = row * to.groups; k < to.K; k += panels::kBlock, at += l.groups) {
    int32_t sums[2];
    const float step = block_to_bytes(x + k, to.q + row * to.K + k, sums) / 127.0f;
    if (l.groups == 1) sums[0] += sums[1];
    for (int64_t g = 0; g < l.groups; ++g) {
      to.step[at + g] = step;
      to.start[at + g] = -l.zero * sums[g];
      to.total[at + g] = step * static_cast<float>(sums[g]);
    }
  }
}

// --- A panel
// ---------------------------------------------------------------------------------------

// acc[r, :] += groups of `blocks` blocks, for R rows of x from byte column 0 of `q` on. kWide:
// codes have been widened.
// Meanwhile kLines lines a group are fetched from `ahead` on, so that memory works while we do.
template <int R, bool kAdd, int kGroups, int kLines, bool kWide>
MAMBA_INLINE void micro(int64_t blocks, const uint8_t* codes, const Expanded& e, const Bytes& x,
                        int64_t row, int64_t first, const uint8_t* ahead, float* acc) {
  constexpr int kRows = panels::kRows, kLanes = F32::kLanes;
  constexpr int kQuads = 8 / kGroups;
  F32 sum[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = F32::load(acc + r * kRows + v * kLanes);
  }
  const Byte* q = x.q + row * x.K + first * panels::kBlock;
  const int64_t at = row * x.groups + first * kGroups;
  for (int64_t g = 0; g < blocks * kGroups; ++g) {
#pragma GCC unroll 9
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(ahead + (g * kLines + i) * 64);
    I32 exact[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) exact[r][v] = set_i32(x.start[at + r * x.groups + g]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      Codes w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t from = (g * kQuads + i) * panels::kQuad + 4 * v * kLanes;
#ifdef MAMBA_WIDE_CODES
        if constexpr (kWide) {
          w[v] = load_codes(codes + 2 * from);
          continue;
        }
#endif
        w[v] = to_codes(load_line(codes + from));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Quad xq = load_quad(q + r * x.K + (g * kQuads + i) * 4);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) exact[r][v] = dot(exact[r][v], w[v], xq);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32 step = F32::set(x.step[at + r * x.groups + g]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const F32 scale = F32::load(e.scale + g * kRows + v * kLanes);
        sum[r][v] = fma(to_f32(exact[r][v]), scale * step, sum[r][v]);
        if constexpr (kAdd) {
          sum[r][v] = fma(F32::load(e.add + g * kRows + v * kLanes),
                          F32::set(x.total[at + r * x.groups + g]), sum[r][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v].store(acc + r * kRows + v * kLanes);
  }
}

// acc (16) = the panel times row 0 of x: codes go from memory through registers into the products.
template <int kBits, bool kTableCodes, bool kSuper, bool kAdd, int kGroups>
void panel_times_one(const uint8_t* panel, const panels::Layout& l, const Bytes& x, float* acc) {
  constexpr int64_t kWidth = sizeof(Line);
  const int64_t blocks = x.K / panels::kBlock, code_bytes = panels::code_bytes(l);
  F32 sum[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = F32::zero();
  const Byte* q = x.q;
  const float *step = x.step, *total = x.total;
  const int32_t* start = x.start;
  const uint8_t* run = panel;
  for (int64_t first = 0; first < blocks; first += kRunBlocks) {
    const int64_t n = minimum(kRunBlocks, blocks - first);
    const uint8_t* codes = run;
    Scales<kSuper, kAdd, kGroups> scales(run + n * code_bytes);
    const uint8_t* ahead = run + 2 * panels::run_bytes(l, n);
    run += panels::run_bytes(l, n);
    for (int64_t block = 0; block < n; ++block) {
#pragma GCC unroll 9
      for (int i = 0; i <= kBits; ++i) __builtin_prefetch(ahead + (block * (kBits + 1) + i) * 64);
      // Two sums of integers at once, of quads below and from 4 on: they are the groups of Q6_K.
      I32 low[kVectors], up[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        low[v] = set_i32(start[0]);
        up[v] = set_i32(kGroups == 2 ? start[1] : 0);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Quad xl = load_quad(q + 4 * i), xu = load_quad(q + 16 + 4 * i);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          Line a, b;
          two_quads<kBits, kTableCodes>(codes, i, v * kWidth, &a, &b);
          low[v] = dot(low[v], to_codes(a), xl);
          up[v] = dot(up[v], to_codes(b), xu);
        }
      }
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const F32 s = F32::set(step[g]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const I32 exact = kGroups == 2 ? (g == 0 ? low[v] : up[v]) : plus(low[v], up[v]);
          sum[v] = fma(to_f32(exact), scales.scale(g, v) * s, sum[v]);
          if constexpr (kAdd) sum[v] = fma(scales.add(v), F32::set(total[g]), sum[v]);
        }
      }
      scales.next();
      codes += code_bytes, q += panels::kBlock;
      step += kGroups, total += kGroups, start += kGroups;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v].store(acc + v * F32::kLanes);
}

// acc (rows, 16) = the panel times `rows` rows of x.
template <int kBits, bool kTableCodes, bool kSuper, bool kAdd, int kGroups>
void panel_times_rows(const uint8_t* panel, const panels::Layout& l, const Bytes& x, int64_t rows,
                      float* acc) {
  if (rows == 1) {
    panel_times_one<kBits, kTableCodes, kSuper, kAdd, kGroups>(panel, l, x, acc);
    return;
  }
  constexpr int64_t kRows = panels::kRows;
  const int64_t blocks = x.K / panels::kBlock, code_bytes = panels::code_bytes(l);
  memset(acc, 0, sizeof(float) * static_cast<size_t>(rows * kRows));
  Expanded e;
  const uint8_t* run = panel;
  for (int64_t first = 0; first < blocks; first += kRunBlocks) {
    const int64_t n = minimum(kRunBlocks, blocks - first);
    const uint8_t* codes = run;
    const uint8_t* scales = run + n * code_bytes;
    if constexpr (kBits < 8) {
      for (int64_t b = 0; b < n; ++b) {
        expand_block<kBits, kTableCodes>(codes + b * code_bytes, e.codes + b * 8 * panels::kQuad);
      }
    }
    expand_scales<kSuper, kAdd, kGroups>(scales, n, e);
    if constexpr (kBits < 8) codes = e.codes;
    const uint8_t* ahead = run + 2 * panels::run_bytes(l, n);
    run += panels::run_bytes(l, n);
    int64_t row = 0;
    const auto some = [&]<int R, int kLines>() {
      micro<R, kAdd, kGroups, kLines, false>(n, codes, e, x, row, first, ahead, acc + row * kRows);
      row += R;
    };
#ifdef MAMBA_WIDE_CODES
    constexpr int64_t kRowsToWiden = 4 * kMicroRows;
    if (rows >= kRowsToWiden) {
      alignas(64) uint8_t wide[2 * sizeof e.codes];
      for (int64_t at = 0; at < n * 8 * panels::kQuad; at += sizeof(Line)) {
        store_codes(to_codes(load_line(codes + at)), wide + 2 * at);
      }
      for (; rows - row >= kMicroRows; row += kMicroRows) {
        micro<kMicroRows, kAdd, kGroups, 0, true>(n, wide, e, x, row, first, ahead,
                                                  acc + row * kRows);
      }
    }
#endif
    // Codes of a block, and its scales: where rows are many, waiting for them does not count.
    constexpr int kLines = (kBits + 1 + kGroups - 1) / kGroups;
    if (rows <= kMicroRows) {
      if (rows == kMicroRows) some.template operator()<kMicroRows, kLines>();
    } else {
      while (rows - row >= kMicroRows) some.template operator()<kMicroRows, 0>();
    }
    if constexpr (kMicroRows > 4) {
      if (rows - row >= 4) some.template operator()<4, kLines>();
    }
    if constexpr (kMicroRows > 2) {
      if (rows - row >= 2) some.template operator()<2, kLines>();
    }
    if (rows - row >= 1) some.template operator()<1, kLines>();
  }
}

void any_panel(DType type, const uint8_t* panel, const panels::Layout& l, const Bytes& x,
               int64_t rows, float* acc) {
  switch (type) {
    case DType::kQ4_0:
      return panel_times_rows<4, false, false, false, 1>(panel, l, x, rows, acc);
    case DType::kQ4_1:
      return panel_times_rows<4, false, false, true, 1>(panel, l, x, rows, acc);
    case DType::kQ5_0:
      return panel_times_rows<5, false, false, false, 1>(panel, l, x, rows, acc);
    case DType::kQ5_1:
      return panel_times_rows<5, false, false, true, 1>(panel, l, x, rows, acc);
    case DType::kQ4_K:
      return panel_times_rows<4, false, true, true, 1>(panel, l, x, rows, acc);
    case DType::kQ5_K:
      return panel_times_rows<5, false, true, true, 1>(panel, l, x, rows, acc);
    case DType::kQ6_K:
      return panel_times_rows<6, false, true, false, 2>(panel, l, x, rows, acc);
    case DType::kIQ4_NL:
      return panel_times_rows<4, true, false, false, 1>(panel, l, x, rows, acc);
    default:
      return panel_times_rows<8, false, false, false, 1>(panel, l, x, rows, acc);
  }
}

}  // namespace

void linear_q_forward(Stream& stream, const LinearQArgs& a) noexcept {
  only_way(stream, a, Way::kGeneral);
  const PackedLinear& w = *a.packed;
  if (w.panel != panels::kPanelMark || w.N != a.N || w.K != a.K) {
    if (stream.failed == nullptr) stream.failed = "linear_q_forward (packed for something else)";
    return;
  }
  if (a.M <= 0 || a.N <= 0) return;
  const panels::Layout l = panels::layout_of(w.dtype);
  const int64_t groups = a.K / panels::kBlock * l.groups, tile = minimum(kTile, a.M);
  const int64_t panel_bytes = panels::panel_bytes(l, a.K);
  const int64_t count = (a.N + panels::kRows - 1) / panels::kRows;
  const int64_t part = (tile * groups + 15) / 16 * 16, sums = tile * panels::kRows;
  const int threads = a.M * a.N * a.K < kSerial ? 1 : stream.threads;
  constexpr int64_t kInWord = sizeof(float) / sizeof(Byte);
  float* scratch = stream.scratch<float>(tile * a.K / kInWord + 16 + 3 * part + threads * sums);
  if (scratch == nullptr) return;
  Bytes x = {a.K, groups, nullptr, scratch, nullptr, scratch + part};
  x.start = reinterpret_cast<int32_t*>(scratch + 2 * part);
  float* acc = scratch + 3 * part;
  x.q = reinterpret_cast<Byte*>(acc + threads * sums);
  const uint8_t* panels_at = static_cast<const uint8_t*>(w.data);
  const float* bias = a.bias.as<float>();
  for (int64_t row = 0; row < a.M; row += tile) {
    const int64_t rows = minimum(tile, a.M - row);
    const float* from = a.x.as<float>() + row * a.x_stride;
    float* y = a.y.as<float>() + row * a.y_stride;
    const bool few = rows <= kMicroRows;  // then one thread makes the bytes sooner
    if (few) {
      for (int64_t r = 0; r < rows; ++r) to_bytes(from + r * a.x_stride, l, r, x);
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      if (!few) {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) to_bytes(from + r * a.x_stride, l, r, x);
      }
      float* mine = acc + omp_get_thread_num() * sums;
      // One run of panels a thread: each reads its part of memory in one sweep.
#pragma omp for schedule(static)
      for (int64_t p = 0; p < count; ++p) {
        any_panel(w.dtype, panels_at + p * panel_bytes, l, x, rows, mine);
        const int64_t n0 = p * panels::kRows, n = minimum(panels::kRows, a.N - n0);
        for (int64_t r = 0; r < rows; ++r) {
          const float* sum = mine + r * panels::kRows;
          float* out = y + r * a.y_stride + n0;
          for (int64_t i = 0; i < n; ++i) out[i] = bias != nullptr ? sum[i] + bias[n0 + i] : sum[i];
        }
      }
    }
  }
}

void linear_q_pack(Stream& stream, const LinearQPackArgs& a) noexcept {
  *a.out = panels::pack(stream, a.weight.dtype, a.weight.data, a.N, a.K);
}

void linear_q_rows(Stream&, const LinearQRowsArgs& a) noexcept {
  const int64_t K = a.packed->K;
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t id = a.ids.as<int32_t>()[r];
    float* y = a.y.as<float>() + r * K;
    if (id < 0) {
      memset(y, 0, sizeof(float) * static_cast<size_t>(K));
    } else {
      panels::read_row(*a.packed, id, y);
    }
  }
}

}  // namespace mamba::MAMBA_ISA
