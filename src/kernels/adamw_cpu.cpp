// SPDX-License-Identifier: Apache-2.0
// adamw for the CPU: elementwise, in parallel over fixed blocks.
#include <math.h>

#include "kernels/adamw.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int64_t kBlock = 16384;

// The constants of a call, as they multiply.
struct Factors {
  F32 grad_scale, beta1, new1, beta2, new2, keep, rate, correction2, eps;
};

MAMBA_INLINE void update(const Factors& f, F32 grad, F32* p, F32* m, F32* v) {
  const F32 g = grad * f.grad_scale;
  *m = fma(f.beta1, *m, f.new1 * g);
  *v = fma(f.beta2, *v, f.new2 * g * g);
  *p = fnma(f.rate, *m / (sqrt(*v * f.correction2) + f.eps), *p * f.keep);
}

void update_block(const Factors& f, int64_t n, const float* g, float* p, float* m, float* v) {
  int64_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) {
    F32 pi = F32::load(p + i), mi = F32::load(m + i), vi = F32::load(v + i);
    update(f, F32::load(g + i), &pi, &mi, &vi);
    pi.store(p + i);
    mi.store(m + i);
    vi.store(v + i);
  }
  const int64_t left = n - i;
  F32 pi = F32::load_n(p + i, left), mi = F32::load_n(m + i, left), vi = F32::load_n(v + i, left);
  update(f, F32::load_n(g + i, left), &pi, &mi, &vi);
  pi.store_n(p + i, left);
  mi.store_n(m + i, left);
  vi.store_n(v + i, left);
}

MAMBA_INLINE F32 constant(double x) { return F32::set(static_cast<float>(x)); }

}  // namespace

void adamw(Stream& stream, const AdamwArgs& a) noexcept {
  const double bias1 = 1 - pow(a.beta1, static_cast<double>(a.step));
  const double bias2 = 1 - pow(a.beta2, static_cast<double>(a.step));
  const Factors f = {
      constant(a.grad_scale), constant(a.beta1),     constant(1 - a.beta1),
      constant(a.beta2),      constant(1 - a.beta2), constant(1 - a.lr * a.weight_decay),
      constant(a.lr / bias1), constant(1 / bias2),   constant(a.eps)};
  const int64_t blocks = (a.count + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (blocks > 2)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t at = b * kBlock;
    const int64_t n = a.count - at < kBlock ? a.count - at : kBlock;
    update_block(f, n, a.g.as<float>() + at, a.p.as<float>() + at, a.m.as<float>() + at,
                 a.v.as<float>() + at);
  }
}

}  // namespace mamba::MAMBA_ISA
