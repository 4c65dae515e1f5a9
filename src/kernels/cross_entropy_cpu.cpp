// SPDX-License-Identifier: Apache-2.0
// cross_entropy for the CPU: rows in parallel; a row is read for its maximum, for exp and sum (kept
// in place when the gradient is wanted) and scaled.
#include <math.h>

#include "kernels/cross_entropy.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {
namespace {

// Elements summed in f32 before they go into a double: keeps 128k exps accurate to a few ulp.
constexpr int64_t kBlock = 64 * F32::kLanes;
constexpr int64_t kSerial = 1 << 14;  // elements below which threads do not pay

MAMBA_INLINE float row_max(const float* x, int64_t n) {
  const F32 lowest = F32::set(-INFINITY);
  F32 m[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  for (; i + 4 * F32::kLanes <= n; i += 4 * F32::kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) m[j] = max(m[j], F32::load(x + i + j * F32::kLanes));
  }
  for (; i + F32::kLanes <= n; i += F32::kLanes) m[0] = max(m[0], F32::load(x + i));
  float best = reduce_max(max(max(m[0], m[1]), max(m[2], m[3])));
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// sum exp(x - largest); the terms replace x when `keep`.
template <bool kKeep>
double exp_sum(float* x, int64_t n, float largest) {
  const F32 offset = F32::set(largest);
  double total = 0;
  int64_t i = 0;
  while (i + F32::kLanes <= n) {
    const int64_t end = i + kBlock < n ? i + kBlock : n;
    F32 sum = F32::zero();
    for (; i + F32::kLanes <= end; i += F32::kLanes) {
      const F32 e = exp(F32::load(x + i) - offset);
      if (kKeep) e.store(x + i);
      sum = sum + e;
    }
    total += static_cast<double>(reduce_add(sum));
  }
  if (i < n) {  // the lanes past the end are not used
    float tail[F32::kLanes];
    exp(F32::load_n(x + i, n - i) - offset).store(tail);
    for (int64_t j = 0; j < n - i; ++j) {
      total += static_cast<double>(tail[j]);
      if (kKeep) x[i + j] = tail[j];
    }
  }
  return total;
}

MAMBA_INLINE void multiply_row(float* x, int64_t n, float factor) {
  const F32 f = F32::set(factor);
  int64_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) (F32::load(x + i) * f).store(x + i);
  (F32::load_n(x + i, n - i) * f).store_n(x + i, n - i);
}

void one_row(const CrossEntropyArgs& a, int64_t r) {
  float* logits = a.logits.as<float>() + r * a.logits_stride;
  float* nll = a.nll.as<float>() + r;
  const int64_t target = a.targets.as<int32_t>()[r];
  *nll = 0;
  if (target < 0) {
    if (a.write_gradient) memset(logits, 0, sizeof(float) * static_cast<size_t>(a.vocab));
    return;
  }
  const float largest = row_max(logits, a.vocab);
  const double of_target = static_cast<double>(logits[target]);
  const double sum = a.write_gradient ? exp_sum<true>(logits, a.vocab, largest)
                                      : exp_sum<false>(logits, a.vocab, largest);
  *nll = static_cast<float>(::log(sum) + static_cast<double>(largest) - of_target);
  if (!a.write_gradient) return;
  const double probability = static_cast<double>(logits[target]) / sum;
  multiply_row(logits, a.vocab, static_cast<float>(a.scale / sum));
  logits[target] = static_cast<float>((probability - 1.0) * a.scale);
}

}  // namespace

void cross_entropy(Stream& stream, const CrossEntropyArgs& a) noexcept {
#pragma omp parallel for num_threads(stream.threads) \
    schedule(static) if (a.rows > 1 && a.rows * a.vocab >= kSerial)
  for (int64_t r = 0; r < a.rows; ++r) one_row(a, r);
}

}  // namespace mamba::MAMBA_ISA
