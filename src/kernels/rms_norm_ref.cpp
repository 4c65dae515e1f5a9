// SPDX-License-Identifier: Apache-2.0
// rms_norm: the specification. Sums in double, in f32 too.
#include <cmath>

#include "kernels/rms_norm.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void rms_norm_forward(Stream&, const RmsNormArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    for (int64_t row = 0; row < a.rows; ++row) {
      const T* x = a.x.as<T>() + row * a.x_stride;
      const T* residual = a.residual ? a.residual.as<T>() + row * a.dim : nullptr;
      T* residual_out = a.residual_out ? a.residual_out.as<T>() + row * a.dim : nullptr;
      T* y = a.y.as<T>() + row * a.y_stride;
      // s = 1 / sqrt(mean_d(r^2) + eps)
      double sum = 0;
      for (int64_t d = 0; d < a.dim; ++d) {
        const double r = residual ? x[d] + residual[d] : x[d];
        sum += r * r;
      }
      const T s = static_cast<T>(1 / std::sqrt(sum / a.dim + a.eps));
      // y = r * s * weight
      for (int64_t d = 0; d < a.dim; ++d) {
        const T r = residual ? x[d] + residual[d] : x[d];
        y[d] = r * s * (a.weight ? a.weight.as<T>()[d] : T(1));
        if (residual_out) residual_out[d] = r;
      }
      if (a.rstd) a.rstd.as<T>()[row] = s;
    }
  });
}

void rms_norm_backward(Stream&, const RmsNormBackwardArgs& a) noexcept {
  with_float(a.r.dtype, [&]<class T>() {
    const T* weight = a.weight.as<T>();
    // dweight += sum_rows dy * n, before dr: dr may alias dy.
    for (int64_t d = 0; a.dweight && d < a.dim; ++d) {
      double sum = 0;
      for (int64_t row = 0; row < a.rows; ++row) {
        const double n = a.r.as<T>()[row * a.r_stride + d] * a.rstd.as<T>()[row];
        sum += a.dy.as<T>()[row * a.dy_stride + d] * n;
      }
      a.dweight.as<T>()[d] += static_cast<T>(sum);
    }
    for (int64_t row = 0; row < a.rows; ++row) {
      const T* r = a.r.as<T>() + row * a.r_stride;
      const T* dy = a.dy.as<T>() + row * a.dy_stride;
      T* dr = a.dr.as<T>() + row * a.dr_stride;
      const T s = a.rstd.as<T>()[row];
      // mean_d(g * n), g = dy * weight, n = r * s
      double sum = 0;
      for (int64_t d = 0; d < a.dim; ++d) {
        sum += static_cast<double>(weight ? dy[d] * weight[d] : dy[d]) * (r[d] * s);
      }
      const T mean = static_cast<T>(sum / a.dim);
      // dr = s * (g - n * mean) + dresidual_out
      for (int64_t d = 0; d < a.dim; ++d) {
        const T g = weight ? dy[d] * weight[d] : dy[d];
        const T extra = a.dresidual_out ? a.dresidual_out.as<T>()[row * a.dim + d] : T(0);
        dr[d] = s * (g - r[d] * s * mean) + extra;
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
