// SPDX-License-Identifier: Apache-2.0
// What the CUDA row kernels (norms, gate) share: which thread has which columns of a row, and
// gradients of weights as sums over fixed blocks of rows, added in order.
#pragma once

#include "kernels/async.cuh"

namespace mamba::cuda {

// Columns of a panel of threads * each: a thread has each / vec vectors, so that neighbouring
// threads have neighbouring vectors. A row is one panel, or several if it is long. With 0 threads
// it is one of as many as the block has.
template <int threads, int each, int vec>
struct Panel {
  static constexpr int kVectors = each / vec;
  static constexpr int64_t kWidth = threads * each;
  static __device__ __forceinline__ int64_t column(int64_t panel, int vector) {
    const int all = threads > 0 ? threads : static_cast<int>(blockDim.x);
    return panel * kWidth + (vector * all + static_cast<int>(threadIdx.x)) * vec;
  }
  // v = p[columns], 0 beyond dim. dim is a multiple of vec. Nothing waits for a load before all are
  // under way, those of other rows that are loaded next to this one too.
  template <class T>
  static __device__ __forceinline__ void load(const T* p, int64_t panel, int64_t dim,
                                              float (&v)[each]) {
    constexpr int kStep = vec * sizeof(T) > 16 ? 16 / sizeof(T) : vec;
    using V = Vector<T, kStep>;
    V raw[each / kStep] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t c = column(panel, i);
#pragma unroll
      for (int j = 0; j < vec; j += kStep) {
        if (c < dim) raw[(i * vec + j) / kStep] = *reinterpret_cast<const V*>(p + c + j);
      }
    }
#pragma unroll
    for (int i = 0; i < each; ++i) v[i] = to_float(raw[i / kStep].at[i % kStep]);
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
  } else if (dim <= 96 * 8) {
    body.template operator()<96, 8, wide>();
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

// The same for rows that no block holds at once, or that are not aligned.
template <int wide, class Body>
void with_long_panel(bool vectors, Body&& body) {
  if (vectors) {
    body.template operator()<512, 16, wide>();
  } else {
    body.template operator()<256, 8, 1>();
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

// out[c] += sum over b of partial[b * stride + c], c < dim. A block has 8 columns; its 32 groups of
// threads take every 32nd block of rows each, and their sums are added in order. Small enough to
// come to lie beside the last blocks of the kernel in front.
constexpr int kAddColumns = 8, kAddThreads = 256;
static __global__ void __launch_bounds__(kAddThreads)
    add_partials_kernel(const float* __restrict__ partial, int64_t blocks, int64_t stride,
                        int64_t dim, float* __restrict__ out) {
  constexpr int kGroups = kAddThreads / kAddColumns, kAtOnce = 16, kWarps = kAddThreads / kWarp;
  __shared__ float sums[kWarps][kAddColumns];
  const int column = static_cast<int>(threadIdx.x) % kAddColumns;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kAddColumns + column;
  wait_for_previous();
  float sum = 0;
  for (int64_t b = threadIdx.x / kAddColumns; b < blocks; b += kGroups * kAtOnce) {
    float v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t at = b + i * kGroups;
      v[i] = at < blocks && c < dim ? partial[at * stride + c] : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += v[i];
  }
#pragma unroll
  for (int step = kAddColumns; step < kWarp; step *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, step);
  }
  if (threadIdx.x % kWarp < kAddColumns) sums[threadIdx.x / kWarp][column] = sum;
  __syncthreads();
  if (threadIdx.x >= kAddColumns || c >= dim) return;
#pragma unroll
  for (int i = 1; i < kWarps; ++i) sum += sums[i][column];
  out[c] += sum;
}
inline void add_partials(Stream& stream, const char* name, const float* partial, int64_t blocks,
                         int64_t stride, int64_t dim, float* out) {
  launch_early(stream, name, add_partials_kernel,
               dim3(static_cast<unsigned>(ceil_div(dim, kAddColumns))), dim3(kAddThreads), 0,
               partial, blocks, stride, dim, out);
}

// ---- A row that a block holds at once, each thread `each` elements of it ----

// Threads for a row of `dim`: a multiple of 32.
inline int64_t whole_row_threads(int64_t dim, int each) {
  return ceil_div(dim, each * kWarp) * kWarp;
}
// Blocks of `threads` that take rows in turn, `groups` of them beside each other: as many as are
// resident at once on 132 multiprocessors with room for `resident` threads each, and a function of
// the shape alone.
inline int64_t blocks_in_turn(int64_t rows, int64_t threads, int64_t resident, int64_t groups = 1) {
  const int64_t each = resident / threads < 16 ? resident / threads : 16;
  const int64_t count = ceil_div(132 * each, groups);
  return rows < count ? rows : count;
}

// block_sum for a block of any multiple of 32 threads, with one barrier: `shared` has 32 elements,
// and the next sum needs others. Two in turn are enough.
__device__ __forceinline__ float whole_row_sum(float v, float* shared) {
  const unsigned lane = threadIdx.x % kWarp;
  v = warp_sum(v);
  if (lane == 0) shared[threadIdx.x / kWarp] = v;
  __syncthreads();
  return warp_sum(lane < blockDim.x / kWarp ? shared[lane] : 0.0f);
}

// Two rows of T in shared memory, one of which arrives while the other is used. Every thread copies
// what it will read itself, so there is no barrier. A row has `dim` elements, zeros beyond.
template <class T, int each, int vec>
struct RowsAhead {
  using V = Vector<T, vec>;
  static constexpr int kVectors = each / vec;
  static constexpr int kBytes = 2 * each * sizeof(T);  // a thread
  V* at = nullptr;

  __device__ __forceinline__ void begin(void* shared, int64_t dim) {
    at = static_cast<V*>(shared) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (Panel<0, each, vec>::column(0, i) < dim) continue;
      *place(0, i) = *place(1, i) = V{};
    }
  }
  __device__ __forceinline__ V* place(int slot, int i) const {
    return at + (slot * kVectors + i) * blockDim.x;
  }
  __device__ __forceinline__ void fetch(int slot, const T* row, int64_t dim) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t c = Panel<0, each, vec>::column(0, i);
      if (c >= dim) continue;
      const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(place(slot, i)));
      if constexpr (sizeof(V) == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(row + c)
                     : "memory");
      } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(row + c),
                     "n"(sizeof(V))
                     : "memory");
      }
    }
  }
  __device__ __forceinline__ void load(int slot, float (&v)[each]) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const V raw = *place(slot, i);
#pragma unroll
      for (int j = 0; j < vec; ++j) v[i * vec + j] = to_float(raw.at[j]);
    }
  }
};

}  // namespace mamba::cuda
