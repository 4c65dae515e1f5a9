// SPDX-License-Identifier: Apache-2.0
// linear: y = x W^T + b and the two other matrix products of training. f32 or bf16 products with
// f32 accumulation; x, y and gradients are f32 (f64 in the f64 reference), on a GPU x, y, dy and dx
// may be bf16, each by itself; bias, dweight and dbias are f32.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

// Weights prepared once for one backend (its own layout, linear_packed.h); made by linear_pack,
// freed by linear_unpack. For inference, where it saves packing in each call; for bf16 it halves
// the bytes.
struct PackedLinear;

enum class Product : uint8_t {
  kF32,   // operands as they are
  kBF16,  // operands rounded to bf16 (nearest even), products accumulated in f32
};

// y[m, n] = sum_k x[m, k] * weight[n, k] + bias[n]   (+ y[m, n] before, when accumulate).
// A row of y depends on that row of x alone, bit for bit: not on the number of rows, its place
// among them, threads, or whether the weight was packed before. On a GPU it may depend on the
// number of rows too, by which products choose their algorithm. x and y must not overlap.
struct LinearArgs {
  int64_t M, N, K;
  Product product;
  CBuf x;  // (M, K), row stride x_stride
  int64_t x_stride;
  CBuf weight;  // (N, K) contiguous, f32, bf16, or with kF32 f16; may be null with packed
  const PackedLinear* packed = nullptr;  // of the same weight and product, or null
  CBuf bias;                             // (N) or null
  bool accumulate;
  Buf y;  // (M, N), row stride y_stride
  int64_t y_stride;
};

// dx[m, k] = sum_n dy[m, n] * weight[n, k]   (+ dx before, when accumulate).
struct LinearBackwardInputArgs {
  int64_t M, N, K;
  Product product;
  CBuf dy;  // (M, N), row stride dy_stride
  int64_t dy_stride;
  CBuf weight;  // (N, K) contiguous
  bool accumulate;
  Buf dx;  // (M, K), row stride dx_stride
  int64_t dx_stride;
};

// dweight[n, k] += sum_m dy[m, n] * x[m, k];  dbias[n] += sum_m dy[m, n].
// Each element is summed over m in one fixed order, whatever the thread count.
struct LinearBackwardWeightArgs {
  int64_t M, N, K;
  Product product;
  CBuf dy;  // (M, N), row stride dy_stride
  int64_t dy_stride;
  CBuf x;  // (M, K), row stride x_stride
  int64_t x_stride;
  Buf dweight;  // (N, K) contiguous, accumulated
  Buf dbias;    // (N) or null, accumulated
};

struct LinearPackArgs {
  int64_t N, K;
  Product product;
  CBuf weight;  // (N, K) f32, bf16, or with kF32 f16; need not outlive the call
  PackedLinear** out;
  // linear_rows will read single rows often (an embedding): a layout that is slow at it then keeps
  // a copy by rows.
  bool by_rows = false;
};

// y[r, :] = weight[ids[r], :] as the products see it (rounded where packed for bf16); rows whose id
// is negative are zero.
struct LinearRowsArgs {
  const PackedLinear* packed;
  int64_t rows;
  CBuf ids;  // (rows) i32, each in [-1, N)
  Buf y;     // (rows, K)
};

struct LinearUnpackArgs {
  PackedLinear* packed;  // or null
};

}  // namespace mamba
