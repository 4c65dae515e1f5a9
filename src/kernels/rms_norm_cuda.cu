// SPDX-License-Identifier: Apache-2.0
// rms_norm for CUDA: a block of threads a row, which stays in registers between the sum and the
// result; the gradient of the weight is summed in registers over the rows of a block.
#include "kernels/rms_norm.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kResident = 1280;  // threads of the backward kernel on a multiprocessor

struct Forward {
  int64_t rows, dim, x_stride, y_stride;
  float eps;
  const float *residual, *weight;
  float *residual_out, *rstd;
};

template <class X, class Y, int threads, int each, int vec>
__global__ void __launch_bounds__(threads) forward_kernel(Forward a, const X* x, Y* y) {
  wait_for_previous();
  using P = Panel<threads, each, vec>;
  __shared__ float shared[threads / kWarp];
  const int64_t row = blockIdx.x, panels = (a.dim + P::kWidth - 1) / P::kWidth;
  x += row * a.x_stride;
  y += row * a.y_stride;
  const auto load_sum = [&](int64_t panel, float(&r)[each]) {
    P::load(x, panel, a.dim, r);
    if (a.residual == nullptr) return;
    float more[each];
    P::load(a.residual + row * a.dim, panel, a.dim, more);
#pragma unroll
    for (int i = 0; i < each; ++i) r[i] += more[i];
  };
  // With the row, where there is room.
  constexpr bool kWeightToo = each <= 8;
  float w[each], first[each], sum = 0;
  if (kWeightToo && a.weight != nullptr) P::load(a.weight, 0, a.dim, w);
  load_sum(0, first);
#pragma unroll
  for (int i = 0; i < each; ++i) sum += first[i] * first[i];
  for (int64_t panel = 1; panel < panels; ++panel) {
    float r[each];
    load_sum(panel, r);
#pragma unroll
    for (int i = 0; i < each; ++i) sum += r[i] * r[i];
  }
  sum = block_sum<threads>(sum, shared);
  const float s = 1.0f / sqrtf(sum / static_cast<float>(a.dim) + a.eps);
  if (threadIdx.x == 0 && a.rstd != nullptr) a.rstd[row] = s;
  const auto finish = [&](int64_t panel, float(&r)[each]) {
    if (a.residual_out != nullptr) P::store(a.residual_out + row * a.dim, panel, a.dim, r);
#pragma unroll
    for (int i = 0; i < each; ++i) r[i] *= s;
    if (a.weight != nullptr) {
      if (!kWeightToo || panel > 0) P::load(a.weight, panel, a.dim, w);
#pragma unroll
      for (int i = 0; i < each; ++i) r[i] *= w[i];
    }
    P::store(y, panel, a.dim, r);
  };
  finish(0, first);
  for (int64_t panel = 1; panel < panels; ++panel) {
    float r[each];
    load_sum(panel, r);
    finish(panel, r);
  }
}

struct Backward {
  int64_t rows, dim, r_stride, dy_stride, dr_stride, per_block;
  const float *weight, *rstd, *dresidual_out;
  float* partial;  // (blocks, dim) sums of dy * n, or null
};

// dr of a row at a time, which the block holds at once, and the sums of the block's rows where
// there is room for them. The block's next row arrives meanwhile.
template <class R, class Y, class D, int each>
__global__ void __launch_bounds__(kMostThreads)
    whole_backward_kernel(Backward a, const R* r, const Y* dy, D* dr) {
  wait_for_previous();
  using P = Panel<0, each, 4>;
  extern __shared__ uint4 room[];
  __shared__ float shared[2][kWarp];
  char* const rooms = reinterpret_cast<char*>(room);
  RowsAhead<R, each, 4> ahead_r;
  RowsAhead<float, each, 4> ahead_past;
  RowsAhead<Y, each, 4> ahead_dy;
  ahead_r.begin(rooms, a.dim);
  ahead_past.begin(rooms + ahead_r.kBytes * blockDim.x, a.dim);
  ahead_dy.begin(rooms + (ahead_r.kBytes + ahead_past.kBytes) * blockDim.x, a.dim);
  const auto fetch = [&](int slot, int64_t row) {
    if (row < a.rows) {
      ahead_r.fetch(slot, r + row * a.r_stride, a.dim);
      ahead_dy.fetch(slot, dy + row * a.dy_stride, a.dim);
      if (a.dresidual_out != nullptr) {
        ahead_past.fetch(slot, a.dresidual_out + row * a.dim, a.dim);
      }
    }
    commit_copies();
  };
  const float share = 1.0f / static_cast<float>(a.dim);
  float w[each], dweight[each] = {};
  if (a.weight != nullptr) {
    P::load(a.weight, 0, a.dim, w);
  } else {
#pragma unroll
    for (int i = 0; i < each; ++i) w[i] = 1;
  }
  int slot = 0;
  fetch(slot, blockIdx.x);
  float next_s = a.rstd[blockIdx.x];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, slot ^= 1) {
    const int64_t next = row + gridDim.x;
    const float s = next_s;
    float n[each], g[each], past[each] = {}, sum = 0;
    fetch(slot ^ 1, next);
    wait_copies<1>();
    ahead_r.load(slot, n);
    ahead_dy.load(slot, g);
    if (a.dresidual_out != nullptr) ahead_past.load(slot, past);
    if (next < a.rows) next_s = a.rstd[next];
#pragma unroll
    for (int i = 0; i < each; ++i) {
      n[i] *= s;
      dweight[i] += g[i] * n[i];
      g[i] *= w[i];
      sum += g[i] * n[i];
    }
    const float mean = whole_row_sum(sum, shared[slot]) * share;
#pragma unroll
    for (int i = 0; i < each; ++i) g[i] = s * (g[i] - n[i] * mean) + past[i];
    P::store(dr + row * a.dr_stride, 0, a.dim, g);
  }
  if (a.partial != nullptr) P::store(a.partial + blockIdx.x * a.dim, 0, a.dim, dweight);
}

// The same for rows of any length and place, block by block of rows; with partial (one panel only)
// the block's sums too.
template <class R, class Y, class D, int threads, int each, int vec>
__global__ void __launch_bounds__(threads)
    backward_kernel(Backward a, const R* r, const Y* dy, D* dr) {
  using P = Panel<threads, each, vec>;
  __shared__ float shared[threads / kWarp];
  const int64_t panels = (a.dim + P::kWidth - 1) / P::kWidth;
  const int64_t begin = blockIdx.x * a.per_block;
  const int64_t end = begin + a.per_block < a.rows ? begin + a.per_block : a.rows;
  float dweight[each] = {};
  for (int64_t row = begin; row < end; ++row) {
    const R* r_row = r + row * a.r_stride;
    const Y* dy_row = dy + row * a.dy_stride;
    const float s = a.rstd[row];
    // n = r * s and g = dy * weight of a panel; returns their products' sum.
    const auto load = [&](int64_t panel, float(&n)[each], float(&g)[each], bool add) {
      P::load(r_row, panel, a.dim, n);
      P::load(dy_row, panel, a.dim, g);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        n[i] *= s;
        if (add) dweight[i] += g[i] * n[i];
      }
      if (a.weight != nullptr) {
        float w[each];
        P::load(a.weight, panel, a.dim, w);
#pragma unroll
        for (int i = 0; i < each; ++i) g[i] *= w[i];
      }
      float sum = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) sum += g[i] * n[i];
      return sum;
    };
    float n0[each], g0[each];
    float sum = load(0, n0, g0, true);
    for (int64_t panel = 1; panel < panels; ++panel) {
      float n[each], g[each];
      sum += load(panel, n, g, false);
    }
    const float mean = block_sum<threads>(sum, shared) / static_cast<float>(a.dim);
    const auto finish = [&](int64_t panel, const float(&n)[each], float(&g)[each]) {
#pragma unroll
      for (int i = 0; i < each; ++i) g[i] = s * (g[i] - n[i] * mean);
      if (a.dresidual_out != nullptr) {
        float more[each];
        P::load(a.dresidual_out + row * a.dim, panel, a.dim, more);
#pragma unroll
        for (int i = 0; i < each; ++i) g[i] += more[i];
      }
      P::store(dr + row * a.dr_stride, panel, a.dim, g);
    };
    finish(0, n0, g0);
    for (int64_t panel = 1; panel < panels; ++panel) {
      float n[each], g[each];
      load(panel, n, g, false);
      finish(panel, n, g);
    }
  }
  if (a.partial != nullptr) P::store(a.partial + blockIdx.x * a.dim, 0, a.dim, dweight);
}

// The sums of dy * n of a block of rows alone, for rows of several panels.
template <class R, class Y>
__global__ void weight_kernel(Backward a, const R* r, const Y* dy) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.dim) return;
  const int64_t begin = blockIdx.y * a.per_block;
  const int64_t end = begin + a.per_block < a.rows ? begin + a.per_block : a.rows;
  float sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    sum += load(dy + row * a.dy_stride + c) * (load(r + row * a.r_stride + c) * a.rstd[row]);
  }
  a.partial[blockIdx.y * a.dim + c] = sum;
}

}  // namespace

void rms_norm_forward(Stream& stream, const RmsNormArgs& a) noexcept {
  const char* name = "rms_norm_forward";
  const Forward f = {a.rows,
                     a.dim,
                     a.x_stride,
                     a.y_stride,
                     static_cast<float>(a.eps),
                     a.residual.as<float>(),
                     a.weight.as<float>(),
                     a.residual_out.as<float>(),
                     a.rstd.as<float>()};
  with_types(stream, name, a.x.dtype, a.y.dtype, [&]<class X, class Y>() {
    // Whatever the types, so that the same numbers have the same sums in all.
    constexpr int wide = 4;
    const bool vectors =
        a.dim % wide == 0 && takes_vectors(a.x, a.x_stride, wide) &&
        takes_vectors(a.residual, a.dim, wide) && takes_vectors(a.weight, 0, wide) &&
        takes_vectors(a.residual_out, a.dim, wide) && takes_vectors(a.y, a.y_stride, wide);
    with_panel<wide, 24>(a.dim, vectors, [&]<int threads, int each, int vec>() {
      launch_early(stream, name, forward_kernel<X, Y, threads, each, vec>,
                   dim3(static_cast<unsigned>(a.rows)), dim3(threads), 0, f, a.x.as<X>(),
                   a.y.as<Y>());
    });
  });
}

void rms_norm_backward(Stream& stream, const RmsNormBackwardArgs& a) noexcept {
  const char* name = "rms_norm_backward";
  constexpr int wide = 4;
  const bool vectors = a.dim % wide == 0 && takes_vectors(a.r, a.r_stride, wide) &&
                       takes_vectors(a.weight, 0, wide) && takes_vectors(a.dy, a.dy_stride, wide) &&
                       takes_vectors(a.dresidual_out, a.dim, wide) &&
                       takes_vectors(a.dr, a.dr_stride, wide);
  const int each = whole_row_threads(a.dim, 4) <= kMostThreads ? 4 : 8;
  const int64_t whole = whole_row_threads(a.dim, each);
  const bool at_once = vectors && whole <= kMostThreads;
  const RowBlocks blocks(a.rows, a.dim);
  const int64_t count = at_once ? blocks_in_turn(a.rows, whole, kResident) : blocks.count;
  float* partial = a.dweight ? stream.scratch<float>(count * a.dim + 1) : nullptr;
  if (a.dweight && partial == nullptr) return;
  Backward b = {a.rows,
                a.dim,
                a.r_stride,
                a.dy_stride,
                a.dr_stride,
                blocks.per_block,
                a.weight.as<float>(),
                a.rstd.as<float>(),
                a.dresidual_out.as<float>(),
                partial};
  const dim3 grid(static_cast<unsigned>(count));
  with_gradient_types(
      stream, name, a.r.dtype, a.dy.dtype, a.dr.dtype, [&]<class R, class Y, class D>() {
        if (at_once) {
          const int64_t bytes = RowsAhead<R, 1, 1>::kBytes + RowsAhead<float, 1, 1>::kBytes +
                                RowsAhead<Y, 1, 1>::kBytes;
          launch_early(
              stream, name,
              each == 4 ? whole_backward_kernel<R, Y, D, 4> : whole_backward_kernel<R, Y, D, 8>,
              grid, dim3(static_cast<unsigned>(whole)), static_cast<size_t>(bytes * each * whole),
              b, a.r.as<R>(), a.dy.as<Y>(), a.dr.as<D>());
          return;
        }
        with_long_panel<wide>(vectors, [&]<int threads, int each, int vec>() {
          if (partial != nullptr && a.dim > threads * each) {
            // Before dr, which may alias dy.
            launch(stream, name, weight_kernel<R, Y>,
                   dim3(static_cast<unsigned>(ceil_div(a.dim, 256)), grid.x), dim3(256), 0, b,
                   a.r.as<R>(), a.dy.as<Y>());
            b.partial = nullptr;
          }
          launch(stream, name, backward_kernel<R, Y, D, threads, each, vec>, grid, dim3(threads), 0,
                 b, a.r.as<R>(), a.dy.as<Y>(), a.dr.as<D>());
        });
      });
  if (partial != nullptr) {
    add_partials(stream, name, partial, count, a.dim, a.dim, a.dweight.as<float>());
  }
}

}  // namespace mamba::cuda
