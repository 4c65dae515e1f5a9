// SPDX-License-Identifier: Apache-2.0
// gate on the CPU: rows in parallel, lanes along a row.
#include "kernels/gate.h"
#include "kernels/rows.h"

namespace mamba::MAMBA_ISA {

void gate_forward(Stream& stream, const GateArgs& a) noexcept {
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* x = a.a.as<float>() + row * a.a_stride;
    const float* z = a.z.as<float>() + row * a.z_stride;
    float* y = a.y.as<float>() + row * a.y_stride;
    for_lanes(
        a.dim, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
          const F32 zi = lanes.load(z + i);
          lanes.store(y + i, lanes.load(x + i) * (zi * sigmoid(zi)));
        });
  }
}

void gate_backward(Stream& stream, const GateBackwardArgs& a) noexcept {
  const bool parallel = stream.threads > 1 && a.rows * a.dim >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* x = a.a.as<float>() + row * a.a_stride;
    const float* z = a.z.as<float>() + row * a.z_stride;
    const float* dy = a.dy.as<float>() + row * a.dy_stride;
    float* da = a.da.as<float>() + row * a.da_stride;
    float* dz = a.dz.as<float>() + row * a.dz_stride;
    for_lanes(
        a.dim, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
          const F32 one = F32::set(1.0f);
          const F32 zi = lanes.load(z + i);
          const F32 g = lanes.load(dy + i);
          const F32 s = sigmoid(zi);
          const F32 slope = s * fma(zi, one - s, one);  // silu'(z)
          const F32 dzi = g * lanes.load(x + i) * slope;
          lanes.store(da + i, g * (zi * s));
          lanes.store(dz + i, dzi);
        });
  }
}

}  // namespace mamba::MAMBA_ISA
