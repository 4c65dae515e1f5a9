// SPDX-License-Identifier: Apache-2.0
// gated_norm: the specification. Sums in double, in f32 too.
#include <cmath>
#include <vector>

#include "kernels/gated_norm.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {
namespace {

template <class T>
T sigmoid(T z) {
  return 1 / (1 + std::exp(-z));
}

template <class T>
void forward_group(const GatedNormArgs& a, int64_t row, int64_t group) {
  const int64_t width = a.dim / a.groups;
  const T* x = a.x.as<T>() + row * a.x_stride + group * width;
  const T* z = a.z.as<T>() + row * a.z_stride + group * width;
  const T* weight = a.weight.as<T>() + group * width;
  T* y = a.y.as<T>() + row * a.y_stride + group * width;
  // v = x or x * silu(z);  s = 1 / sqrt(mean_group(v^2) + eps)
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) {
    const double v = a.norm_before_gate ? x[d] : x[d] * (z[d] * sigmoid(z[d]));
    sum += v * v;
  }
  const T s = static_cast<T>(1 / std::sqrt(sum / width + a.eps));
  // Both orders are x * silu(z) * s * weight; only s differs.
  for (int64_t d = 0; d < width; ++d) y[d] = x[d] * (z[d] * sigmoid(z[d])) * s * weight[d];
  if (a.rstd) a.rstd.as<T>()[row * a.groups + group] = s;
}

template <class T>
void backward_group(const GatedNormBackwardArgs& a, int64_t row, int64_t group, double* dweight) {
  const int64_t width = a.dim / a.groups, first = group * width;
  const T* x = a.x.as<T>() + row * a.x_stride + first;
  const T* z = a.z.as<T>() + row * a.z_stride + first;
  const T* dy = a.dy.as<T>() + row * a.dy_stride + first;
  const T* weight = a.weight.as<T>() + first;
  T* dx = a.dx.as<T>() + row * a.dx_stride + first;
  T* dz = a.dz.as<T>() + row * a.dz_stride + first;
  const double s = a.rstd.as<T>()[row * a.groups + group];
  const bool before = a.norm_before_gate;
  // v: the input of rms();  n = v * s;  dn: the gradient of n before the weight, g = dn * weight.
  const auto silu = [&](int64_t d) { return static_cast<double>(z[d]) * sigmoid<double>(z[d]); };
  const auto n = [&](int64_t d) { return x[d] * (before ? 1.0 : silu(d)) * s; };
  const auto dn = [&](int64_t d) { return dy[d] * (before ? silu(d) : 1.0); };
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) {
    sum += dn(d) * weight[d] * n(d);
    dweight[first + d] += dn(d) * n(d);
  }
  const double mean = sum / width;
  for (int64_t d = 0; d < width; ++d) {
    const double sig = sigmoid<double>(z[d]);
    const double slope = sig * (1 + z[d] * (1 - sig));  // silu'(z)
    const double dv = s * (dn(d) * weight[d] - n(d) * mean);
    const double x_gradient = before ? dv : dv * silu(d);
    dz[d] = static_cast<T>((before ? dy[d] * n(d) * weight[d] : dv * x[d]) * slope);
    dx[d] = static_cast<T>(x_gradient);  // last: dx may alias dy
  }
}

}  // namespace

void gated_norm_forward(Stream&, const GatedNormArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    for (int64_t row = 0; row < a.rows; ++row) {
      for (int64_t group = 0; group < a.groups; ++group) forward_group<T>(a, row, group);
    }
  });
}

void gated_norm_backward(Stream&, const GatedNormBackwardArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    std::vector<double> dweight(static_cast<size_t>(a.dim));
    for (int64_t row = 0; row < a.rows; ++row) {
      for (int64_t group = 0; group < a.groups; ++group) {
        backward_group<T>(a, row, group, dweight.data());
      }
    }
    for (int64_t d = 0; d < a.dim; ++d) a.dweight.as<T>()[d] += static_cast<T>(dweight[d]);
  });
}

}  // namespace mamba::MAMBA_ISA
