// SPDX-License-Identifier: Apache-2.0
// linear for the CPU: all three products are C = A B with B packed into panels (linear_micro.h).
// The sum over the depth is cut into blocks of kDepth, each one chain of multiply-adds, added in
// order: an element of C depends on its row of A and its column of B alone, not on tiles, threads,
// packing ahead or the number of rows. So one row (decoding) and many give the same bits.
#include <omp.h>
#include <stdlib.h>

#include "kernels/choices.h"
#include "kernels/linear.h"
#include "kernels/linear_micro.h"
#include "kernels/linear_packed.h"

namespace mamba::MAMBA_ISA {
namespace {

// Chosen by measurement on one core of Zen 4: 100-105 GFLOP/s in f32 and 200 in bf16 at 2048 x 768
// x 3072, where oneDNN 2.6 has 105 and 210; a depth of 128 loses 8 %.
constexpr int64_t kDepth = 512;                  // a block of the sum: 8 rows of A then stay in L1
constexpr int64_t kPackDepth = 1024;             // packed at once when B is not packed ahead,
constexpr int64_t kPackWords = 2 * 1024 * 1024;  // and at most 8 MiB, so that it stays in L3
constexpr int64_t kChunk = 64;                   // words of a row transposed at once
constexpr int64_t kSerial = 1 << 16;             // multiply-adds below which threads do not pay
constexpr int64_t kRowsToWiden = 16;             // that make it worth to widen a panel of pairs

MAMBA_INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
MAMBA_INLINE int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Of the copy of a block of A.
MAMBA_INLINE int64_t copy_words_of(int64_t rows, int64_t depth) {
  return (rows * depth + 31) / 16 * 16;
}

// C (rows, cols) (+)= A (rows, depth) B (depth, cols) + bias.
struct Problem {
  int64_t rows, cols, depth;
  Product product;
  const float* a;  // A(r, k) = a[r * a_stride + k], transposed: a[k * a_stride + r]
  int64_t a_stride;
  bool a_transposed;
  CBuf b;  // B(k, c) = b[c * b_stride + k], b_rows: b[k * b_stride + c]
  int64_t b_stride;
  bool b_rows;
  const float* bias;  // (cols) or null
  bool accumulate;
  float* c;
  int64_t c_stride;
};

// A part of a problem whose panels are ready: depth begin..begin+depth, columns of `panels`.
struct Part {
  int64_t depth_begin, depth;
  int64_t col_begin, cols;
  const float* panels;   // [panel][word of the depth][kPanel]
  int64_t panel_stride;  // in words
};

// What panels hold: a word is one f32, or two bf16 or f16 of a column.
MAMBA_INLINE DType held_as(Product product, DType b) {
  return product == Product::kBF16 ? DType::kBF16 : b;
}
MAMBA_INLINE bool in_pairs(DType held) { return held != DType::kF32; }
MAMBA_INLINE int64_t words_for(int64_t depth, bool pairs) {
  return pairs ? (depth + 1) / 2 : depth;
}

// --- Packing of B
// ---------------------------------------------------------------------------------

// n f32 to (n + 1) / 2 words of two bf16; the last half is 0 for odd n.
MAMBA_INLINE void row_to_pairs(const float* x, int64_t n, float* out) {
  int64_t i = 0;
#ifdef __AVX512BF16__
  for (; i + 32 <= n; i += 32) {
    const __m512bh pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    _mm512_storeu_ps(out + i / 2, (__m512)pairs);
  }
#endif
  for (; i < n; i += 2) {
    const uint32_t low = to_bf16(x[i]).bits;
    const uint32_t high = i + 1 < n ? to_bf16(x[i + 1]).bits : 0;
    const uint32_t word = low | high << 16;
    memcpy(out + i / 2, &word, sizeof word);
  }
}

typedef float Four __attribute__((vector_size(16)));

// out[k * kPanel + c] = in[c * stride + k] for 4 rows c and 4 k.
MAMBA_INLINE void transpose_four(const float* in, int64_t stride, Four out[4]) {
  Four a, b, c, d;
  memcpy(&a, in, 16);
  memcpy(&b, in + stride, 16);
  memcpy(&c, in + 2 * stride, 16);
  memcpy(&d, in + 3 * stride, 16);
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  out[1] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  out[2] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  out[3] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

// out[k * kPanel + c] = in[c * stride + k] for 4 rows c and `words` k. `in` is read in whole fours.
MAMBA_INLINE void transpose_rows(const float* in, int64_t stride, int64_t words, float* out) {
  Four columns[4];
  int64_t k = 0;
  for (; k + 4 <= words; k += 4) {
    transpose_four(in + k, stride, columns);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) memcpy(out + (k + i) * kPanel, &columns[i], 16);
  }
  if (k == words) return;
  transpose_four(in + k, stride, columns);
  for (int64_t i = 0; i < words - k; ++i) memcpy(out + (k + i) * kPanel, &columns[i], 16);
}

// `words` words of a column from n of its values, which start at element `at` (none: zeros), and up
// to three words of zeros after them.
MAMBA_INLINE void column_to_words(CBuf b, int64_t at, int64_t n, int64_t words, DType held,
                                  float* out) {
  for (int64_t i = n == 0 ? 0 : words & ~int64_t{3}; i < minimum(kChunk, words + 3); ++i)
    out[i] = 0;
  if (n == 0) return;
  if (b.dtype == held && in_pairs(held)) {
    out[words - 1] = 0;
    memcpy(out, b.as<bf16>() + at, sizeof(bf16) * n);
  } else if (in_pairs(held)) {
    row_to_pairs(b.as<float>() + at, n, out);
  } else {
    memcpy(out, b.as<float>() + at, sizeof(float) * n);
  }
}

// One panel of B given by columns (a weight's rows): chunks are converted, then transposed.
void pack_columns(CBuf b, int64_t stride, int64_t depth, int64_t cols, DType held, float* panel) {
  const bool pairs = in_pairs(held);
  float chunk[kPanel * kChunk];
  const int64_t chunk_depth = pairs ? 2 * kChunk : kChunk;
  for (int64_t k = 0; k < depth; k += chunk_depth) {
    const int64_t n = minimum(chunk_depth, depth - k);
    const int64_t words = words_for(n, pairs);
    float* out = panel + words_for(k, pairs) * kPanel;
    if (!pairs && cols >= kPanel && words % 4 == 0) {
      const float* in = b.as<float>() + k;
      for (int64_t c = 0; c < kPanel; c += 4)
        transpose_rows(in + c * stride, stride, words, out + c);
      continue;
    }
    for (int64_t c = 0; c < kPanel; ++c) {
      column_to_words(b, c * stride + k, c < cols ? n : 0, words, held, chunk + c * kChunk);
    }
    for (int64_t c = 0; c < kPanel; c += 4) {
      transpose_rows(chunk + c * kChunk, kChunk, words, out + c);
    }
  }
}

// Pairs of f16 side by side to what kHalf takes, in place.
void split_pairs(int64_t words, float* panel) {
  for (float* at = panel; at < panel + words * kPanel; at += F32::kLanes) {
    f16 pairs[2 * F32::kLanes], split[2 * F32::kLanes];
    memcpy(pairs, at, sizeof pairs);
    for (int i = 0; i < F32::kLanes; ++i) {
      split[i] = pairs[2 * i];
      split[F32::kLanes + i] = pairs[2 * i + 1];
    }
    memcpy(at, split, sizeof split);
  }
}

// `lanes` values of a row of f32 or bf16 from element i on, the ones from n on are 0.
MAMBA_INLINE F32 load_row(CBuf b, int64_t i, int64_t n) {
  if (b.dtype == DType::kF32 && n >= F32::kLanes) return F32::load(b.as<float>() + i);
  if (n <= 0) return F32::zero();
  if (b.dtype == DType::kF32) {
    return F32::load_n(b.as<float>() + i, n);
  }
  float wide[F32::kLanes] = {};
  for (int64_t j = 0; j < minimum(n, F32::kLanes); ++j) wide[j] = to_f32(b.as<bf16>()[i + j]);
  return F32::load(wide);
}

// One panel of B given by rows.
void pack_rows(CBuf b, int64_t stride, int64_t depth, int64_t cols, bool pairs, float* panel) {
  for (int64_t w = 0; w < words_for(depth, pairs); ++w) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t at = v * F32::kLanes;
      float* out = panel + w * kPanel + at;
      if (!pairs) {
        load_row(b, w * stride + at, cols - at).store(out);
        continue;
      }
      const F32 even = load_row(b, 2 * w * stride + at, cols - at);
      const int64_t odd_columns = 2 * w + 1 < depth ? cols - at : 0;
      pair_bf16(even, load_row(b, (2 * w + 1) * stride + at, odd_columns)).store(out);
    }
  }
}

void pack_panel(const Problem& p, const Part& part, int64_t panel, DType held, float* out) {
  const int64_t col = part.col_begin + panel * kPanel;
  const int64_t cols = minimum(kPanel, part.col_begin + part.cols - col);
  if (p.b_rows) {
    pack_rows(p.b + (part.depth_begin * p.b_stride + col), p.b_stride, part.depth, cols,
              in_pairs(held), out);
  } else {
    pack_columns(p.b + (col * p.b_stride + part.depth_begin), p.b_stride, part.depth, cols, held,
                 out);
    if (held == DType::kF16) split_pairs(words_for(part.depth, true), out);
  }
}

// --- A tile
// ---------------------------------------------------------------------------------------

// A block of A as the inner kernel wants it: where it is, or copied, rounded, transposed.
template <Kind kKind>
void copy_rows(const Problem& p, int64_t row, int64_t rows, int64_t k, int64_t n,
               int64_t out_stride, float* out) {
  const bool round = p.product == Product::kBF16;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = p.a + (row + r) * p.a_stride + k;
    float* y = out + r * out_stride;
    if constexpr (kKind == kDot) {
      row_to_pairs(x, n, y);
      continue;
    }
    int64_t i = 0;
    for (; i + F32::kLanes <= n; i += F32::kLanes) {
      const F32 v = F32::load(x + i);
      (round ? round_bf16(v) : v).store(y + i);
    }
    const F32 v = F32::load_n(x + i, n - i);
    (round ? round_bf16(v) : v).store_n(y + i, n - i);
    if (n % 2 != 0) y[n] = 0;
  }
}

template <Kind kKind>
void copy_transposed(const Problem& p, int64_t row, int64_t rows, int64_t k, int64_t n,
                     float* out) {
  const bool round = p.product == Product::kBF16;
  const int64_t words = kKind == kDot ? (n + 1) / 2 : n + (kKind == kFloat ? 0 : n % 2);
  for (int64_t w = 0; w < words; ++w) {
    for (int64_t r = 0; r < rows; r += F32::kLanes) {
      const int64_t lanes = minimum(F32::kLanes, rows - r);
      const auto line = [&](int64_t i) {
        return i < n ? F32::load_n(p.a + (k + i) * p.a_stride + row + r, lanes) : F32::zero();
      };
      float* y = out + w * kTileRows + r;
      if constexpr (kKind == kDot) {
        pair_bf16(line(2 * w), line(2 * w + 1)).store(y);
      } else {
        (round ? round_bf16(line(w)) : line(w)).store(y);
      }
    }
  }
}

// Widens `words` of a panel of pairs: both of each word in f32, as the inner kernel would.
template <Kind kKind>
void widen_panel(int64_t words, const float* panel, float* out) {
  for (int64_t at = 0; at < words * kPanel; at += kPanel, panel += kPanel, out += 2 * kPanel) {
    for (int64_t v = 0; v < kPanel; v += F32::kLanes) {
      if constexpr (kKind == kHalf) {
        const f16* pairs = reinterpret_cast<const f16*>(panel + v);
        load_f16(pairs).store(out + v);
        load_f16(pairs + F32::kLanes).store(out + kPanel + v);
      } else {
        const F32 pairs = F32::load(panel + v);
        floats_of(words_of(pairs) << 16).store(out + v);
        floats_of(words_of(pairs) & 0xffff0000u).store(out + kPanel + v);
      }
    }
  }
}

// All rows of a block times the first V vectors of one panel.
template <Kind kKind, int64_t kStep, int V>
void block_times_vectors(int64_t rows, int64_t words, const float* a, int64_t a_row, const float* b,
                         Output out) {
  const auto some = [&]<int R>() {
    micro<kKind, kStep, R, V>(words, a, a_row, b, out);
    a += R * a_row;
    out.c += R * out.stride;
    rows -= R;
  };
  while (rows >= kRows) some.template operator()<kRows>();
  if (kRows > 4 && rows >= 4) some.template operator()<4>();
  if (rows >= 2) some.template operator()<2>();
  if (rows >= 1) some.template operator()<1>();
}

template <Kind kKind, int64_t kStep>
void block_times_panel(int64_t rows, int64_t words, const float* a, int64_t a_row, const float* b,
                       const Output& out) {
  if (out.columns > 2 * F32::kLanes) {
    block_times_vectors<kKind, kStep, 3>(rows, words, a, a_row, b, out);
  } else if (out.columns > F32::kLanes) {
    block_times_vectors<kKind, kStep, 2>(rows, words, a, a_row, b, out);
  } else {
    block_times_vectors<kKind, kStep, 1>(rows, words, a, a_row, b, out);
  }
}

// Rows row..row+rows of C, panels first..last of the part. `copy` holds a block of A, behind it
// one of a panel, for as many rows as are worth widening it once: the bits are the same.
template <Kind kKind, int64_t kStep>
void tile(const Problem& p, const Part& part, int64_t row, int64_t rows, int64_t first,
          int64_t last, int64_t rows_of_copy, int64_t copy_depth, float* copy) {
  constexpr bool kPairs = kKind != kFloat;
  // Steps of A to one step of the depth, as a fraction: a word of kDot holds two.
  constexpr int64_t kHalf = kKind == kDot ? 2 : 1;
  const bool as_is =
      kStep == 1 && kKind != kDot && p.product == Product::kF32 && !(kPairs && part.depth % 2 != 0);
  const int64_t copy_stride = copy_depth / kHalf;
  [[maybe_unused]] float* wide = copy + copy_words_of(rows_of_copy, copy_depth);
  for (int64_t k0 = 0; k0 < part.depth; k0 += copy_depth) {
    const int64_t kn = minimum(copy_depth, part.depth - k0);
    const float* a = copy;
    int64_t a_row = kStep == 1 ? copy_stride : 1;
    if (as_is) {
      a = p.a + row * p.a_stride + part.depth_begin + k0;
      a_row = p.a_stride;
    } else if (kStep == 1) {
      copy_rows<kKind>(p, row, rows, part.depth_begin + k0, kn, copy_stride, copy);
    } else {
      copy_transposed<kKind>(p, row, rows, part.depth_begin + k0, kn, copy);
    }
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t k = 0; k < kn; k += kDepth) {
        const int64_t col = part.col_begin + panel * kPanel;
        const bool begin = part.depth_begin + k0 + k == 0;
        const Output out = {p.c + row * p.c_stride + col, p.c_stride, minimum(kPanel, p.cols - col),
                            begin && p.bias != nullptr ? p.bias + col : nullptr,
                            !begin || p.accumulate};
        const int64_t n = minimum(kDepth, kn - k);
        const float* b =
            part.panels + panel * part.panel_stride + words_for(k0 + k, kPairs) * kPanel;
        if constexpr (kKind == kShift || kKind == Kind::kHalf) {
          if (rows >= kRowsToWiden) {
            widen_panel<kKind>(words_for(n, true), b, wide);
            block_times_panel<kFloat, kStep>(rows, n, a + k * kStep, a_row, wide, out);
            continue;
          }
        }
        block_times_panel<kKind, kStep>(rows, words_for(n, kPairs), a + k / kHalf * kStep, a_row, b,
                                        out);
      }
    }
  }
}

// --- A product
// ------------------------------------------------------------------------------------

// Rows and depth of a copied block of A, and panels of a task. Few rows go through the whole depth
// of a panel at once, so that it is read from memory in one sweep.
struct Tiling {
  int64_t rows, copy_depth, panels;
};

MAMBA_INLINE Tiling tiling_of(const Problem& p) {
  // Few panels one by one, so that all threads get some.
  const int64_t few = p.cols <= 32 * kPanel ? 1 : 4;
  if (p.rows <= kRows && !p.a_transposed) return {kRows, (p.depth + 1) / 2 * 2, few};
  return {kTileRows, kDepth, p.rows <= 8 * kTileRows ? 4 : 16};
}

MAMBA_INLINE void run_tile(const Problem& p, const Part& part, const Tiling& t, int64_t task,
                           DType held, float* copy) {
  const int64_t panels = blocks(part.cols, kPanel);
  const int64_t across = blocks(panels, t.panels);
  const int64_t row = task / across * t.rows;
  const int64_t first = task % across * t.panels;
  const int64_t last = minimum(panels, first + t.panels);
  const int64_t rows = minimum(t.rows, p.rows - row);
  const auto with = [&]<Kind kKind>() {
    if (p.a_transposed) {
      tile<kKind, kTileRows>(p, part, row, rows, first, last, t.rows, t.copy_depth, copy);
    } else {
      tile<kKind, 1>(p, part, row, rows, first, last, t.rows, t.copy_depth, copy);
    }
  };
  if (held == DType::kF32) {
    with.template operator()<kFloat>();
  } else if (held == DType::kF16) {
    with.template operator()<kHalf>();
  } else if (p.product == Product::kBF16) {
    with.template operator()<kBf16Kind>();
  } else {
    with.template operator()<kShift>();
  }
}

// Packs B part by part (or takes it as packed) and runs the tiles. `packed` may be null.
void multiply(Stream& stream, const Problem& p, const PackedLinear* packed) {
  if (p.rows <= 0 || p.cols <= 0 || p.depth <= 0) return;
  const DType held = packed ? packed->dtype : held_as(p.product, p.b.dtype);
  const bool pairs = in_pairs(held);
  const Tiling t = tiling_of(p);
  const int64_t pack_depth = packed ? p.depth : minimum(p.depth, kPackDepth);
  const int64_t panel_words = words_for(pack_depth, pairs) * kPanel;
  const int64_t most = packed ? p.cols : blocks(kPackWords, panel_words) * kPanel;
  const int64_t pack_cols = minimum(p.cols, most);
  const int64_t pack_words = packed ? 0 : blocks(pack_cols, kPanel) * panel_words;
  const bool widens = pairs && p.rows >= kRowsToWiden;
  const int64_t copy_words =
      copy_words_of(t.rows, t.copy_depth) + (widens ? copy_words_of(kDepth, kPanel) : 0);
  const int threads = p.rows * p.cols * p.depth < kSerial ? 1 : stream.threads;
  float* scratch = stream.scratch<float>(pack_words + threads * copy_words);
  if (scratch == nullptr) return;

  for (int64_t k = 0; k < p.depth; k += pack_depth) {
    for (int64_t col = 0; col < p.cols; col += pack_cols) {
      Part part = {k,       minimum(pack_depth, p.depth - k),
                   col,     minimum(pack_cols, p.cols - col),
                   scratch, panel_words};
      if (packed) part.panels = static_cast<const float*>(packed->data);
      const int64_t panels = blocks(part.cols, kPanel);
      const int64_t tasks = blocks(p.rows, t.rows) * blocks(panels, t.panels);
#pragma omp parallel num_threads(threads) if (threads > 1)
      {
        float* copy = scratch + pack_words + omp_get_thread_num() * copy_words;
        if (packed == nullptr) {
#pragma omp for schedule(dynamic, 1)
          for (int64_t i = 0; i < panels; ++i) {
            pack_panel(p, part, i, held, scratch + i * panel_words);
          }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; ++i) run_tile(p, part, t, i, held, copy);
      }
    }
  }
}

// sum[n] += sum_m dy[m, n]: blocks of rows in order.
void add_column_sums(Stream& stream, const LinearBackwardWeightArgs& a) {
  const float* dy = a.dy.as<float>();
  float* sum = a.dbias.as<float>();
  const int64_t vectors = blocks(a.N, F32::kLanes);
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (a.M * a.N >= kSerial)
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t n = v * F32::kLanes;
    const int64_t lanes = minimum(F32::kLanes, a.N - n);
    F32 total = F32::load_n(sum + n, lanes);
    for (int64_t m0 = 0; m0 < a.M; m0 += kDepth) {
      F32 part = F32::zero();
      for (int64_t m = m0; m < minimum(a.M, m0 + kDepth); ++m) {
        part = part + F32::load_n(dy + m * a.dy_stride + n, lanes);
      }
      total = total + part;
    }
    total.store_n(sum + n, lanes);
  }
}

}  // namespace

void linear_forward(Stream& stream, const LinearArgs& a) noexcept {
  only_way(stream, a, Way::kGeneral);
  if (a.packed && (a.packed->panel != kPanel || a.packed->product != a.product ||
                   a.packed->N != a.N || a.packed->K != a.K)) {
    if (stream.failed == nullptr) stream.failed = "linear_forward (packed for something else)";
    return;
  }
  const Problem p = {
      a.M,      a.N, a.K,   a.product,          a.x.as<float>(), a.x_stride,      false,
      a.weight, a.K, false, a.bias.as<float>(), a.accumulate,    a.y.as<float>(), a.y_stride};
  multiply(stream, p, a.packed);
}

void linear_backward_input(Stream& stream, const LinearBackwardInputArgs& a) noexcept {
  const Problem p = {
      a.M,      a.K, a.N,  a.product, a.dy.as<float>(), a.dy_stride,      false,
      a.weight, a.K, true, nullptr,   a.accumulate,     a.dx.as<float>(), a.dx_stride};
  multiply(stream, p, nullptr);
}

void linear_backward_weight(Stream& stream, const LinearBackwardWeightArgs& a) noexcept {
  const Problem p = {
      a.N,        a.K,  a.M,     a.product, a.dy.as<float>(),      a.dy_stride, true, a.x,
      a.x_stride, true, nullptr, true,      a.dweight.as<float>(), a.K};
  multiply(stream, p, nullptr);
  if (a.dbias) add_column_sums(stream, a);
}

// The panels of W^T; the weight itself is not kept.
void linear_pack(Stream& stream, const LinearPackArgs& a) noexcept {
  *a.out = nullptr;
  const DType held = held_as(a.product, a.weight.dtype);
  const int64_t panels = blocks(a.N, kPanel);
  const int64_t panel_words = words_for(a.K, in_pairs(held)) * kPanel;
  const int64_t bytes = (panels * panel_words * 4 + 64) / 64 * 64;
  PackedLinear* packed = static_cast<PackedLinear*>(malloc(sizeof(PackedLinear)));
  float* data = static_cast<float*>(stream.take(stream, bytes));
  if (packed == nullptr || data == nullptr) {
    free(packed);
    stream.give(stream, data);
    if (stream.failed == nullptr) {
      stream.failed = "linear_pack";
      stream.failed_bytes = bytes;
    }
    return;
  }
  Problem p = {};
  p.b = a.weight;
  p.b_stride = a.K;
  const Part part = {0, a.K, 0, a.N, data, panel_words};
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (a.N * a.K >= kSerial)
  for (int64_t i = 0; i < panels; ++i) pack_panel(p, part, i, held, data + i * panel_words);
  *packed = {a.N, a.K, kPanel, a.product, held, data, bytes, nullptr};
  *a.out = packed;
}

void linear_unpack(Stream& stream, const LinearUnpackArgs& a) noexcept {
  if (a.packed == nullptr) return;
  stream.give(stream, a.packed->data);
  stream.give(stream, a.packed->rows);
  free(a.packed);
}

// A row is a column of its panel.
void linear_rows(Stream& stream, const LinearRowsArgs& a) noexcept {
  const int64_t K = a.packed->K;
  const bool pairs = in_pairs(a.packed->dtype);
  const int64_t panel_words = words_for(K, pairs) * kPanel;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (a.rows * K >= kSerial)
  for (int64_t r = 0; r < a.rows; ++r) {
    float* y = a.y.as<float>() + r * K;
    const int64_t id = a.ids.as<int32_t>()[r];
    if (id < 0) {
      memset(y, 0, sizeof(float) * static_cast<size_t>(K));
      continue;
    }
    const int64_t at = id / kPanel * panel_words + id % kPanel;
    if (!pairs) {
      const float* column = static_cast<const float*>(a.packed->data) + at;
      for (int64_t k = 0; k < K; ++k) y[k] = column[k * kPanel];
      continue;
    }
    if (a.packed->dtype == DType::kF16) {
      const int64_t lane = at % F32::kLanes;
      const f16* column = static_cast<const f16*>(a.packed->data) + 2 * (at - lane) + lane;
      for (int64_t k = 0; k < K; ++k) {
        y[k] = to_f32(column[k / 2 * 2 * kPanel + k % 2 * F32::kLanes]);
      }
      continue;
    }
    const bf16* column = static_cast<const bf16*>(a.packed->data) + 2 * at;
    for (int64_t k = 0; k < K; ++k) y[k] = to_f32(column[k / 2 * 2 * kPanel + k % 2]);
  }
}

}  // namespace mamba::MAMBA_ISA
