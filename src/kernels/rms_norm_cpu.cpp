// SPDX-License-Identifier: Apache-2.0
// rms_norm on the CPU: rows in parallel, lanes along a row; dweight in fixed blocks of rows.
#include "kernels/rms_norm.h"
#include "kernels/rows.h"

namespace mamba::MAMBA_ISA {
namespace {

void forward_row(const RmsNormArgs& a, int64_t row) {
  const float* x = a.x.as<float>() + row * a.x_stride;
  const float* residual = a.residual ? a.residual.as<float>() + row * a.dim : nullptr;
  const float* weight = a.weight.as<float>();
  float* residual_out = a.residual_out ? a.residual_out.as<float>() + row * a.dim : nullptr;
  float* y = a.y.as<float>() + row * a.y_stride;
  const float sum = sum_lanes(
      a.dim, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 r = lanes.load(x + i);
        if (residual) r = r + lanes.load(residual + i);
        if (residual_out) lanes.store(residual_out + i, r);
        return fma(r, r, acc);
      });
  const float rstd = inverse_root(sum, a.dim, a.eps);
  if (a.rstd) a.rstd.as<float>()[row] = rstd;
  // residual_out may have replaced residual or x: read r from there if it was stored.
  if (residual_out) {
    x = residual_out;
    residual = nullptr;
  }
  const F32 s = F32::set(rstd);
  for_lanes(
      a.dim, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 r = lanes.load(x + i);
        if (residual) r = r + lanes.load(residual + i);
        F32 n = r * s;
        if (weight) n = n * lanes.load(weight + i);
        lanes.store(y + i, n);
      });
}

// dweight is the sum of the row's block, or null. It is updated before dr, which may alias dy.
void backward_row(const RmsNormBackwardArgs& a, int64_t row, float* dweight) {
  const float* r = a.r.as<float>() + row * a.r_stride;
  const float* weight = a.weight.as<float>();
  const float* dy = a.dy.as<float>() + row * a.dy_stride;
  const float* extra = a.dresidual_out ? a.dresidual_out.as<float>() + row * a.dim : nullptr;
  float* dr = a.dr.as<float>() + row * a.dr_stride;
  const F32 s = F32::set(a.rstd.as<float>()[row]);
  const float sum = sum_lanes(
      a.dim, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 p = lanes.load(dy + i) * (lanes.load(r + i) * s);
        if (dweight) lanes.store(dweight + i, lanes.load(dweight + i) + p);
        return weight ? fma(p, lanes.load(weight + i), acc) : acc + p;
      });
  const F32 mean = F32::set(sum / static_cast<float>(a.dim));
  for_lanes(
      a.dim, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 g = lanes.load(dy + i);
        if (weight) g = g * lanes.load(weight + i);
        F32 out = s * fnma(lanes.load(r + i) * s, mean, g);
        if (extra) out = out + lanes.load(extra + i);
        lanes.store(dr + i, out);
      });
}

}  // namespace

void rms_norm_forward(Stream& stream, const RmsNormArgs& a) noexcept {
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t row = 0; row < a.rows; ++row) forward_row(a, row);
}

void rms_norm_backward(Stream& stream, const RmsNormBackwardArgs& a) noexcept {
  const RowBlocks blocks(a.rows);
  float* partial = nullptr;  // (blocks, dim)
  if (a.dweight) {
    partial = stream.scratch<float>(blocks.count() * a.dim);
    if (partial == nullptr && blocks.count() * a.dim > 0) return;
  }
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t block = 0; block < blocks.count(); ++block) {
    float* dweight = partial ? partial + block * a.dim : nullptr;
    if (dweight) memset(dweight, 0, static_cast<size_t>(a.dim) * sizeof(float));
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      backward_row(a, row, dweight);
    }
  }
  if (a.dweight) add_partials(partial, blocks.count(), a.dim, a.dim, a.dweight.as<float>());
}

}  // namespace mamba::MAMBA_ISA
