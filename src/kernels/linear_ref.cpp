// SPDX-License-Identifier: Apache-2.0
// linear, reference: plain loops, sums in double. kBF16 rounds both operands to bf16 first, in f64
// too.
#include <cstdlib>
#include <cstring>

#include "base/f16.h"
#include "kernels/choices.h"
#include "kernels/linear.h"
#include "kernels/linear_packed.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {
namespace {

template <class T>
double operand(const T* p, int64_t i, Product product) {
  return product == Product::kBF16 ? to_f32(to_bf16(static_cast<float>(p[i])))
                                   : static_cast<double>(p[i]);
}

template <class T>
double weight_operand(CBuf weight, int64_t i, Product product) {
  if (weight.dtype == DType::kBF16) return to_f32(weight.as<bf16>()[i]);
  if (weight.dtype == DType::kF16) return to_f32(weight.as<f16>()[i]);
  return operand(weight.as<T>(), i, product);
}

}  // namespace

void linear_forward(Stream& stream, const LinearArgs& a) noexcept {
  only_way(stream, a, Way::kGeneral);
  const CBuf weight = a.packed ? CBuf(a.packed->data, a.packed->dtype) : a.weight;
  with_float(a.x.dtype, [&]<class T>() {
    for (int64_t m = 0; m < a.M; ++m) {
      for (int64_t n = 0; n < a.N; ++n) {
        double sum = a.bias ? a.bias.as<T>()[n] : 0.0;
        for (int64_t k = 0; k < a.K; ++k) {
          sum += operand(a.x.as<T>(), m * a.x_stride + k, a.product) *
                 weight_operand<T>(weight, n * a.K + k, a.product);
        }
        T& y = a.y.as<T>()[m * a.y_stride + n];
        y = static_cast<T>(a.accumulate ? y + sum : sum);
      }
    }
  });
}

void linear_backward_input(Stream&, const LinearBackwardInputArgs& a) noexcept {
  with_float(a.dy.dtype, [&]<class T>() {
    for (int64_t m = 0; m < a.M; ++m) {
      for (int64_t k = 0; k < a.K; ++k) {
        double sum = 0;
        for (int64_t n = 0; n < a.N; ++n) {
          sum += operand(a.dy.as<T>(), m * a.dy_stride + n, a.product) *
                 weight_operand<T>(a.weight, n * a.K + k, a.product);
        }
        T& dx = a.dx.as<T>()[m * a.dx_stride + k];
        dx = static_cast<T>(a.accumulate ? dx + sum : sum);
      }
    }
  });
}

void linear_backward_weight(Stream&, const LinearBackwardWeightArgs& a) noexcept {
  with_float(a.dy.dtype, [&]<class T>() {
    const T* dy = a.dy.as<T>();
    for (int64_t n = 0; n < a.N; ++n) {
      for (int64_t k = 0; k < a.K; ++k) {
        double sum = 0;
        for (int64_t m = 0; m < a.M; ++m) {
          sum += operand(dy, m * a.dy_stride + n, a.product) *
                 operand(a.x.as<T>(), m * a.x_stride + k, a.product);
        }
        T& dweight = a.dweight.as<T>()[n * a.K + k];
        dweight = static_cast<T>(dweight + sum);
      }
      if (!a.dbias) continue;
      double sum = 0;
      for (int64_t m = 0; m < a.M; ++m) sum += dy[m * a.dy_stride + n];
      a.dbias.as<T>()[n] = static_cast<T>(a.dbias.as<T>()[n] + sum);
    }
  });
}

// Keeps a copy of the weight as it is.
void linear_pack(Stream& stream, const LinearPackArgs& a) noexcept {
  *a.out = nullptr;
  const size_t bytes = static_cast<size_t>(a.N * a.K * dtype_size(a.weight.dtype));
  auto* packed = static_cast<PackedLinear*>(std::malloc(sizeof(PackedLinear)));
  void* data = std::malloc(bytes > 0 ? bytes : 1);
  if (packed == nullptr || data == nullptr) {
    std::free(packed);
    std::free(data);
    if (stream.failed == nullptr) {
      stream.failed = "linear_pack";
      stream.failed_bytes = static_cast<int64_t>(bytes);
    }
    return;
  }
  if (bytes > 0) std::memcpy(data, a.weight.data, bytes);
  *packed = {a.N, a.K, 0, a.product, a.weight.dtype, data, static_cast<int64_t>(bytes), nullptr};
  *a.out = packed;
}

void linear_unpack(Stream&, const LinearUnpackArgs& a) noexcept {
  if (a.packed == nullptr) return;
  std::free(a.packed->data);
  std::free(a.packed);
}

void linear_rows(Stream&, const LinearRowsArgs& a) noexcept {
  const CBuf weight(a.packed->data, a.packed->dtype);
  const int64_t K = a.packed->K;
  with_float(a.y.dtype, [&]<class T>() {
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t id = a.ids.as<int32_t>()[r];
      for (int64_t k = 0; k < K; ++k) {
        a.y.as<T>()[r * K + k] =
            id < 0 ? T(0)
                   : static_cast<T>(weight_operand<T>(weight, id * K + k, a.packed->product));
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
