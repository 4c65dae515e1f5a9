// SPDX-License-Identifier: Apache-2.0
// adamw for CUDA: elementwise, 16 bytes a thread and buffer.
#include <math.h>

#include "kernels/adamw.h"
#include "kernels/cuda.cuh"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 256;

// The constants of a call, as they multiply.
struct Factors {
  float grad_scale, beta1, new1, beta2, new2, keep, rate, correction2, eps;
};

template <class T, int vec>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Factors f, int64_t count, const T* g, float* p, float* m, float* v) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vec;
  if (i >= count) return;
  float gs[vec], ps[vec], ms[vec], vs[vec];
  load_n<vec>(g + i, gs);
  load_n<vec>(p + i, ps);
  load_n<vec>(m + i, ms);
  load_n<vec>(v + i, vs);
#pragma unroll
  for (int j = 0; j < vec; ++j) {
    const float grad = gs[j] * f.grad_scale;
    ms[j] = fmaf(f.beta1, ms[j], f.new1 * grad);
    vs[j] = fmaf(f.beta2, vs[j], f.new2 * grad * grad);
    ps[j] = fmaf(-f.rate, ms[j] / (sqrtf(vs[j] * f.correction2) + f.eps), ps[j] * f.keep);
  }
  store_n<vec>(p + i, ps);
  store_n<vec>(m + i, ms);
  store_n<vec>(v + i, vs);
}

}  // namespace

void adamw(Stream& stream, const AdamwArgs& a) noexcept {
  const double bias1 = 1 - pow(a.beta1, static_cast<double>(a.step));
  const double bias2 = 1 - pow(a.beta2, static_cast<double>(a.step));
  const auto constant = [](double x) { return static_cast<float>(x); };
  const Factors f = {
      constant(a.grad_scale), constant(a.beta1),     constant(1 - a.beta1),
      constant(a.beta2),      constant(1 - a.beta2), constant(1 - a.lr * a.weight_decay),
      constant(a.lr / bias1), constant(1 / bias2),   constant(a.eps)};
  with_training_type(a.g.dtype, [&]<class T>() {
    const bool vectors = is_aligned(a.g.data, 4 * sizeof(T)) && is_aligned(a.p.data, 16) &&
                         is_aligned(a.m.data, 16) && is_aligned(a.v.data, 16);
    // The last elements that fill no vector follow one by one.
    const int64_t whole = vectors ? a.count / 4 * 4 : 0;
    const auto blocks = [](int64_t n) {
      return dim3(static_cast<unsigned>(ceil_div(n, kThreads)));
    };
    launch(stream, "adamw", update_kernel<T, 4>, blocks(whole / 4), dim3(kThreads), 0, f, whole,
           a.g.as<T>(), a.p.as<float>(), a.m.as<float>(), a.v.as<float>());
    launch(stream, "adamw", update_kernel<T, 1>, blocks(a.count - whole), dim3(kThreads), 0, f,
           a.count - whole, a.g.as<T>() + whole, a.p.as<float>() + whole, a.m.as<float>() + whole,
           a.v.as<float>() + whole);
  });
}

}  // namespace mamba::cuda
