// SPDX-License-Identifier: Apache-2.0
// Matrix products by cuBLASLt, which is loaded at run time: the program needs no such library, and
// without it linear_cuda.cu multiplies by itself.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba::cuda {

struct MatrixLibrary;  // of one device

// A matrix with its row stride; `transposed` takes part as its transpose.
struct Operand {
  CBuf data;
  int64_t stride;
  bool transposed;
};

// out[i, j] = sum_k left(i, k) right(k, j) + bias[j]   (+ out[i, j] before, when accumulate), in
// f32. Both operands have one type: f32, bf16 or f16.
struct MatrixProduct {
  int64_t rows, cols, depth;
  Operand left;   // (rows, depth), or its transpose
  Operand right;  // (depth, cols), or its transpose
  CBuf bias;      // (cols) or null; of the type of `out`, which the library asks for
  bool accumulate;
  Buf out;  // (rows, cols), row stride out_stride
  int64_t out_stride;
};

// Null when out of memory. The library itself is loaded by the first product.
MatrixLibrary* open_matrix_library() noexcept;
void close_matrix_library(MatrixLibrary* library) noexcept;

// Bytes of device memory that multiply() wants to work in.
constexpr int64_t kProductWorkspace = 32 << 20;

// False, with nothing done, where there is no library or it refuses the product. The first product
// of a shape asks the library for an algorithm (some 20 us), which is kept: the same shapes,
// strides and alignments run the same code.
bool multiply(MatrixLibrary& library, Stream& stream, const MatrixProduct& product,
              void* workspace) noexcept;

}  // namespace mamba::cuda
