// SPDX-License-Identifier: Apache-2.0
// The loops over elements around oneDNN's products: rounding operands to bf16 and writing results.
// Compiled for AVX2 and for any x86-64, chosen when the program runs.
#pragma once

#include "base/buf.h"
#include "device/cpu_features.h"

namespace mamba::onednn {

inline float widened(float v) { return v; }
inline float widened(bf16 v) { return to_f32(v); }

// Rows of f32 or bf16 to rows of T, rounded to bf16, filled up with zeros to (to_rows, to_columns).
template <class T>
MAMBA_INLINE void round_rows(CBuf from, int64_t stride, int64_t rows, int64_t columns,
                             int64_t to_rows, int64_t to_columns, T* to) {
  const auto put = [](bf16 v) {
    if constexpr (sizeof(T) == sizeof(bf16)) {
      return v;
    } else {
      return to_f32(v);
    }
  };
  for (int64_t r = 0; r < to_rows; ++r, to += to_columns) {
    const int64_t n = r < rows ? columns : 0;
    if (from.dtype == DType::kBF16) {
      const bf16* in = from.as<bf16>() + r * stride;
      for (int64_t c = 0; c < n; ++c) to[c] = put(in[c]);
    } else {
      const float* in = from.as<float>() + r * stride;
      for (int64_t c = 0; c < n; ++c) to[c] = put(to_bf16(in[c]));
    }
    memset(static_cast<void*>(to + n), 0, static_cast<size_t>(to_columns - n) * sizeof(T));
  }
}

MAMBA_INLINE void round_any(CBuf from, int64_t stride, int64_t rows, int64_t columns,
                            int64_t to_rows, int64_t to_columns, bool narrow, void* to) {
  if (narrow) {
    round_rows(from, stride, rows, columns, to_rows, to_columns, static_cast<bf16*>(to));
  } else {
    round_rows(from, stride, rows, columns, to_rows, to_columns, static_cast<float*>(to));
  }
}

// y = tile + bias (+ y) for a piece with rows of `width`.
MAMBA_INLINE void finish_any(const float* tile, int64_t width, int64_t rows, int64_t columns,
                             const float* bias, bool accumulate, float* y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r, tile += width, y += y_stride) {
    for (int64_t c = 0; c < columns; ++c) {
      float sum = bias ? tile[c] + bias[c] : tile[c];
      if (accumulate) sum += y[c];
      y[c] = sum;
    }
  }
}

__attribute__((target("avx2"))) inline void round_avx2(CBuf from, int64_t stride, int64_t rows,
                                                       int64_t columns, int64_t to_rows,
                                                       int64_t to_columns, bool narrow, void* to) {
  round_any(from, stride, rows, columns, to_rows, to_columns, narrow, to);
}
inline void round_base(CBuf from, int64_t stride, int64_t rows, int64_t columns, int64_t to_rows,
                       int64_t to_columns, bool narrow, void* to) {
  round_any(from, stride, rows, columns, to_rows, to_columns, narrow, to);
}
__attribute__((target("avx2"))) inline void finish_avx2(const float* tile, int64_t width,
                                                        int64_t rows, int64_t columns,
                                                        const float* bias, bool accumulate,
                                                        float* y, int64_t y_stride) {
  finish_any(tile, width, rows, columns, bias, accumulate, y, y_stride);
}
inline void finish_base(const float* tile, int64_t width, int64_t rows, int64_t columns,
                        const float* bias, bool accumulate, float* y, int64_t y_stride) {
  finish_any(tile, width, rows, columns, bias, accumulate, y, y_stride);
}

struct Loops {
  decltype(&round_base) round;
  decltype(&finish_base) finish;
};
inline const Loops& loops() {
  static const Loops kLoops =
      cpu_features().avx2 ? Loops{round_avx2, finish_avx2} : Loops{round_base, finish_base};
  return kLoops;
}

}  // namespace mamba::onednn
