// SPDX-License-Identifier: Apache-2.0
// The log of the sum of exponentials of a row of logits in f64, and where its largest value is.
#pragma once

#include <cmath>
#include <cstdint>

namespace mamba {

struct RowOfLogits {
  double log_sum = 0;  // log p(v) = logits[v] - log_sum
  int64_t top = 0;     // the first of the largest logits
};

inline RowOfLogits summarise_logits(const float* logits, int64_t vocab) {
  RowOfLogits row;
  for (int64_t v = 1; v < vocab; ++v) {
    if (logits[v] > logits[row.top]) row.top = v;
  }
  const double most = logits[row.top];
  double sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[v]) - most);
  row.log_sum = most + std::log(sum);
  return row;
}

}  // namespace mamba
