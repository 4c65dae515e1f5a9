// SPDX-License-Identifier: Apache-2.0
// linear for CUDA: cuBLASLt where it is installed and takes the product, otherwise the plain tiled
// kernel of this file. f32 products are f32 throughout, never TF32.
#include <stdlib.h>

#include "kernels/column_sum.h"
#include "kernels/linear.h"
#include "kernels/linear_packed_cuda.cuh"
#include "kernels/linear_rows_cuda.cuh"
#include "kernels/matrix_library.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridY = 65535;

// ---- Conversion ----

template <class X, class Y, int vec>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(int64_t rows, int64_t cols, const X* x, int64_t x_stride, Y* y,
                   int64_t y_stride) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vec;
  if (c >= cols) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float v[vec];
    load_n<vec>(x + row * x_stride + c, v);
    store_n<vec>(y + row * y_stride + c, v);
  }
}

void convert(Stream& stream, const char* name, int64_t rows, int64_t cols, CBuf x, int64_t x_stride,
             Buf y, int64_t y_stride) {
  const bool vectors =
      cols % 4 == 0 && takes_vectors(x, x_stride, 4) && takes_vectors(y, y_stride, 4);
  const dim3 grid(static_cast<unsigned>(ceil_div(cols, kThreads * (vectors ? 4 : 1))),
                  static_cast<unsigned>(rows < kMaxGridY ? rows : kMaxGridY));
  with_type(x.dtype, [&]<class X>() {
    with_type(y.dtype, [&]<class Y>() {
      launch(stream, name, vectors ? convert_kernel<X, Y, 4> : convert_kernel<X, Y, 1>, grid,
             dim3(kThreads), 0, rows, cols, x.as<X>(), x_stride, y.as<Y>(), y_stride);
    });
  });
}

// ---- The plain product ----

constexpr int kTile = 64, kDepth = 16, kEach = 4;

struct Plain {
  int64_t rows, cols, depth;
  // Element (i, k) of left at i * left_row + k * left_depth, (k, j) of right likewise.
  int64_t left_row, left_depth, right_depth, right_col, out_stride;
  const float* bias;
  bool accumulate;
};

// 64 x 64 elements a block, 4 x 4 a thread; the sum over k runs in order, so an element depends on
// its row and column alone.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads)
    product_kernel(Plain p, const T* left, const T* right, Out* out) {
  __shared__ float l[kDepth][kTile + 1], r[kDepth][kTile + 1];
  const int64_t i0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int ti = threadIdx.x / 16 * kEach, tj = threadIdx.x % 16 * kEach;
  float sum[kEach][kEach] = {};
  for (int64_t k0 = 0; k0 < p.depth; k0 += kDepth) {
    for (int e = threadIdx.x; e < kTile * kDepth; e += kThreads) {
      // Neighbouring threads read neighbouring elements of whichever index is contiguous.
      const bool lk = p.left_depth == 1, rk = p.right_depth == 1;
      const int a = lk ? e / kDepth : e % kTile, ka = lk ? e % kDepth : e / kTile;
      const int b = rk ? e / kDepth : e % kTile, kb = rk ? e % kDepth : e / kTile;
      l[ka][a] = i0 + a < p.rows && k0 + ka < p.depth
                     ? load(left + (i0 + a) * p.left_row + (k0 + ka) * p.left_depth)
                     : 0;
      r[kb][b] = j0 + b < p.cols && k0 + kb < p.depth
                     ? load(right + (k0 + kb) * p.right_depth + (j0 + b) * p.right_col)
                     : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int a = 0; a < kEach; ++a) {
#pragma unroll
        for (int b = 0; b < kEach; ++b) {
          sum[a][b] = fmaf(l[k][ti + a], r[k][tj + b], sum[a][b]);
        }
      }
    }
    __syncthreads();
  }
  for (int a = 0; a < kEach; ++a) {
    for (int b = 0; b < kEach; ++b) {
      const int64_t i = i0 + ti + a, j = j0 + tj + b;
      if (i >= p.rows || j >= p.cols) continue;
      Out* at = out + i * p.out_stride + j;
      float v = sum[a][b] + (p.bias != nullptr ? p.bias[j] : 0);
      if (p.accumulate) v += load(at);
      store(at, v);
    }
  }
}

void multiply_plainly(Stream& stream, const char* name, const MatrixProduct& m) {
  const Plain p = {m.rows,
                   m.cols,
                   m.depth,
                   m.left.transposed ? 1 : m.left.stride,
                   m.left.transposed ? m.left.stride : 1,
                   m.right.transposed ? 1 : m.right.stride,
                   m.right.transposed ? m.right.stride : 1,
                   m.out_stride,
                   m.bias.as<float>(),
                   m.accumulate};
  // A grid has 65535 blocks down at most.
  constexpr int64_t kRowsAtOnce = kMaxGridY * kTile;
  with_type(m.left.data.dtype, [&]<class T>() {
    with_type(m.out.dtype, [&]<class Out>() {
      for (int64_t i = 0; i < m.rows; i += kRowsAtOnce) {
        Plain part = p;
        part.rows = m.rows - i < kRowsAtOnce ? m.rows - i : kRowsAtOnce;
        launch(stream, name, product_kernel<T, Out>,
               dim3(static_cast<unsigned>(ceil_div(m.cols, kTile)),
                    static_cast<unsigned>(ceil_div(part.rows, kTile))),
               dim3(kThreads), 0, part, m.left.data.as<T>() + i * p.left_row, m.right.data.as<T>(),
               m.out.as<Out>() + i * m.out_stride);
      }
    });
  });
}

// ---- Products of operands of any types ----

// Both operands as they are where they have one type and the product asks for no rounding.
DType type_of_product(Product product, DType a, DType b) {
  if (a == b && a != DType::kF32) return a;
  return product == Product::kBF16 ? DType::kBF16 : DType::kF32;
}

// How a converted operand lies: rows of whole 16 bytes.
int64_t padded(int64_t cols) { return (cols + 7) / 8 * 8; }
int64_t converted_bytes(const Operand& o, int64_t rows, int64_t cols, DType type) {
  return o.data.dtype == type ? 0 : (rows * padded(cols) * dtype_size(type) + 255) / 256 * 256;
}
// Converts where needed; rows and cols as the operand lies in memory.
void bring_to(Stream& stream, const char* name, Operand& o, int64_t rows, int64_t cols, DType type,
              char* memory) {
  if (o.data.dtype == type) return;
  const Buf to(memory, type);
  convert(stream, name, rows, cols, o.data, o.stride, to, padded(cols));
  o.data = to;
  o.stride = padded(cols);
}

// out = left right + bias, which is f32. The first use of an operand in another type than the
// product's converts it, every time: pack weights, and give activations the product's type.
void multiply_any(Stream& stream, const char* name, Product product, MatrixProduct m) {
  if (m.rows == 0 || m.cols == 0) return;
  const DType type = type_of_product(product, m.left.data.dtype, m.right.data.dtype);
  const int64_t lr = m.left.transposed ? m.depth : m.rows,
                lc = m.left.transposed ? m.rows : m.depth;
  const int64_t rr = m.right.transposed ? m.cols : m.depth,
                rc = m.right.transposed ? m.depth : m.cols;
  const int64_t left_bytes = converted_bytes(m.left, lr, lc, type);
  const int64_t right_bytes = converted_bytes(m.right, rr, rc, type);
  // The library adds a bias of the type of `out` alone, so outputs of 16 bits get it rounded.
  const bool rounds_bias = m.bias && m.out.dtype != DType::kF32;
  const int64_t bias_bytes = rounds_bias ? m.cols * dtype_size(m.out.dtype) : 0;
  char* memory = stream.scratch<char>(kProductWorkspace + left_bytes + right_bytes + bias_bytes);
  if (memory == nullptr) return;
  bring_to(stream, name, m.left, lr, lc, type, memory + kProductWorkspace);
  bring_to(stream, name, m.right, rr, rc, type, memory + kProductWorkspace + left_bytes);
  auto* library = static_cast<MatrixLibrary*>(stream.products);
  if (stream.failed == nullptr && library != nullptr && m.depth > 0) {
    MatrixProduct part = m;
    if (rounds_bias) {
      const Buf bias(memory + kProductWorkspace + left_bytes + right_bytes, m.out.dtype);
      convert(stream, name, 1, m.cols, m.bias, m.cols, bias, m.cols);
      part.bias = bias;
    }
    if (multiply(*library, stream, part, memory)) return;
  }
  multiply_plainly(stream, name, m);
}

// ---- Rows ----

template <class W, class Y>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(int64_t dim, const int32_t* ids, const W* weight, int64_t stride, Y* y) {
  wait_for_previous();
  const int64_t row = blockIdx.x, id = ids[row];
  for (int64_t c = threadIdx.x; c < dim; c += kThreads) {
    store(y + row * dim + c, id < 0 ? 0 : load(weight + id * stride + c));
  }
}

}  // namespace

void linear_forward(Stream& stream, const LinearArgs& a) noexcept {
  MatrixProduct m = {};
  m.rows = a.M, m.cols = a.N, m.depth = a.K;
  m.left = {a.x, a.x_stride, false};
  m.right = {a.weight, a.K, true};
  if (a.packed != nullptr) {
    if (!expect_packed(stream, "linear_forward", *a.packed, a.N, a.K)) return;
    m.right = {CBuf(a.packed->data, a.packed->dtype), packed_stride(*a.packed), true};
  }
  const CBuf weight = m.right.data;
  const bool aligned =
      rows_aligned(weight, m.right.stride, 16) && rows_aligned(a.x, a.M == 1 ? 0 : a.x_stride, 16);
  const LinearShape shape = {a.M,       a.N,       a.K,     weight.dtype,
                             a.x.dtype, a.product, aligned, stream.overlaps};
  const Way way = choose(stream, linear_request(shape)).way;
  if (way == Way::kRow) {
    return multiply_row(stream, "linear_forward", a, weight, m.right.stride);
  }
  if (way == Way::kTiles) {
    return multiply_tiles(stream, "linear_forward", a, weight, m.right.stride);
  }
  if (way == Way::kTensor || way == Way::kPlain) {
    return multiply_few_rows(stream, "linear_forward", a, weight, m.right.stride, way);
  }
  m.bias = a.bias;
  m.accumulate = a.accumulate;
  m.out = a.y, m.out_stride = a.y_stride;
  multiply_any(stream, "linear_forward", a.product, m);
}

void linear_backward_input(Stream& stream, const LinearBackwardInputArgs& a) noexcept {
  MatrixProduct m = {};
  m.rows = a.M, m.cols = a.K, m.depth = a.N;
  m.left = {a.dy, a.dy_stride, false};
  m.right = {a.weight, a.K, false};
  m.accumulate = a.accumulate;
  m.out = a.dx, m.out_stride = a.dx_stride;
  multiply_any(stream, "linear_backward_input", a.product, m);
}

void column_sum(Stream& stream, const ColumnSumArgs& args) noexcept;  // column_sum_cuda.cu

void linear_backward_weight(Stream& stream, const LinearBackwardWeightArgs& a) noexcept {
  const char* name = "linear_backward_weight";
  if (a.M == 0) return;
  MatrixProduct m = {};
  m.rows = a.N, m.cols = a.K, m.depth = a.M;
  m.left = {a.dy, a.dy_stride, true};
  m.right = {a.x, a.x_stride, false};
  m.accumulate = true;
  m.out = a.dweight, m.out_stride = a.K;
  multiply_any(stream, name, a.product, m);
  if (!a.dbias) return;
  column_sum(stream, {a.M, a.N, a.dy, a.dy_stride, a.dbias});
}

// A copy in the type of the product, in rows of whole 16 bytes.
void linear_pack(Stream& stream, const LinearPackArgs& a) noexcept {
  DType type = a.weight.dtype;
  if (type != DType::kF16) type = a.product == Product::kBF16 ? DType::kBF16 : DType::kF32;
  PackedLinear packed = {a.N, a.K, kPackedOnCuda, a.product, type, nullptr, 0, nullptr};
  packed.bytes = a.N * packed_stride(packed) * dtype_size(type);
  *a.out = new_packed(stream, "linear_pack", packed);
  if (*a.out == nullptr) return;
  convert(stream, "linear_pack", a.N, a.K, a.weight, a.K, Buf((*a.out)->data, type),
          packed_stride(packed));
  // The weight may go once this returns.
  expect_success(stream, "linear_pack", cudaStreamSynchronize(cuda_stream(stream)));
}

void linear_unpack(Stream& stream, const LinearUnpackArgs& a) noexcept {
  if (a.packed == nullptr) return;
  stream.give(stream, a.packed->data);
  free(a.packed);
}

void linear_rows(Stream& stream, const LinearRowsArgs& a) noexcept {
  const int64_t stride = packed_stride(*a.packed);
  with_type(a.packed->dtype, [&]<class W>() {
    with_type(a.y.dtype, [&]<class Y>() {
      launch_early(stream, "linear_rows", rows_kernel<W, Y>, dim3(static_cast<unsigned>(a.rows)),
                   dim3(kThreads), 0, a.packed->K, a.ids.as<int32_t>(),
                   static_cast<const W*>(a.packed->data), stride, a.y.as<Y>());
    });
  });
}

}  // namespace mamba::cuda
