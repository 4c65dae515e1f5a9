// SPDX-License-Identifier: Apache-2.0
// The layout in memory of quantised weights for the CPU, the same for every ISA. A panel is 16 rows
// of W (columns of the product); it is a run of 256 columns of W behind another (the last may be
// shorter), read from begin to end. A run holds the codes, block by block of 32 columns, then d and
// dmin of the run where the type has those, then the scales, block by block.
//
// A quad is 4 columns of the 16 rows: 64 bytes, row by row. Codes of a block of 8 quads:
//   4 bits   4 x 64 bytes: quad i in the low, quad i + 4 in the high halves of bytes
//   5 bits   and 64 bytes: bit q of a byte is the fifth bit of that of quad q
//   6 bits   and 2 x 64 bytes: bits 2 i and 2 i + 1 of the first are those of quad i < 4
//   8 bits   8 x 64 bytes
// A code is the integer v of the weight plus `zero`.
#pragma once

#include "base/f16.h"
#include "kernels/linear_packed.h"

namespace mamba::panels {

constexpr int64_t kRows = 16;          // of W in a panel
constexpr int64_t kBlock = 32;         // columns of W
constexpr int64_t kQuad = 64;          // bytes
constexpr int64_t kRun = 256;          // columns; they share d and dmin in Q4_K, Q5_K and Q6_K
constexpr int32_t kPanelMark = -1016;  // PackedLinear::panel of this layout

struct Layout {
  int bits;    // of a code: 4, 5, 6 or 8
  int zero;    // code of v = 0 (IQ4_NL: of the values that its codes stand for)
  bool table;  // IQ4_NL: a code is a place in kIQ4_NLValues
  bool super;  // small integer scales under a d for every 256 columns
  bool add;    // has minima
  int groups;  // in a block: 1, or 2 of 16 columns (Q6_K)
};

MAMBA_INLINE Layout layout_of(DType type) {
  switch (type) {
    case DType::kQ4_0:
      return {4, 8, false, false, false, 1};
    case DType::kQ4_1:
      return {4, 0, false, false, true, 1};
    case DType::kQ5_0:
      return {5, 16, false, false, false, 1};
    case DType::kQ5_1:
      return {5, 0, false, false, true, 1};
    case DType::kQ4_K:
      return {4, 0, false, true, true, 1};
    case DType::kQ5_K:
      return {5, 0, false, true, true, 1};
    case DType::kQ6_K:
      return {6, 32, false, true, false, 2};
    case DType::kIQ4_NL:
      return {4, 128, true, false, false, 1};
    default:
      return {8, 128, false, false, false, 1};
  }
}

MAMBA_INLINE int64_t code_bytes(const Layout& l) { return kBlock * kRows * l.bits / 8; }
// Scales of a block: d, m (f16); with `super`: sc, mn (u8, or i8 for two groups).
MAMBA_INLINE int64_t scale_bytes(const Layout& l) {
  return kRows * (l.super ? l.groups + (l.add ? 1 : 0) : 2 * (l.add ? 2 : 1));
}
// d, dmin (f16) of a run.
MAMBA_INLINE int64_t super_bytes(const Layout& l) {
  return l.super ? kRows * 2 * (l.add ? 2 : 1) : 0;
}
// Bytes of a run of `blocks` blocks, whole lines.
MAMBA_INLINE int64_t run_bytes(const Layout& l, int64_t blocks) {
  return (blocks * (code_bytes(l) + scale_bytes(l)) + super_bytes(l) + 63) / 64 * 64;
}
MAMBA_INLINE int64_t panel_bytes(const Layout& l, int64_t K) {
  const int64_t rest = K % kRun / kBlock;
  return K / kRun * run_bytes(l, kRun / kBlock) + (rest > 0 ? run_bytes(l, rest) : 0);
}

// linear_q_pack and linear_q_rows of all CPU backends (linear_q_pack.cpp). Null when out of memory,
// which the stream then says.
PackedLinear* pack(Stream& stream, DType type, const void* blocks, int64_t N, int64_t K);
// The same from panels that were packed before.
PackedLinear* copy(Stream& stream, DType type, const void* panels, int64_t N, int64_t K);
// Row `row` of W in f32, as dequantize gives it.
void read_row(const PackedLinear& packed, int64_t row, float* out);

}  // namespace mamba::panels
