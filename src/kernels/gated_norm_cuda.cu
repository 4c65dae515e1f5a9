// SPDX-License-Identifier: Apache-2.0
// gated_norm for CUDA, as rms_norm_cuda.cu: a group of channels of a row is what a row is there.
// A block holds it at once, 8 elements a thread, where that makes no more threads than a block has.
#include "kernels/gated_norm.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

constexpr int kEach = 8;
constexpr int kForwardThreads = 1024;  // 32 registers each: all of a multiprocessor's threads
constexpr int kBackwardThreads = 640;  // 96 registers each: as many as are resident at once

struct Forward {
  int64_t groups, width, x_stride, z_stride, y_stride;
  float eps;
  bool norm_before_gate;
  const float* weight;
  float* rstd;
};

// With 0 threads a block holds the row at once.
template <class X, class Y, int threads, int each, int vec>
__global__ void __launch_bounds__(threads > 0 ? threads : kForwardThreads, threads > 0 ? 1 : 2)
    forward_kernel(Forward a, const X* x, const X* z, Y* y) {
  wait_for_previous();
  using P = Panel<threads, each, vec>;
  __shared__ float shared[kWarp];
  const int64_t row = blockIdx.x, first = blockIdx.y * a.width;
  int64_t panels = 1;
  if constexpr (threads > 0) panels = (a.width + P::kWidth - 1) / P::kWidth;
  x += row * a.x_stride + first;
  z += row * a.z_stride + first;
  y += row * a.y_stride + first;
  // v = x * silu(z) of a panel; returns the sum of the squares that the norm takes.
  const auto load = [&](int64_t panel, float(&v)[each]) {
    float gate[each], sum = 0;
    P::load(x, panel, a.width, v);
    P::load(z, panel, a.width, gate);
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const float plain = v[i];
      v[i] *= gate[i] * sigmoid<X>(gate[i]);
      const float normed = a.norm_before_gate ? plain : v[i];
      sum += normed * normed;
    }
    return sum;
  };
  float v0[each], v[each], w0[each];
  if constexpr (threads == 0) P::load(a.weight + first, 0, a.width, w0);
  float sum = load(0, v0);
  for (int64_t panel = 1; panel < panels; ++panel) sum += load(panel, v);
  if constexpr (threads > 0) {
    sum = block_sum<threads>(sum, shared);
  } else {
    sum = whole_row_sum(sum, shared);
  }
  const float s = 1.0f / sqrtf(sum / static_cast<float>(a.width) + a.eps);
  if (threadIdx.x == 0 && a.rstd != nullptr) a.rstd[row * a.groups + blockIdx.y] = s;
  const auto finish = [&](int64_t panel, float(&u)[each]) {
    if constexpr (threads > 0) P::load(a.weight + first, panel, a.width, w0);
#pragma unroll
    for (int i = 0; i < each; ++i) u[i] *= s * w0[i];
    P::store(y, panel, a.width, u);
  };
  finish(0, v0);
  for (int64_t panel = 1; panel < panels; ++panel) {
    load(panel, v);
    finish(panel, v);
  }
}

struct Backward {
  int64_t rows, groups, width, per_block;
  int64_t x_stride, z_stride, dy_stride, dx_stride, dz_stride;
  bool norm_before_gate;
  const float *weight, *rstd;
  float* partial;  // (blocks, dim) sums of dn * n, or null
};

// sigmoid() in two instructions of the special function unit for what is rounded to 16 bits.
template <class T>
__device__ __forceinline__ float fast_sigmoid(float z) {
  if constexpr (sizeof(T) == 4) return sigmoid<T>(z);
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(z * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + e));
  return r;
}

// Of one element: n = v * s with v what the norm takes, and dn, the gradient of n before the
// weight.
__device__ __forceinline__ float normed(bool before, float x, float silu, float s) {
  return (before ? x : x * silu) * s;
}
__device__ __forceinline__ float dnormed(bool before, float dy, float silu) {
  return before ? dy * silu : dy;
}

// dx and dz of one group of a row at a time; the block's next row arrives meanwhile.
template <class T, bool before, int vec>
__global__ void __launch_bounds__(kBackwardThreads)
    whole_backward_kernel(Backward a, const T* x, const T* z, const T* dy, T* dx, T* dz) {
  wait_for_previous();
  using P = Panel<0, kEach, vec>;
  using Ahead = RowsAhead<T, kEach, vec>;
  extern __shared__ uint4 room[];
  __shared__ float shared[2][kWarp];
  char* const rooms = reinterpret_cast<char*>(room);
  Ahead ahead_x, ahead_z, ahead_dy;
  ahead_x.begin(rooms, a.width);
  ahead_z.begin(rooms + Ahead::kBytes * blockDim.x, a.width);
  ahead_dy.begin(rooms + 2 * Ahead::kBytes * blockDim.x, a.width);
  const int64_t first = blockIdx.y * a.width;
  const float share = 1.0f / static_cast<float>(a.width);
  x += first, z += first, dy += first, dx += first, dz += first;
  float w[kEach], dweight[kEach] = {};
  P::load(a.weight + first, 0, a.width, w);
  const auto fetch = [&](int slot, int64_t row) {
    if (row < a.rows) {
      ahead_x.fetch(slot, x + row * a.x_stride, a.width);
      ahead_z.fetch(slot, z + row * a.z_stride, a.width);
      ahead_dy.fetch(slot, dy + row * a.dy_stride, a.width);
    }
    commit_copies();
  };
  int slot = 0;
  fetch(slot, blockIdx.x);
  float next_s = a.rstd[blockIdx.x * a.groups + blockIdx.y];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, slot ^= 1) {
    const int64_t next = row + gridDim.x;
    const float s = next_s;
    fetch(slot ^ 1, next);
    if (next < a.rows) next_s = a.rstd[next * a.groups + blockIdx.y];
    wait_copies<1>();
    float xs[kEach], zs[kEach], dys[kEach], sig[kEach], sum = 0;
    ahead_x.load(slot, xs);
    ahead_z.load(slot, zs);
    ahead_dy.load(slot, dys);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      sig[i] = fast_sigmoid<T>(zs[i]);
      const float silu = zs[i] * sig[i];
      const float product = dnormed(before, dys[i], silu) * normed(before, xs[i], silu, s);
      dweight[i] += product;
      sum += product * w[i];
    }
    const float mean = whole_row_sum(sum, shared[slot]) * share;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float silu = zs[i] * sig[i];
      const float slope = sig[i] * (1 + zs[i] * (1 - sig[i]));  // silu'(z)
      const float n = normed(before, xs[i], silu, s);
      const float dv = s * (dnormed(before, dys[i], silu) * w[i] - n * mean);
      zs[i] = (before ? dys[i] * n * w[i] : dv * xs[i]) * slope;
      xs[i] = before ? dv : dv * silu;
    }
    P::store(dz + row * a.dz_stride, 0, a.width, zs);
    P::store(dx + row * a.dx_stride, 0, a.width, xs);
  }
  P::store(a.partial + blockIdx.x * (a.groups * a.width) + first, 0, a.width, dweight);
}

// The same for rows of any width and place, block by block of rows; with partial (one panel only)
// the sums too.
template <class T, int threads, int each, int vec>
__global__ void __launch_bounds__(threads)
    backward_kernel(Backward a, const T* x, const T* z, const T* dy, T* dx, T* dz) {
  using P = Panel<threads, each, vec>;
  __shared__ float shared[threads / kWarp];
  const int64_t first = blockIdx.y * a.width, panels = (a.width + P::kWidth - 1) / P::kWidth;
  const int64_t begin = blockIdx.x * a.per_block;
  const int64_t end = begin + a.per_block < a.rows ? begin + a.per_block : a.rows;
  const bool before = a.norm_before_gate;
  float dweight[each] = {};
  for (int64_t row = begin; row < end; ++row) {
    const float s = a.rstd[row * a.groups + blockIdx.y];
    const auto load = [&](int64_t panel, float(&xs)[each], float(&zs)[each], float(&dys)[each]) {
      P::load(x + row * a.x_stride + first, panel, a.width, xs);
      P::load(z + row * a.z_stride + first, panel, a.width, zs);
      P::load(dy + row * a.dy_stride + first, panel, a.width, dys);
    };
    const auto add = [&](int64_t panel, const float(&xs)[each], const float(&zs)[each],
                         const float(&dys)[each]) {
      float w[each], sum = 0;
      P::load(a.weight + first, panel, a.width, w);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const float silu = zs[i] * sigmoid<T>(zs[i]);
        const float product = dnormed(before, dys[i], silu) * normed(before, xs[i], silu, s);
        if (panel == 0) dweight[i] += product;
        sum += product * w[i];
      }
      return sum;
    };
    float x0[each], z0[each], dy0[each];
    load(0, x0, z0, dy0);
    float sum = add(0, x0, z0, dy0);
    for (int64_t panel = 1; panel < panels; ++panel) {
      float xs[each], zs[each], dys[each];
      load(panel, xs, zs, dys);
      sum += add(panel, xs, zs, dys);
    }
    const float mean = block_sum<threads>(sum, shared) / static_cast<float>(a.width);
    const auto finish = [&](int64_t panel, float(&xs)[each], float(&zs)[each],
                            const float(&dys)[each]) {
      float w[each];
      P::load(a.weight + first, panel, a.width, w);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const float sig = sigmoid<T>(zs[i]), silu = zs[i] * sig;
        const float slope = sig * (1 + zs[i] * (1 - sig));  // silu'(z)
        const float n = normed(before, xs[i], silu, s);
        const float dv = s * (dnormed(before, dys[i], silu) * w[i] - n * mean);
        zs[i] = (before ? dys[i] * n * w[i] : dv * xs[i]) * slope;
        xs[i] = before ? dv : dv * silu;
      }
      P::store(dz + row * a.dz_stride + first, panel, a.width, zs);
      P::store(dx + row * a.dx_stride + first, panel, a.width, xs);
    };
    finish(0, x0, z0, dy0);
    for (int64_t panel = 1; panel < panels; ++panel) {
      float xs[each], zs[each], dys[each];
      load(panel, xs, zs, dys);
      finish(panel, xs, zs, dys);
    }
  }
  if (a.partial != nullptr) {
    P::store(a.partial + blockIdx.x * (a.groups * a.width) + first, 0, a.width, dweight);
  }
}

// The sums of a block of rows alone, for groups of several panels.
template <class T>
__global__ void weight_kernel(Backward a, const T* x, const T* z, const T* dy) {
  const int64_t dim = a.groups * a.width;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= dim) return;
  const int64_t begin = blockIdx.y * a.per_block;
  const int64_t end = begin + a.per_block < a.rows ? begin + a.per_block : a.rows;
  float sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    const float zc = load(z + row * a.z_stride + c), silu = zc * sigmoid<T>(zc);
    sum += dnormed(a.norm_before_gate, load(dy + row * a.dy_stride + c), silu) *
           normed(a.norm_before_gate, load(x + row * a.x_stride + c), silu,
                  a.rstd[row * a.groups + c / a.width]);
  }
  a.partial[blockIdx.y * dim + c] = sum;
}

}  // namespace

// x and z have one type.
void gated_norm_forward(Stream& stream, const GatedNormArgs& a) noexcept {
  const char* name = "gated_norm_forward";
  const int64_t width = a.dim / a.groups;
  const Forward f = {a.groups,           width,
                     a.x_stride,         a.z_stride,
                     a.y_stride,         static_cast<float>(a.eps),
                     a.norm_before_gate, a.weight.as<float>(),
                     a.rstd.as<float>()};
  const dim3 grid(static_cast<unsigned>(a.rows), static_cast<unsigned>(a.groups));
  with_types(stream, name, a.x.dtype, a.y.dtype, [&]<class X, class Y>() {
    constexpr int wide = kWide<X, Y>;
    const bool vectors = width % wide == 0 && takes_vectors(a.x, a.x_stride, wide) &&
                         takes_vectors(a.z, a.z_stride, wide) && takes_vectors(a.weight, 0, wide) &&
                         takes_vectors(a.y, a.y_stride, wide);
    const int64_t whole = whole_row_threads(width, kEach);
    if (vectors && whole <= kForwardThreads) {
      launch_early(stream, name, forward_kernel<X, Y, 0, kEach, wide>, grid,
                   dim3(static_cast<unsigned>(whole)), 0, f, a.x.as<X>(), a.z.as<X>(), a.y.as<Y>());
      return;
    }
    with_long_panel<wide>(vectors, [&]<int threads, int each, int vec>() {
      launch_early(stream, name, forward_kernel<X, Y, threads, each, vec>, grid, dim3(threads), 0,
                   f, a.x.as<X>(), a.z.as<X>(), a.y.as<Y>());
    });
  });
}

// All buffers but the weight's have one type.
void gated_norm_backward(Stream& stream, const GatedNormBackwardArgs& a) noexcept {
  const char* name = "gated_norm_backward";
  const int64_t width = a.dim / a.groups;
  const CBuf buffers[] = {a.x, a.z, a.dy, a.dx, a.dz};
  const int64_t strides[] = {a.x_stride, a.z_stride, a.dy_stride, a.dx_stride, a.dz_stride};
  const int wide = a.x.dtype == DType::kBF16 ? kWide<bf16, bf16> : kWide<float, float>;
  bool vectors = width % wide == 0 && takes_vectors(a.weight, 0, wide);
  for (int i = 0; i < 5; ++i) {
    vectors = vectors && takes_vectors(buffers[i], strides[i], wide);
    if (buffers[i].dtype != a.x.dtype) expect_success(stream, name, cudaErrorNotSupported);
  }
  const RowBlocks blocks(a.rows, width);
  const int64_t threads = whole_row_threads(width, kEach);
  const bool whole = vectors && threads <= kBackwardThreads;
  const int64_t count =
      whole ? blocks_in_turn(a.rows, threads, kBackwardThreads, a.groups) : blocks.count;
  float* partial = stream.scratch<float>(count * a.dim + 1);
  if (partial == nullptr) return;
  Backward b = {a.rows,
                a.groups,
                width,
                blocks.per_block,
                a.x_stride,
                a.z_stride,
                a.dy_stride,
                a.dx_stride,
                a.dz_stride,
                a.norm_before_gate,
                a.weight.as<float>(),
                a.rstd.as<float>(),
                partial};
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(a.groups));
  with_training_type(a.x.dtype, [&]<class T>() {
    constexpr int kVec = kWide<T, T>;
    if (whole) {
      launch_early(stream, name,
                   a.norm_before_gate ? whole_backward_kernel<T, true, kVec>
                                      : whole_backward_kernel<T, false, kVec>,
                   grid, dim3(static_cast<unsigned>(threads)),
                   3 * RowsAhead<T, kEach, kVec>::kBytes * static_cast<size_t>(threads), b,
                   a.x.as<T>(), a.z.as<T>(), a.dy.as<T>(), a.dx.as<T>(), a.dz.as<T>());
      return;
    }
    with_long_panel<kVec>(vectors, [&]<int threads, int each, int vec>() {
      if (width > threads * each) {
        // Before dx, which may alias dy.
        launch(stream, name, weight_kernel<T>,
               dim3(static_cast<unsigned>(ceil_div(a.dim, 256)), grid.x), dim3(256), 0, b,
               a.x.as<T>(), a.z.as<T>(), a.dy.as<T>());
        b.partial = nullptr;
      }
      launch(stream, name, backward_kernel<T, threads, each, vec>, grid, dim3(threads), 0, b,
             a.x.as<T>(), a.z.as<T>(), a.dy.as<T>(), a.dx.as<T>(), a.dz.as<T>());
    });
  });
  add_partials(stream, name, partial, count, a.dim, a.dim, a.dweight.as<float>());
}

}  // namespace mamba::cuda
