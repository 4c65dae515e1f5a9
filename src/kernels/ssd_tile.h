// SPDX-License-Identifier: Apache-2.0
// What ssd's chunked kernels are made of: a register-blocked f32 matrix product on small tiles in
// scratch, transposition, the walk over a row in chunks of one document, step sizes and decays.
// For ssd_cpu.cpp only; everything has internal linkage.
#pragma once

#include <stdint.h>

#include "kernels/simd.h"
#include "kernels/ssd.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int64_t kLanes = F32::kLanes;
// Rows of a register tile of two vectors: 16, 12 or 8 accumulators of the 32, 16 or 16 registers.
constexpr int kTileRows = kLanes == 16 ? 8 : (kLanes == 8 ? 6 : 4);
// Chunks of a long document, and the longest document that is taken as one.
constexpr int64_t kChunk = 64, kWholeDocument = 256;
constexpr float kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

MAMBA_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
MAMBA_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
MAMBA_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
// Floats of a tile's row of n: whole vectors, and not a multiple of 256 bytes, so that the rows of
// a column panel spread over all sets of the L1 cache.
MAMBA_INLINE int64_t row_floats(int64_t n) {
  const int64_t padded = round_up(n > 0 ? n : 1, kLanes);
  return padded % 64 == 0 ? padded + 16 : padded;
}

// Hands out pieces of one scratch block, 64-byte aligned; with a null base it only measures.
struct Carver {
  char* base;
  int64_t used;
  template <class T>
  MAMBA_INLINE T* take(int64_t count) {
    const int64_t at = used;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return base != nullptr ? reinterpret_cast<T*>(base + at) : nullptr;
  }
};

// What part of a product is needed: all of it; only k <= i (A lower triangular); only k >= i (A
// upper triangular); only columns j <= i of the result (the rest keeps what it has).
enum class Span { kFull, kLower, kUpper, kLowerResult };

// C[i, j] = beta[i] * init[i, j] + sum_k A[i, k] B[k, j]. A has any strides (so A^T is free), rows
// of B and C are whole vectors. A triangular A must hold zeros in the rest of its kTileRows-wide
// diagonal blocks. An element's sum runs over k in order, wherever its tile lies.
struct Product {
  int64_t rows, cols, depth;
  const float* a;
  int64_t a_row, a_col;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  const float* init;  // same rows as c, may be c; null: zero
  const float* beta;  // one per row, beta_step apart; 0 shares one
  int64_t beta_step;
  Span span;
};

template <int R, int V>
void product_tile(const Product& m, int64_t i, int64_t j) {
  F32 acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[r][v] = F32::zero();
      if (m.init != nullptr) {
        acc[r][v] = F32::set(m.beta[(i + r) * m.beta_step]) *
                    F32::load(m.init + (i + r) * m.c_row + j + v * kLanes);
      }
    }
  }
  const int64_t first = m.span == Span::kUpper ? i : 0;
  const int64_t end = m.span == Span::kLower ? min64(i + R, m.depth) : m.depth;
  const float* a = m.a + i * m.a_row + first * m.a_col;
  const float* b = m.b + first * m.b_row + j;
  for (int64_t k = first; k < end; ++k, a += m.a_col, b += m.b_row) {
    F32 bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) bv[v] = F32::load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32 av = F32::set(a[r * m.a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = fma(av, bv[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v].store(m.c + (i + r) * m.c_row + j + v * kLanes);
  }
}

// The row blocks of one column panel of V vectors.
template <int V>
void product_panel(const Product& m, int64_t j) {
  int64_t i = 0;
  if (m.span == Span::kLowerResult) i = min64(j, m.rows) / kTileRows * kTileRows;
  for (; i + kTileRows <= m.rows; i += kTileRows) product_tile<kTileRows, V>(m, i, j);
  for (; i + 4 <= m.rows; i += 4) product_tile<4, V>(m, i, j);
  for (; i + 2 <= m.rows; i += 2) product_tile<2, V>(m, i, j);
  for (; i < m.rows; ++i) product_tile<1, V>(m, i, j);
}

void product(const Product& m) {
  const int64_t cols = round_up(m.cols, kLanes);
  int64_t j = 0;
  for (; j + 2 * kLanes <= cols; j += 2 * kLanes) product_panel<2>(m, j);
  if (j < cols) product_panel<1>(m, j);
}

// dst[c, r] = src[r, c] for rows x cols of src; columns rows..padded of dst become 0.
void transpose(const float* src, int64_t src_row, int64_t rows, int64_t cols, float* dst,
               int64_t dst_row, int64_t padded) {
  typedef float V4 __attribute__((vector_size(16)));
  int64_t c = 0;
  for (; c + 4 <= cols; c += 4) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      V4 w[4];
      for (int i = 0; i < 4; ++i) memcpy(&w[i], src + (r + i) * src_row + c, sizeof(V4));
      const V4 lo01 = __builtin_shufflevector(w[0], w[1], 0, 4, 1, 5);
      const V4 hi01 = __builtin_shufflevector(w[0], w[1], 2, 6, 3, 7);
      const V4 lo23 = __builtin_shufflevector(w[2], w[3], 0, 4, 1, 5);
      const V4 hi23 = __builtin_shufflevector(w[2], w[3], 2, 6, 3, 7);
      w[0] = __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5);
      w[1] = __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7);
      w[2] = __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5);
      w[3] = __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7);
      for (int i = 0; i < 4; ++i) memcpy(dst + (c + i) * dst_row + r, &w[i], sizeof(V4));
    }
    for (; r < rows; ++r) {
      for (int i = 0; i < 4; ++i) dst[(c + i) * dst_row + r] = src[r * src_row + c + i];
    }
  }
  for (; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r) dst[c * dst_row + r] = src[r * src_row + c];
  }
  if (padded == rows) return;
  for (c = 0; c < cols; ++c) {
    for (int64_t r = rows; r < padded; ++r) dst[c * dst_row + r] = 0.0f;
  }
}

// dst[0 .. n) = scale * src, and zeros up to the next whole vector.
MAMBA_INLINE void copy_scaled(const float* src, int64_t n, float scale, float* dst) {
  const F32 factor = F32::set(scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) (factor * F32::load(src + i)).store(dst + i);
  if (i < n) (factor * F32::load_n(src + i, n - i)).store(dst + i);
}

MAMBA_INLINE void fill_zero(float* p, int64_t n) { memset(p, 0, sizeof(float) * n); }

// Asks for n floats that are needed soon. A head's slice of a token is a few lines in a row of
// thousands, which the hardware prefetcher does not follow; waiting for them was a fifth of the
// time.
MAMBA_INLINE void prefetch(const float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(p + i);
}

// Sum of a[i] * b[i] over whole vectors (n a multiple of kLanes).
MAMBA_INLINE float dot(const float* a, const float* b, int64_t n) {
  F32 even = F32::zero(), odd = F32::zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = fma(F32::load(a + i), F32::load(b + i), even);
    odd = fma(F32::load(a + i + kLanes), F32::load(b + i + kLanes), odd);
  }
  if (i < n) even = fma(F32::load(a + i), F32::load(b + i), even);
  return reduce_add(even + odd);
}

// Sizes shared by forward and backward. The partition into tasks (sequence, group, block of heads)
// comes from the shapes alone.
struct Plan {
  int64_t step, whole;                 // chunk of a document longer than `whole`, of others
  int64_t chunk;                       // Q: tokens of a chunk at most
  int64_t q_row, p_row, n_row;         // floats of a tile's row of Q, P, N
  int64_t group_heads, block, blocks;  // heads of a group, of a task, tasks of a (sequence, group)
  int64_t tasks;
};

// A token of a document of n tokens in chunks of Q costs about, in multiply-adds of a head:
//   5 P N (n - Q) / n   backward, products with states: none in the first or in the last chunk
//   Q (P + N / 2)       products within chunks (N: shared by heads) and exponentials
// which is linear in Q: best is one chunk while n < 5 P N / (P + N / 2), else short chunks.
// Forward is close to that: 2 P N to Q (P / 2 + N / 5). One chunk of 256 against four of 64: 6.9
// and 8.5 us a token backward (8 heads, 4 together); two of 256 against eight: 31.9 and 28.5 (24
// heads; P = 64, N = 128, one thread, AVX-512 at 110 GFLOP/s, Zen 4, 2026-11).
template <class Args>
MAMBA_INLINE int64_t longest_whole(const Args& a) {
  return min64(kWholeDocument, 10 * a.P * a.N / max64(1, 2 * a.P + a.N));
}

// Heads of a task, which share C B^T and, backward, the products of dM: 5.7 us a token with 8
// heads against 7.0 with 4 (B = 8, L = 256). Never from B where gradients are summed over them, so
// that a row's gradients do not depend on the batch: a group of up to 8 leaves the threads to B and
// G, a wider one has an even number of tasks (24 heads: 4 of 6), so that two threads end together.
MAMBA_INLINE int64_t heads_together(int64_t group_heads) {
  if (group_heads <= 8) return group_heads;
  const int64_t tasks = 2 * ((group_heads + 15) / 16);
  return (group_heads + tasks - 1) / tasks;
}

template <class Args>
Plan make_plan(const Args& a, int64_t block) {
  Plan p;
  p.step = max64(1, min64(a.chunk, kChunk));
  p.whole = max64(p.step, min64(a.chunk, longest_whole(a)));
  p.chunk = max64(1, min64(a.doc_ids || a.L <= p.whole ? p.whole : p.step, a.L));
  p.q_row = row_floats(p.chunk);
  p.p_row = row_floats(a.P);
  p.n_row = row_floats(a.N);
  p.group_heads = a.H / a.G;
  p.block = block;
  p.blocks = (p.group_heads + p.block - 1) / p.block;
  p.tasks = a.B * a.G * p.blocks;
  return p;
}

// Position in a row of tokens.
struct Cursor {
  const int32_t* ids;  // (L) or null
  int64_t L, at;
  int32_t id;     // of the last token taken
  bool started;   // a token was taken
  int64_t limit;  // tokens of a chunk of that token's document
};

// At most Q tokens of one document; padding between them is left out.
struct Chunk {
  int64_t count;   // 0: the row is at its end
  bool first;      // the row's first tokens: they continue S0
  bool reset;      // starts a further document
  bool continues;  // the next token of the row goes on with this document
  bool last;       // no token follows
};

// What is needed after a head of a chunk: the same tokens for the task's next head, or the tokens
// one chunk away (`tokens` is that distance, else 0) for its first.
struct Ahead {
  int64_t head, tokens;
};

MAMBA_INLINE Ahead look_ahead(int64_t first, int64_t heads, int64_t h, int64_t count) {
  return h + 1 < first + heads ? Ahead{h + 1, 0} : Ahead{first, count};
}

MAMBA_INLINE void skip_padding(Cursor* c) {
  while (c->ids != nullptr && c->at < c->L && c->ids[c->at] < 0) ++c->at;
}

MAMBA_INLINE Cursor row_start(const int32_t* ids, int64_t L) { return {ids, L, 0, 0, false, 0}; }

// The document at the cursor has more than `limit` tokens.
bool longer_than(const Cursor& c, int64_t limit) {
  if (c.ids == nullptr) return c.L - c.at > limit;
  int64_t count = 0;
  for (int64_t t = c.at; t < c.L && count <= limit; ++t) {
    if (c.ids[t] == c.ids[c.at]) ++count;
    if (c.ids[t] >= 0 && c.ids[t] != c.ids[c.at]) break;
  }
  return count > limit;
}

Chunk take_chunk(Cursor* c, const Plan& plan, int64_t* tokens) {
  Chunk chunk = {0, !c->started, false, false, true};
  skip_padding(c);
  if (c->at == c->L) return chunk;
  const int32_t id = c->ids != nullptr ? c->ids[c->at] : 0;
  chunk.reset = c->started && id != c->id;
  if (chunk.first || chunk.reset) c->limit = longer_than(*c, plan.whole) ? plan.step : plan.whole;
  for (; c->at < c->L && chunk.count < c->limit; ++c->at) {
    const int32_t here = c->ids != nullptr ? c->ids[c->at] : 0;
    if (here >= 0 && here != id) break;
    if (here >= 0) tokens[chunk.count++] = c->at;
  }
  skip_padding(c);
  chunk.last = c->at == c->L;
  chunk.continues = !chunk.last && (c->ids == nullptr || c->ids[c->at] == id);
  c->id = id;
  c->started = true;
  return chunk;
}

// Step sizes and decays of a head in a chunk; arrays of whole vectors, zeros behind the last token.
// With c_t = sum of d_r A over r <= t: c = hi + lo, so that differences keep their relative
// precision however long the chunk.
struct Steps {
  float* raw;  // dt + dt_bias
  float* d;    // clamp(softplus(raw))
  float *hi, *lo;
  float* from_start;  // exp(c_t)
  float* to_end;      // exp(c_last - c_t)
  float total;        // exp(c_last)
  float* fade;        // exp(c_m - c_s) for s < m, of the block of rows at m (decay_block)
  float* rise;        // (kLanes) exp(c_t - c_m) for its rows
};

Steps carve_steps(Carver* carver, int64_t q_row) {
  Steps s;
  s.raw = carver->take<float>(q_row);
  s.d = carver->take<float>(q_row);
  s.hi = carver->take<float>(q_row);
  s.lo = carver->take<float>(q_row);
  s.from_start = carver->take<float>(q_row);
  s.to_end = carver->take<float>(q_row);
  s.total = 0;
  s.fade = carver->take<float>(q_row);
  s.rise = carver->take<float>(kLanes);
  return s;
}

// d = clamp(softplus(raw)).
template <class Args>
MAMBA_INLINE F32 step_size(const Args& a, F32 raw) {
  const F32 lowest = F32::set(static_cast<float>(a.dt_min));
  const F32 highest = F32::set(static_cast<float>(a.dt_max));
  return min(highest, max(lowest, softplus(raw)));  // this order lets NaN through
}

template <class Args>
void load_steps(const Args& a, int64_t b, int64_t h, const int64_t* tokens, int64_t count,
                Steps* s) {
  const float* dt = a.dt.template as<float>() + b * a.L * a.dt_stride + h;
  const float bias = a.dt_bias.template as<float>()[h];
  const double A = a.A.template as<float>()[h];
  const int64_t padded = round_up(count, kLanes);
  for (int64_t i = 0; i < count; ++i) s->raw[i] = dt[tokens[i] * a.dt_stride] + bias;
  for (int64_t i = count; i < padded; ++i) s->raw[i] = 0.0f;
  for (int64_t i = 0; i < padded; i += kLanes) {
    step_size(a, F32::load(s->raw + i)).store(s->d + i);
  }
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += s->d[i] * A;
    s->hi[i] = static_cast<float>(sum);
    s->lo[i] = static_cast<float>(sum - s->hi[i]);
  }
  for (int64_t i = count; i < padded; ++i) s->d[i] = s->hi[i] = s->lo[i] = 0.0f;
  const F32 hi = F32::set(s->hi[count - 1]), lo = F32::set(s->lo[count - 1]);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const F32 h = F32::load(s->hi + i), l = F32::load(s->lo + i);
    exp(h + l).store(s->from_start + i);
    exp(min((hi - h) + (lo - l), F32::zero())).store(s->to_end + i);
  }
  s->total = s->from_start[count - 1];
}

// exp(c_t - c_s) for the vector of s that starts at `s`; 1 where s > t (never exponentiated as
// such).
MAMBA_INLINE F32 decay(const Steps& steps, int64_t t, int64_t s) {
  const F32 difference = (F32::set(steps.hi[t]) - F32::load(steps.hi + s)) +
                         (F32::set(steps.lo[t]) - F32::load(steps.lo + s));
  return exp(min(difference, F32::zero()));
}

// For the kLanes rows t from m on: exp(c_t - c_s) = rise[t - m] fade[s] where s < m, so that only
// the diagonal vectors take an exponential for every pair. No factor is above 1.
MAMBA_INLINE void decay_block(const Steps& steps, int64_t m) {
  const F32 hi = F32::set(steps.hi[m]), lo = F32::set(steps.lo[m]), zero = F32::zero();
  for (int64_t s = 0; s < m; s += kLanes) {
    const F32 c = (hi - F32::load(steps.hi + s)) + (lo - F32::load(steps.lo + s));
    exp(min(c, zero)).store(steps.fade + s);
  }
  const F32 c = (F32::load(steps.hi + m) - hi) + (F32::load(steps.lo + m) - lo);
  exp(min(c, zero)).store(steps.rise);
}

// v where s <= t, 0 in the lanes behind.
MAMBA_INLINE F32 causal(int64_t t, int64_t s, F32 v) {
  const F32 index = F32::load(kIota) + F32::set(static_cast<float>(s));
  return select_gt(index, F32::set(static_cast<float>(t)), F32::zero(), v);
}

// Columns of row t of a lower triangular (count, count) tile that a triangular product may read, in
// whole vectors.
MAMBA_INLINE int64_t triangle_end(int64_t t, int64_t count) {
  return round_up(min64(count, (t / kTileRows + 1) * kTileRows), kLanes);
}

}  // namespace
}  // namespace mamba::MAMBA_ISA
