// SPDX-License-Identifier: Apache-2.0
// gated_norm for CUDA, as rms_norm_cuda.cu: a group of channels of a row is what a row is there.
#include "kernels/gated_norm.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

struct Forward {
  int64_t groups, width, x_stride, z_stride, y_stride;
  float eps;
  bool norm_before_gate;
  const float* weight;
  float* rstd;
};

template <class X, class Y, int threads, int each, int vec>
__global__ void __launch_bounds__(threads) forward_kernel(Forward a, const X* x, const X* z, Y* y) {
  wait_for_previous();
  using P = Panel<threads, each, vec>;
  __shared__ float shared[threads / kWarp];
  const int64_t row = blockIdx.x, first = blockIdx.y * a.width;
  const int64_t panels = (a.width + P::kWidth - 1) / P::kWidth;
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
  float v0[each], v[each];
  float sum = load(0, v0);
  for (int64_t panel = 1; panel < panels; ++panel) sum += load(panel, v);
  sum = block_sum<threads>(sum, shared);
  const float s = 1.0f / sqrtf(sum / static_cast<float>(a.width) + a.eps);
  if (threadIdx.x == 0 && a.rstd != nullptr) a.rstd[row * a.groups + blockIdx.y] = s;
  const auto finish = [&](int64_t panel, float(&u)[each]) {
    float w[each];
    P::load(a.weight + first, panel, a.width, w);
#pragma unroll
    for (int i = 0; i < each; ++i) u[i] *= s * w[i];
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

// Of one element: n = v * s with v what the norm takes, and dn, the gradient of n before the
// weight.
__device__ __forceinline__ float normed(bool before, float x, float silu, float s) {
  return (before ? x : x * silu) * s;
}
__device__ __forceinline__ float dnormed(bool before, float dy, float silu) {
  return before ? dy * silu : dy;
}

// dx and dz of one group of the rows of a block; with partial (one panel only) the sums too.
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
    with_panel<wide, 24>(width, vectors, [&]<int threads, int each, int vec>() {
      launch_early(stream, name, forward_kernel<X, Y, threads, each, vec>, grid, dim3(threads), 0,
                   f, a.x.as<X>(), a.z.as<X>(), a.y.as<Y>());
    });
  });
}

// All buffers but the weight's have one type.
void gated_norm_backward(Stream& stream, const GatedNormBackwardArgs& a) noexcept {
  const char* name = "gated_norm_backward";
  const int64_t width = a.dim / a.groups;
  const RowBlocks blocks(a.rows, width);
  float* partial = stream.scratch<float>(blocks.count * a.dim + 1);
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
  const unsigned count = static_cast<unsigned>(blocks.count);
  with_training_type(a.x.dtype, [&]<class T>() {
    constexpr int wide = kWide<T, T>;
    bool vectors = width % wide == 0 && takes_vectors(a.weight, 0, wide);
    const CBuf buffers[] = {a.x, a.z, a.dy, a.dx, a.dz};
    const int64_t strides[] = {a.x_stride, a.z_stride, a.dy_stride, a.dx_stride, a.dz_stride};
    for (int i = 0; i < 5; ++i) {
      vectors = vectors && takes_vectors(buffers[i], strides[i], wide);
      if (buffers[i].dtype != a.x.dtype) expect_success(stream, name, cudaErrorNotSupported);
    }
    with_panel<wide, 16>(width, vectors, [&]<int threads, int each, int vec>() {
      if (width > threads * each) {
        // Before dx, which may alias dy.
        launch(stream, name, weight_kernel<T>,
               dim3(static_cast<unsigned>(ceil_div(a.dim, 256)), count), dim3(256), 0, b,
               a.x.as<T>(), a.z.as<T>(), a.dy.as<T>());
        b.partial = nullptr;
      }
      launch(stream, name, backward_kernel<T, threads, each, vec>,
             dim3(count, static_cast<unsigned>(a.groups)), dim3(threads), 0, b, a.x.as<T>(),
             a.z.as<T>(), a.dy.as<T>(), a.dx.as<T>(), a.dz.as<T>());
    });
  });
  add_partials(stream, name, partial, blocks.count, a.dim, a.dim, a.dweight.as<float>());
}

}  // namespace mamba::cuda
