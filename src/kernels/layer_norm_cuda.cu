// SPDX-License-Identifier: Apache-2.0
// layer_norm for CUDA, as rms_norm_cuda.cu. Mean and variance take two sums over the registers.
#include "kernels/layer_norm.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

struct Forward {
  int64_t dim;
  float eps;
  const float *residual, *weight, *bias;
  float *residual_out, *mean, *rstd;
};

template <class X, class Y, int threads, int each, int vec>
__global__ void __launch_bounds__(threads) forward_kernel(Forward a, const X* x, Y* y) {
  wait_for_previous();
  using P = Panel<threads, each, vec>;
  __shared__ float shared[threads / kWarp];
  const int64_t at = blockIdx.x * a.dim, panels = (a.dim + P::kWidth - 1) / P::kWidth;
  const float share = 1.0f / static_cast<float>(a.dim);
  const auto load_sum = [&](int64_t panel, float(&r)[each]) {
    P::load(x + at, panel, a.dim, r);
    if (a.residual == nullptr) return;
    float more[each];
    P::load(a.residual + at, panel, a.dim, more);
#pragma unroll
    for (int i = 0; i < each; ++i) r[i] += more[i];
  };
  const auto add = [&](const float(&r)[each]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) sum += r[i];
    return sum;
  };
  float first[each], r[each];
  load_sum(0, first);
  float sum = add(first);
  for (int64_t panel = 1; panel < panels; ++panel) {
    load_sum(panel, r);
    sum += add(r);
  }
  const float mean = block_sum<threads>(sum, shared) * share;
  // Columns beyond dim would add mean^2 each.
  const auto add_squares = [&](int64_t panel, const float(&v)[each]) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const float d = P::column(panel, i / vec) < a.dim ? v[i] - mean : 0;
      squares += d * d;
    }
    return squares;
  };
  float squares = add_squares(0, first);
  for (int64_t panel = 1; panel < panels; ++panel) {
    load_sum(panel, r);
    squares += add_squares(panel, r);
  }
  const float s = 1.0f / sqrtf(block_sum<threads>(squares, shared) * share + a.eps);
  if (threadIdx.x == 0) {
    if (a.mean != nullptr) a.mean[blockIdx.x] = mean;
    if (a.rstd != nullptr) a.rstd[blockIdx.x] = s;
  }
  const auto finish = [&](int64_t panel, float(&v)[each]) {
    if (a.residual_out != nullptr) P::store(a.residual_out + at, panel, a.dim, v);
    float w[each], b[each];
    P::load(a.weight, panel, a.dim, w);
    P::load(a.bias, panel, a.dim, b);
#pragma unroll
    for (int i = 0; i < each; ++i) v[i] = (v[i] - mean) * s * w[i] + b[i];
    P::store(y + at, panel, a.dim, v);
  };
  finish(0, first);
  for (int64_t panel = 1; panel < panels; ++panel) {
    load_sum(panel, r);
    finish(panel, r);
  }
}

struct Backward {
  int64_t rows, dim, per_block;
  const float *weight, *mean, *rstd, *dresidual_out;
  float* partial;  // (blocks, 2, dim) sums of dy * n and of dy, or null
};

// dr of the rows of a block; with partial (one panel only) the block's sums too.
template <class R, class Y, class D, int threads, int each, int vec>
__global__ void __launch_bounds__(threads)
    backward_kernel(Backward a, const R* r, const Y* dy, D* dr) {
  using P = Panel<threads, each, vec>;
  __shared__ float shared[threads / kWarp];
  const int64_t panels = (a.dim + P::kWidth - 1) / P::kWidth;
  const int64_t begin = blockIdx.x * a.per_block;
  const int64_t end = begin + a.per_block < a.rows ? begin + a.per_block : a.rows;
  float dweight[each] = {}, dbias[each] = {};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * a.dim;
    const float m = a.mean[row], s = a.rstd[row];
    float sum_g = 0, sum_gn = 0;
    // n = (r - m) * s and g = dy * weight of a panel, 0 beyond dim since dy is.
    const auto load = [&](int64_t panel, float(&n)[each], float(&g)[each]) {
      float w[each];
      P::load(r + at, panel, a.dim, n);
      P::load(dy + at, panel, a.dim, g);
      P::load(a.weight, panel, a.dim, w);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        n[i] = (n[i] - m) * s;
        if (panel == 0) {
          dweight[i] += g[i] * n[i];
          dbias[i] += g[i];
        }
        g[i] *= w[i];
      }
    };
    const auto add = [&](const float(&n)[each], const float(&g)[each]) {
#pragma unroll
      for (int i = 0; i < each; ++i) {
        sum_g += g[i];
        sum_gn += g[i] * n[i];
      }
    };
    float n0[each], g0[each];
    load(0, n0, g0);
    add(n0, g0);
    for (int64_t panel = 1; panel < panels; ++panel) {
      float n[each], g[each];
      load(panel, n, g);
      add(n, g);
    }
    const float share = 1.0f / static_cast<float>(a.dim);
    const float mean_g = block_sum<threads>(sum_g, shared) * share;
    const float mean_gn = block_sum<threads>(sum_gn, shared) * share;
    const auto finish = [&](int64_t panel, const float(&n)[each], float(&g)[each]) {
#pragma unroll
      for (int i = 0; i < each; ++i) g[i] = s * (g[i] - mean_g - n[i] * mean_gn);
      if (a.dresidual_out != nullptr) {
        float more[each];
        P::load(a.dresidual_out + at, panel, a.dim, more);
#pragma unroll
        for (int i = 0; i < each; ++i) g[i] += more[i];
      }
      P::store(dr + at, panel, a.dim, g);
    };
    finish(0, n0, g0);
    for (int64_t panel = 1; panel < panels; ++panel) {
      float n[each], g[each];
      load(panel, n, g);
      finish(panel, n, g);
    }
  }
  if (a.partial == nullptr) return;
  P::store(a.partial + (2 * blockIdx.x) * a.dim, 0, a.dim, dweight);
  P::store(a.partial + (2 * blockIdx.x + 1) * a.dim, 0, a.dim, dbias);
}

// The sums of a block of rows alone, for rows of several panels.
template <class R, class Y>
__global__ void weight_kernel(Backward a, const R* r, const Y* dy) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.dim) return;
  const int64_t begin = blockIdx.y * a.per_block;
  const int64_t end = begin + a.per_block < a.rows ? begin + a.per_block : a.rows;
  float dweight = 0, dbias = 0;
  for (int64_t row = begin; row < end; ++row) {
    const float d = load(dy + row * a.dim + c);
    dweight += d * ((load(r + row * a.dim + c) - a.mean[row]) * a.rstd[row]);
    dbias += d;
  }
  a.partial[2 * blockIdx.y * a.dim + c] = dweight;
  a.partial[(2 * blockIdx.y + 1) * a.dim + c] = dbias;
}

}  // namespace

void layer_norm_forward(Stream& stream, const LayerNormArgs& a) noexcept {
  const char* name = "layer_norm_forward";
  const Forward f = {a.dim,
                     static_cast<float>(a.eps),
                     a.residual.as<float>(),
                     a.weight.as<float>(),
                     a.bias.as<float>(),
                     a.residual_out.as<float>(),
                     a.mean.as<float>(),
                     a.rstd.as<float>()};
  with_types(stream, name, a.x.dtype, a.y.dtype, [&]<class X, class Y>() {
    // Whatever the types, so that the same numbers have the same sums in all.
    constexpr int wide = 4;
    bool vectors = a.dim % wide == 0;
    for (const CBuf& b : {a.x, a.residual, a.weight, a.bias, CBuf(a.residual_out), CBuf(a.y)}) {
      vectors = vectors && takes_vectors(b, a.dim, wide);
    }
    with_panel<wide, 24>(a.dim, vectors, [&]<int threads, int each, int vec>() {
      launch_early(stream, name, forward_kernel<X, Y, threads, each, vec>,
                   dim3(static_cast<unsigned>(a.rows)), dim3(threads), 0, f, a.x.as<X>(),
                   a.y.as<Y>());
    });
  });
}

void layer_norm_backward(Stream& stream, const LayerNormBackwardArgs& a) noexcept {
  const char* name = "layer_norm_backward";
  const RowBlocks blocks(a.rows, a.dim);
  float* partial = stream.scratch<float>(blocks.count * 2 * a.dim + 1);
  if (partial == nullptr) return;
  Backward b = {a.rows,
                a.dim,
                blocks.per_block,
                a.weight.as<float>(),
                a.mean.as<float>(),
                a.rstd.as<float>(),
                a.dresidual_out.as<float>(),
                partial};
  const unsigned count = static_cast<unsigned>(blocks.count);
  with_gradient_types(
      stream, name, a.r.dtype, a.dy.dtype, a.dr.dtype, [&]<class R, class Y, class D>() {
        constexpr int wide = kWide<R, Y>;
        bool vectors = a.dim % wide == 0;
        for (const CBuf& buf : {a.r, a.weight, a.dy, a.dresidual_out, CBuf(a.dr)}) {
          vectors = vectors && takes_vectors(buf, a.dim, wide);
        }
        with_panel<wide, 16>(a.dim, vectors, [&]<int threads, int each, int vec>() {
          if (a.dim > threads * each) {
            // Before dr, which may alias dy.
            launch(stream, name, weight_kernel<R, Y>,
                   dim3(static_cast<unsigned>(ceil_div(a.dim, 256)), count), dim3(256), 0, b,
                   a.r.as<R>(), a.dy.as<Y>());
            b.partial = nullptr;
          }
          launch(stream, name, backward_kernel<R, Y, D, threads, each, vec>, dim3(count),
                 dim3(threads), 0, b, a.r.as<R>(), a.dy.as<Y>(), a.dr.as<D>());
        });
      });
  add_partials(stream, name, partial, blocks.count, 2 * a.dim, a.dim, a.dweight.as<float>());
  add_partials(stream, name, partial + a.dim, blocks.count, 2 * a.dim, a.dim, a.dbias.as<float>());
}

}  // namespace mamba::cuda
