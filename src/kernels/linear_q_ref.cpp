// SPDX-License-Identifier: Apache-2.0
// linear_q, reference: weights as numbers, x rounded as the contract says, sums in double.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/choices.h"
#include "kernels/linear_packed.h"
#include "kernels/linear_q.h"
#include "kernels/with_float.h"
#include "quant/dequantize.h"

namespace mamba::MAMBA_ISA {
namespace {

std::vector<float> weight_row(const PackedLinear& packed, int64_t row) {
  std::vector<float> out(static_cast<size_t>(packed.K));
  const char* data = static_cast<const char*>(packed.data);
  dequantize(packed.dtype, data + row * dtype_bytes(packed.dtype, packed.K), packed.K, out.data());
  return out;
}

// What a row of x is to the product.
template <class T>
std::vector<double> rounded(const T* x, int64_t K) {
  std::vector<double> out(static_cast<size_t>(K));
  for (int64_t begin = 0; begin < K; begin += 32) {
    float most = 0;
    for (int64_t k = begin; k < begin + 32; ++k) {
      most = std::fmax(most, std::fabs(static_cast<float>(x[k])));
    }
    const float inverse = most > 0x1p-100f ? 127.0f / most : 0.0f;
    for (int64_t k = begin; k < begin + 32; ++k) {
      out[static_cast<size_t>(k)] =
          std::nearbyint(static_cast<float>(x[k]) * inverse) * static_cast<double>(most / 127.0f);
    }
  }
  return out;
}

}  // namespace

void linear_q_forward(Stream& stream, const LinearQArgs& a) noexcept {
  only_way(stream, a, Way::kGeneral);
  with_float(a.x.dtype, [&]<class T>() {
    std::vector<std::vector<double>> x;
    for (int64_t m = 0; m < a.M; ++m) x.push_back(rounded(a.x.as<T>() + m * a.x_stride, a.K));
    for (int64_t n = 0; n < a.N; ++n) {
      const std::vector<float> w = weight_row(*a.packed, n);
      for (int64_t m = 0; m < a.M; ++m) {
        double sum = a.bias ? static_cast<double>(a.bias.as<T>()[n]) : 0.0;
        for (size_t k = 0; k < w.size(); ++k) {
          sum += x[static_cast<size_t>(m)][k] * static_cast<double>(w[k]);
        }
        a.y.as<T>()[m * a.y_stride + n] = static_cast<T>(sum);
      }
    }
  });
}

// Keeps a copy of the blocks.
void linear_q_pack(Stream& stream, const LinearQPackArgs& a) noexcept {
  *a.out = nullptr;
  const size_t bytes = static_cast<size_t>(a.N * dtype_bytes(a.weight.dtype, a.K));
  auto* packed = static_cast<PackedLinear*>(std::malloc(sizeof(PackedLinear)));
  void* data = std::malloc(bytes > 0 ? bytes : 1);
  if (packed == nullptr || data == nullptr) {
    std::free(packed);
    std::free(data);
    if (stream.failed == nullptr) {
      stream.failed = "linear_q_pack";
      stream.failed_bytes = static_cast<int64_t>(bytes);
    }
    return;
  }
  if (bytes > 0) std::memcpy(data, a.weight.data, bytes);
  *packed = {a.N,    a.K, 0, Product::kF32, a.weight.dtype, data, static_cast<int64_t>(bytes),
             nullptr};
  *a.out = packed;
}

void linear_q_rows(Stream&, const LinearQRowsArgs& a) noexcept {
  const int64_t K = a.packed->K;
  with_float(a.y.dtype, [&]<class T>() {
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t id = a.ids.as<int32_t>()[r];
      const std::vector<float> row =
          id < 0 ? std::vector<float>(static_cast<size_t>(K)) : weight_row(*a.packed, id);
      for (int64_t k = 0; k < K; ++k) {
        a.y.as<T>()[r * K + k] = static_cast<T>(row[static_cast<size_t>(k)]);
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
