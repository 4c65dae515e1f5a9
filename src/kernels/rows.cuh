// SPDX-License-Identifier: Apache-2.0
// What the CUDA row kernels (norms, gate) share: which thread has which columns of a row, and
// gradients of weights as sums over fixed blocks of rows, added in order.
#pragma once

#include "kernels/cuda.cuh"

namespace mamba::cuda {

// Columns of a panel of threads * each: a thread has each / vec vectors, so that neighbouring
// threads have neighbouring vectors. A row is one panel, or several if it is long.
template <int threads, int each, int vec>
struct Panel {
  static constexpr int kVectors = each / vec;
  static constexpr int64_t kWidth = threads * each;
  static __device__ __forceinline__ int64_t column(int64_t panel, int vector) {
    return panel * kWidth + (vector * threads + static_cast<int>(threadIdx.x)) * vec;
  }
  // v = p[columns], 0 beyond dim. dim is a multiple of vec.
  template <class T>
  static __device__ __forceinline__ void load(const T* p, int64_t panel, int64_t dim,
                                              float (&v)[each]) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float part[vec];
      const int64_t c = column(panel, i);
      if (c < dim) {
        load_n<vec>(p + c, part);
      } else {
#pragma unroll
        for (int j = 0; j < vec; ++j) part[j] = 0;
      }
#pragma unroll
      for (int j = 0; j < vec; ++j) v[i * vec + j] = part[j];
    }
  }
  template <class T>
  static __device__ __forceinline__ void store(T* p, int64_t panel, int64_t dim,
                                               const float (&v)[each]) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float part[vec];
#pragma unroll
      for (int j = 0; j < vec; ++j) part[j] = v[i * vec + j];
      const int64_t c = column(panel, i);
      if (c < dim) store_n<vec>(p + c, part);
    }
  }
};

// Calls body.operator()<threads, each, vec>() with the smallest panel that holds a row of `dim`
// (several of the largest for longer ones). Many elements a thread keep many loads in flight.
// Vectors of `wide` elements only where everything is aligned for them; otherwise one shape serves
// all.
// `most` is what a thread may keep: 16 or 24, which several buffers a row have no registers for.
template <int wide, int most, class Body>
void with_panel(int64_t dim, bool vectors, Body&& body) {
  if (!vectors) {
    body.template operator()<256, 8, 1>();
  } else if (dim <= 128 * 8) {
    body.template operator()<128, 8, wide>();
  } else if (dim <= 128 * 16) {
    body.template operator()<128, 16, wide>();
  } else if (dim <= 128 * most && most > 16) {
    body.template operator()<128, most, wide>();
  } else if (dim <= 256 * most) {
    body.template operator()<256, most, wide>();
  } else {
    body.template operator()<512, 16, wide>();
  }
}

// Elements of a vector: 16 bytes of the smaller type.
template <class A, class B>
constexpr int kWide = sizeof(A) == 2 && sizeof(B) == 2 ? 8 : 4;
// Whether vectors of `wide` elements of b can be loaded in rows of `stride` elements.
inline bool takes_vectors(CBuf b, int64_t stride, int wide) {
  const int64_t bytes = wide * dtype_size(b.dtype);
  return rows_aligned(b, stride, bytes < 16 ? bytes : 16);
}

// Calls body.operator()<X, Y>() for the types of an input and an output: the same, or one is f32.
template <class Body>
void with_types(Stream& stream, const char* name, DType x, DType y, Body&& body) {
  if (x == DType::kF32) {
    with_type(y, [&]<class Y>() { body.template operator()<float, Y>(); });
  } else if (y == DType::kF32) {
    with_type(x, [&]<class X>() { body.template operator()<X, float>(); });
  } else if (x == y) {
    with_type(x, [&]<class X>() { body.template operator()<X, X>(); });
  } else {
    expect_success(stream, name, cudaErrorNotSupported);
  }
}

// Calls body.operator()<R, Y, D>() for an input and the gradients that come and go: the input f32,
// or all bf16.
template <class Body>
void with_gradient_types(Stream& stream, const char* name, DType r, DType dy, DType dr,
                         Body&& body) {
  const DType half = DType::kBF16;
  if (r == half) {
    if (dy == half && dr == half) return body.template operator()<bf16, bf16, bf16>();
    expect_success(stream, name, cudaErrorNotSupported);
    return;
  }
  with_training_type(dy, [&]<class Y>() {
    with_training_type(dr, [&]<class D>() { body.template operator()<float, Y, D>(); });
  });
}

// Blocks of rows whose sums of weight gradients are added in order: a function of the shape alone.
// Enough of them to fill a card, fewer where a row takes more threads.
struct RowBlocks {
  int64_t per_block, count;
  explicit RowBlocks(int64_t rows, int64_t dim = 1) {
    const int64_t most = dim <= 1024 ? 2048 : dim <= 3072 ? 1024 : 512;
    per_block = rows > 4 * most ? ceil_div(rows, most) : 4;
    count = ceil_div(rows, per_block);
  }
};

// out[c] += sum over b of partial[b * stride + c], c < dim. A block has 32 columns; its 8 warps
// take an eighth of the blocks of rows each, and their sums are added in order.
static __global__ void add_partials_kernel(const float* __restrict__ partial, int64_t blocks,
                                           int64_t stride, int64_t dim, float* __restrict__ out) {
  __shared__ float sums[8][kWarp];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t share = (blocks + 7) / 8, first = share * threadIdx.y;
  const int64_t end = first + share < blocks ? first + share : blocks;
  float sum = 0;
  if (c < dim) {
#pragma unroll 8
    for (int64_t b = first; b < end; ++b) sum += partial[b * stride + c];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= dim) return;
  for (int i = 1; i < 8; ++i) sum += sums[i][threadIdx.x];
  out[c] += sum;
}
inline void add_partials(Stream& stream, const char* name, const float* partial, int64_t blocks,
                         int64_t stride, int64_t dim, float* out) {
  launch(stream, name, add_partials_kernel, dim3(static_cast<unsigned>(ceil_div(dim, kWarp))),
         dim3(kWarp, 8), 0, partial, blocks, stride, dim, out);
}

}  // namespace mamba::cuda
