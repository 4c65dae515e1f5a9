// SPDX-License-Identifier: Apache-2.0
// linear_q: y = x W^T + b with W in blocks of 4 to 8 bits (src/quant/blocks.h). x is rounded to
// 8-bit integers, 32 columns of a row at a time, and the products of integers are exact:
//
//   s[m, j] = max |x[m, 32 j ..]| / 127,   q[m, k] = round to nearest even(x[m, k] * (127 / max))
//   (q = 0 where the maximum is at most 2^-100; a NaN or an infinity makes the row NaN)
//   y[m, n] = bias[n] + sum_g s[m, g] (scale[n, g] sum_{k in g} q[m, k] v[n, k] + add[n, g] sum_g
//   q)
//
// where a weight is scale * v + add, v an integer, in groups g of 32 columns (16: Q6_K). So where x
// is such integers times a power of two, y is that of the weights as f32 numbers up to rounding.
#pragma once

#include "kernels/linear.h"

namespace mamba {

// As LinearArgs; a row of y depends on that row of x alone, bit for bit, and not on the number of
// rows, its place among them, threads or ISA (avx2 and later: base rounds fused sums twice).
struct LinearQArgs {
  int64_t M, N, K;  // K a multiple of the block
  CBuf x;           // (M, K), row stride x_stride
  int64_t x_stride;
  const PackedLinear* packed;  // of linear_q_pack
  CBuf bias;                   // (N) or null
  Buf y;                       // (M, N), row stride y_stride
  int64_t y_stride;
};

// From blocks as files have them to the layout of the kernel: the same codes and scales, so nothing
// is lost. Freed by linear_unpack.
struct LinearQPackArgs {
  int64_t N, K;
  CBuf weight;  // (N, K) blocks of a type that is_quantized; need not outlive the call
  PackedLinear** out;
};

// y[r, :] = the weights of row ids[r] in f32; rows whose id is negative are zero.
struct LinearQRowsArgs {
  const PackedLinear* packed;
  int64_t rows;
  CBuf ids;  // (rows) i32, each in [-1, N)
  Buf y;     // (rows, K)
};

}  // namespace mamba
