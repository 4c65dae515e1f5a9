// SPDX-License-Identifier: Apache-2.0
// cross_entropy, reference.
#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void cross_entropy(Stream&, const CrossEntropyArgs& a) noexcept {
  with_float(a.logits.dtype, [&]<class T>() {
    for (int64_t r = 0; r < a.rows; ++r) {
      T* logits = a.logits.as<T>() + r * a.logits_stride;
      const int32_t target = a.targets.as<int32_t>()[r];
      a.nll.as<T>()[r] = 0;
      if (target < 0) {
        if (a.write_gradient) std::fill(logits, logits + a.vocab, T(0));
        continue;
      }
      double max = logits[0];
      for (int64_t v = 1; v < a.vocab; ++v) max = std::max(max, static_cast<double>(logits[v]));
      double sum = 0;
      for (int64_t v = 0; v < a.vocab; ++v) sum += std::exp(logits[v] - max);
      a.nll.as<T>()[r] = static_cast<T>(std::log(sum) + max - logits[target]);
      if (!a.write_gradient) continue;
      for (int64_t v = 0; v < a.vocab; ++v) {
        const double probability = std::exp(logits[v] - max) / sum;
        logits[v] = static_cast<T>((probability - (v == target ? 1 : 0)) * a.scale);
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
