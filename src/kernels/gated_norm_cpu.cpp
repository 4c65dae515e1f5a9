// SPDX-License-Identifier: Apache-2.0
// gated_norm on the CPU: rows in parallel, lanes along a group; dweight in fixed blocks of rows.
// The exponential is taken once per element: what a second pass needs of it waits in an output.
#include "kernels/gated_norm.h"
#include "kernels/rows.h"

namespace mamba::MAMBA_ISA {
namespace {

// The row's vectors of one group.
struct Forward {
  const float* x;
  const float* z;
  const float* weight;
  float* y;
  int64_t width;
};

// y = u * s * weight, u = x * silu(z); u waits in y.
float gate_then_norm(const Forward& f, double eps) {
  const float sum = sum_lanes(
      f.width, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 z = lanes.load(f.z + i);
        const F32 u = lanes.load(f.x + i) * (z * sigmoid(z));
        lanes.store(f.y + i, u);
        return fma(u, u, acc);
      });
  const float rstd = inverse_root(sum, f.width, eps);
  const F32 s = F32::set(rstd);
  for_lanes(
      f.width, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        lanes.store(f.y + i, lanes.load(f.y + i) * s * lanes.load(f.weight + i));
      });
  return rstd;
}

// y = x * s * weight * silu(z).
float norm_then_gate(const Forward& f, double eps) {
  const float sum = sum_lanes(
      f.width, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 x = lanes.load(f.x + i);
        return fma(x, x, acc);
      });
  const float rstd = inverse_root(sum, f.width, eps);
  const F32 s = F32::set(rstd);
  for_lanes(
      f.width, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 z = lanes.load(f.z + i);
        const F32 n = lanes.load(f.x + i) * s * lanes.load(f.weight + i);
        lanes.store(f.y + i, n * (z * sigmoid(z)));
      });
  return rstd;
}

void forward_row(const GatedNormArgs& a, int64_t row) {
  const int64_t width = a.dim / a.groups;
  for (int64_t group = 0; group < a.groups; ++group) {
    const int64_t at = group * width;
    const Forward f{a.x.as<float>() + row * a.x_stride + at,
                    a.z.as<float>() + row * a.z_stride + at, a.weight.as<float>() + at,
                    a.y.as<float>() + row * a.y_stride + at, width};
    const float rstd = a.norm_before_gate ? norm_then_gate(f, a.eps) : gate_then_norm(f, a.eps);
    if (a.rstd) a.rstd.as<float>()[row * a.groups + group] = rstd;
  }
}

// The row's vectors of one group; dweight is the sum of the row's block.
struct Backward {
  const float* x;
  const float* z;
  const float* weight;
  const float* dy;
  float* dx;
  float* dz;
  float* dweight;
  int64_t width;
  float rstd;
};

// n = x * silu(z) * s, g = dy * weight: du = s * (g - n * mean(g * n)), dx = du * silu(z),
// dz = du * x * silu'(z). The sigmoid of the first pass waits in dz.
void backward_gate_then_norm(const Backward& b) {
  const F32 s = F32::set(b.rstd);
  const float sum = sum_lanes(
      b.width, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 z = lanes.load(b.z + i);
        const F32 sig = sigmoid(z);
        lanes.store(b.dz + i, sig);
        const F32 p = lanes.load(b.dy + i) * (lanes.load(b.x + i) * (z * sig) * s);
        lanes.store(b.dweight + i, lanes.load(b.dweight + i) + p);
        return fma(p, lanes.load(b.weight + i), acc);
      });
  const F32 mean = F32::set(sum / static_cast<float>(b.width));
  for_lanes(
      b.width, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 one = F32::set(1.0f);
        const F32 x = lanes.load(b.x + i);
        const F32 z = lanes.load(b.z + i);
        const F32 sig = lanes.load(b.dz + i);
        const F32 silu = z * sig;
        const F32 g = lanes.load(b.dy + i) * lanes.load(b.weight + i);
        const F32 du = s * fnma(x * silu * s, mean, g);
        lanes.store(b.dx + i, du * silu);
        lanes.store(b.dz + i, du * x * (sig * fma(z, one - sig, one)));
      });
}

// n = x * s, g = dy * silu(z) * weight: dx = s * (g - n * mean(g * n)),
// dz = dy * n * weight * silu'(z). g of the first pass waits in dx.
void backward_norm_then_gate(const Backward& b) {
  const F32 s = F32::set(b.rstd);
  const float sum = sum_lanes(
      b.width, [&](F32 acc, int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 one = F32::set(1.0f);
        const F32 z = lanes.load(b.z + i);
        const F32 w = lanes.load(b.weight + i);
        const F32 dy = lanes.load(b.dy + i);
        const F32 n = lanes.load(b.x + i) * s;
        const F32 sig = sigmoid(z);
        const F32 dn = dy * (z * sig);
        const F32 g = dn * w;
        lanes.store(b.dweight + i, fma(dn, n, lanes.load(b.dweight + i)));
        lanes.store(b.dx + i, g);
        lanes.store(b.dz + i, dy * n * w * (sig * fma(z, one - sig, one)));
        return fma(g, n, acc);
      });
  const F32 mean = F32::set(sum / static_cast<float>(b.width));
  for_lanes(
      b.width, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const F32 n = lanes.load(b.x + i) * s;
        lanes.store(b.dx + i, s * fnma(n, mean, lanes.load(b.dx + i)));
      });
}

void backward_row(const GatedNormBackwardArgs& a, int64_t row, float* dweight) {
  const int64_t width = a.dim / a.groups;
  for (int64_t group = 0; group < a.groups; ++group) {
    const int64_t at = group * width;
    const Backward b{a.x.as<float>() + row * a.x_stride + at,
                     a.z.as<float>() + row * a.z_stride + at,
                     a.weight.as<float>() + at,
                     a.dy.as<float>() + row * a.dy_stride + at,
                     a.dx.as<float>() + row * a.dx_stride + at,
                     a.dz.as<float>() + row * a.dz_stride + at,
                     dweight + at,
                     width,
                     a.rstd.as<float>()[row * a.groups + group]};
    if (a.norm_before_gate) {
      backward_norm_then_gate(b);
    } else {
      backward_gate_then_norm(b);
    }
  }
}

}  // namespace

void gated_norm_forward(Stream& stream, const GatedNormArgs& a) noexcept {
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t row = 0; row < a.rows; ++row) forward_row(a, row);
}

void gated_norm_backward(Stream& stream, const GatedNormBackwardArgs& a) noexcept {
  const RowBlocks blocks(a.rows);
  if (blocks.count() * a.dim == 0) return;
  float* partial = stream.scratch<float>(blocks.count() * a.dim);  // (blocks, dim)
  if (partial == nullptr) return;
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t block = 0; block < blocks.count(); ++block) {
    float* dweight = partial + block * a.dim;
    memset(dweight, 0, static_cast<size_t>(a.dim) * sizeof(float));
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      backward_row(a, row, dweight);
    }
  }
  add_partials(partial, blocks.count(), a.dim, a.dim, a.dweight.as<float>());
}

}  // namespace mamba::MAMBA_ISA
