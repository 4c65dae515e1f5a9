// SPDX-License-Identifier: Apache-2.0
// grad_norm for the CPU: fixed blocks summed in f64, block sums added in order.
#include "kernels/grad_norm.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int64_t kBlock = 16384;

// Eight floats and doubles at a time on every ISA, so that the sum has one order.
double block_sum(const float* g, int64_t n) {
  typedef float Floats __attribute__((vector_size(32)));
  typedef double Doubles __attribute__((vector_size(64)));
  Doubles sums[2] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 2; ++j) {
      Floats f;
      memcpy(&f, g + i + 8 * j, sizeof f);
      const Doubles d = __builtin_convertvector(f, Doubles);
      sums[j] += d * d;
    }
  }
  const Doubles both = sums[0] + sums[1];
  double total = 0;
  for (int j = 0; j < 8; ++j) total += both[j];
  for (; i < n; ++i) total += static_cast<double>(g[i]) * static_cast<double>(g[i]);
  return total;
}

}  // namespace

void grad_norm(Stream& stream, const GradNormArgs& a) noexcept {
  *a.sum_of_squares = 0;
  const int64_t blocks = (a.count + kBlock - 1) / kBlock;
  if (blocks <= 0) return;
  double* partial = stream.scratch<double>(blocks);
  if (partial == nullptr) return;
  const float* g = a.g.as<float>();
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (blocks > 4)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t left = a.count - b * kBlock;
    partial[b] = block_sum(g + b * kBlock, left < kBlock ? left : kBlock);
  }
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += partial[b];
  *a.sum_of_squares = total;
}

}  // namespace mamba::MAMBA_ISA
