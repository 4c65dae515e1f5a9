// SPDX-License-Identifier: Apache-2.0
// What the row kernels (norms, gate, conv1d) share on the CPU: loops over lanes with a masked tail,
// sums in a fixed order, and fixed blocks of rows for the gradients of weights.
#pragma once

#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {

// Below this many elements a parallel region costs more than it saves: waking a thread takes
// 5 to 20 us, a core does about 3 elements of a norm in a nanosecond.
constexpr int64_t kParallelElements = 32768;

// Access to a whole vector.
struct Full {
  MAMBA_INLINE F32 load(const float* p) const { return F32::load(p); }
  MAMBA_INLINE void store(float* p, F32 v) const { v.store(p); }
  // v with 0 in the lanes beyond the end.
  MAMBA_INLINE F32 keep(F32 v) const { return v; }
};

// Access to the first n lanes; the others load as 0.
struct Tail {
  int64_t n;
  MAMBA_INLINE F32 load(const float* p) const { return F32::load_n(p, n); }
  MAMBA_INLINE void store(float* p, F32 v) const { v.store_n(p, n); }
  MAMBA_INLINE F32 keep(F32 v) const {
    float lanes[F32::kLanes];
    v.store(lanes);
    return F32::load_n(lanes, n);
  }
};

// body(i, lanes) for i = 0, kLanes, ... below n, with lanes Full or, once at the end, Tail.
template <class Body>
MAMBA_INLINE void for_lanes(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) body(i, Full{});
  if (i < n) body(i, Tail{n - i});
}

// Sum over n elements: acc = body(acc, i, lanes) in four accumulators, always the same ones for the
// same n. Lanes that load as 0 must add 0.
template <class Body>
MAMBA_INLINE float sum_lanes(int64_t n, Body&& body) {
  constexpr int64_t w = F32::kLanes;
  F32 a = F32::zero(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w) {
    a = body(a, i, Full{});
    b = body(b, i + w, Full{});
    c = body(c, i + 2 * w, Full{});
    d = body(d, i + 3 * w, Full{});
  }
  for (; i + w <= n; i += w) a = body(a, i, Full{});
  if (i < n) a = body(a, i, Tail{n - i});
  return reduce_add((a + b) + (c + d));
}

// 1 / sqrt(sum / count + eps).
MAMBA_INLINE float inverse_root(float sum, int64_t count, double eps) {
  return static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(count) + eps));
}

// Blocks of rows whose sums of weight gradients are added in order: at most 64, of at least 8 rows,
// a function of the shape alone, so that the result does not depend on the number of threads.
struct RowBlocks {
  int64_t rows, block;  // rows in all, rows per block
  MAMBA_INLINE explicit RowBlocks(int64_t row_count)
      : rows(row_count), block(row_count > 8 * 64 ? (row_count + 63) / 64 : 8) {}
  MAMBA_INLINE int64_t count() const { return (rows + block - 1) / block; }
  MAMBA_INLINE int64_t begin(int64_t i) const { return i * block; }
  MAMBA_INLINE int64_t end(int64_t i) const {
    return (i + 1) * block < rows ? (i + 1) * block : rows;
  }
};

// out[i] += sum over blocks of partial[block * stride + i], blocks in order.
MAMBA_INLINE void add_partials(const float* partial, int64_t blocks, int64_t stride, int64_t dim,
                               float* out) {
  for_lanes(
      dim, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 sum = F32::zero();
        for (int64_t b = 0; b < blocks; ++b) sum = sum + lanes.load(partial + b * stride + i);
        lanes.store(out + i, lanes.load(out + i) + sum);
      });
}

}  // namespace mamba::MAMBA_ISA
