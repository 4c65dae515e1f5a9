// SPDX-License-Identifier: Apache-2.0
// layer_norm: the specification. Sums in double, in f32 too.
#include <cmath>

#include "kernels/layer_norm.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void layer_norm_forward(Stream&, const LayerNormArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    for (int64_t row = 0; row < a.rows; ++row) {
      const int64_t at = row * a.dim;
      const auto r = [&](int64_t d) -> T {
        const T x = a.x.as<T>()[at + d];
        return a.residual ? x + a.residual.as<T>()[at + d] : x;
      };
      // m = mean_d(r)
      double sum = 0;
      for (int64_t d = 0; d < a.dim; ++d) sum += r(d);
      const double m = sum / a.dim;
      // s = 1 / sqrt(mean_d((r - m)^2) + eps)
      double squares = 0;
      for (int64_t d = 0; d < a.dim; ++d) squares += (r(d) - m) * (r(d) - m);
      const double s = 1 / std::sqrt(squares / a.dim + a.eps);
      // y = (r - m) * s * weight + bias
      for (int64_t d = 0; d < a.dim; ++d) {
        const T rd = r(d);
        a.y.as<T>()[at + d] =
            static_cast<T>((rd - m) * s) * a.weight.as<T>()[d] + a.bias.as<T>()[d];
        if (a.residual_out) a.residual_out.as<T>()[at + d] = rd;
      }
      if (a.mean) a.mean.as<T>()[row] = static_cast<T>(m);
      if (a.rstd) a.rstd.as<T>()[row] = static_cast<T>(s);
    }
  });
}

void layer_norm_backward(Stream&, const LayerNormBackwardArgs& a) noexcept {
  with_float(a.r.dtype, [&]<class T>() {
    const T* weight = a.weight.as<T>();
    const auto n = [&](int64_t row, int64_t d) -> double {  // (r - m) * s
      return (a.r.as<T>()[row * a.dim + d] - a.mean.as<T>()[row]) * a.rstd.as<T>()[row];
    };
    // dweight += sum dy * n;  dbias += sum dy;  before dr: dr may alias dy.
    for (int64_t d = 0; d < a.dim; ++d) {
      double dweight = 0, dbias = 0;
      for (int64_t row = 0; row < a.rows; ++row) {
        const double dy = a.dy.as<T>()[row * a.dim + d];
        dweight += dy * n(row, d);
        dbias += dy;
      }
      a.dweight.as<T>()[d] += static_cast<T>(dweight);
      a.dbias.as<T>()[d] += static_cast<T>(dbias);
    }
    for (int64_t row = 0; row < a.rows; ++row) {
      const T* dy = a.dy.as<T>() + row * a.dim;
      // mean(g) and mean(g * n), g = dy * weight
      double sum_g = 0, sum_gn = 0;
      for (int64_t d = 0; d < a.dim; ++d) {
        const double g = static_cast<double>(dy[d]) * weight[d];
        sum_g += g;
        sum_gn += g * n(row, d);
      }
      const double mean_g = sum_g / a.dim, mean_gn = sum_gn / a.dim;
      // dr = s * (g - mean(g) - n * mean(g * n)) + dresidual_out
      for (int64_t d = 0; d < a.dim; ++d) {
        const double g = static_cast<double>(dy[d]) * weight[d];
        const T extra = a.dresidual_out ? a.dresidual_out.as<T>()[row * a.dim + d] : T(0);
        const double dr = a.rstd.as<T>()[row] * (g - mean_g - n(row, d) * mean_gn);
        a.dr.as<T>()[row * a.dim + d] = static_cast<T>(dr) + extra;
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
