// SPDX-License-Identifier: Apache-2.0
// layer_norm on the CPU: rows in parallel, lanes along a row; dweight and dbias in fixed blocks of
// rows. The variance takes a second pass over the row, which is in the first-level cache by then.
#include "kernels/layer_norm.h"
#include "kernels/rows.h"

namespace mamba::MAMBA_ISA {
namespace {

void forward_row(const LayerNormArgs& a, int64_t row) {
  const float* x = a.x.as<float>() + row * a.dim;
  const float* residual = a.residual ? a.residual.as<float>() + row * a.dim : nullptr;
  const float* weight = a.weight.as<float>();
  const float* bias = a.bias.as<float>();
  float* residual_out = a.residual_out ? a.residual_out.as<float>() + row * a.dim : nullptr;
  float* y = a.y.as<float>() + row * a.dim;
  const float sum = sum_lanes(
      a.dim, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 r = lanes.load(x + i);
        if (residual) r = r + lanes.load(residual + i);
        if (residual_out) lanes.store(residual_out + i, r);
        return acc + r;
      });
  // residual_out may have replaced residual or x: read r from there if it was stored.
  if (residual_out) {
    x = residual_out;
    residual = nullptr;
  }
  const float mean = sum / static_cast<float>(a.dim);
  const F32 m = F32::set(mean);
  const float squares = sum_lanes(
      a.dim, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 r = lanes.load(x + i);
        if (residual) r = r + lanes.load(residual + i);
        const F32 c = lanes.keep(r - m);
        return fma(c, c, acc);
      });
  const float rstd = inverse_root(squares, a.dim, a.eps);
  if (a.mean) a.mean.as<float>()[row] = mean;
  if (a.rstd) a.rstd.as<float>()[row] = rstd;
  const F32 s = F32::set(rstd);
  for_lanes(
      a.dim, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 r = lanes.load(x + i);
        if (residual) r = r + lanes.load(residual + i);
        lanes.store(y + i, fma((r - m) * s, lanes.load(weight + i), lanes.load(bias + i)));
      });
}

// dweight and dbias are the sums of the row's block. They are updated before dr, which may alias
// dy.
void backward_row(const LayerNormBackwardArgs& a, int64_t row, float* dweight, float* dbias) {
  const float* r = a.r.as<float>() + row * a.dim;
  const float* weight = a.weight.as<float>();
  const float* dy = a.dy.as<float>() + row * a.dim;
  const float* extra = a.dresidual_out ? a.dresidual_out.as<float>() + row * a.dim : nullptr;
  float* dr = a.dr.as<float>() + row * a.dim;
  const F32 m = F32::set(a.mean.as<float>()[row]);
  const F32 s = F32::set(a.rstd.as<float>()[row]);
  F32 sum_g = F32::zero();
  const float sum_gn = sum_lanes(
      a.dim, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 d = lanes.load(dy + i);
        const F32 w = lanes.load(weight + i);
        const F32 p = d * ((lanes.load(r + i) - m) * s);
        lanes.store(dweight + i, lanes.load(dweight + i) + p);
        lanes.store(dbias + i, lanes.load(dbias + i) + d);
        sum_g = fma(d, w, sum_g);
        return fma(p, w, acc);
      });
  const float count = static_cast<float>(a.dim);
  const F32 mean_g = F32::set(reduce_add(sum_g) / count);
  const F32 mean_gn = F32::set(sum_gn / count);
  for_lanes(
      a.dim, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 n = (lanes.load(r + i) - m) * s;
        const F32 g = lanes.load(dy + i) * lanes.load(weight + i);
        F32 out = s * fnma(n, mean_gn, g - mean_g);
        if (extra) out = out + lanes.load(extra + i);
        lanes.store(dr + i, out);
      });
}

}  // namespace

void layer_norm_forward(Stream& stream, const LayerNormArgs& a) noexcept {
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t row = 0; row < a.rows; ++row) forward_row(a, row);
}

void layer_norm_backward(Stream& stream, const LayerNormBackwardArgs& a) noexcept {
  const RowBlocks blocks(a.rows);
  if (blocks.count() * a.dim == 0) return;
  float* partial = stream.scratch<float>(blocks.count() * 2 * a.dim);  // (blocks, 2, dim)
  if (partial == nullptr) return;
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t block = 0; block < blocks.count(); ++block) {
    float* dweight = partial + block * 2 * a.dim;
    memset(dweight, 0, static_cast<size_t>(2 * a.dim) * sizeof(float));
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      backward_row(a, row, dweight, dweight + a.dim);
    }
  }
  add_partials(partial, blocks.count(), 2 * a.dim, a.dim, a.dweight.as<float>());
  add_partials(partial + a.dim, blocks.count(), 2 * a.dim, a.dim, a.dbias.as<float>());
}

}  // namespace mamba::MAMBA_ISA
