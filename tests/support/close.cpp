// SPDX-License-Identifier: Apache-2.0
// Comparison with a stated bound.
#include "support/close.h"

#include <cmath>
#include <cstring>

namespace mamba::test {
namespace {

template <class T>
testing::AssertionResult compare(const T* got, const double* want, int64_t count, double atol,
                                 double rtol) {
  int64_t worst = -1;
  double worst_excess = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - want[i]);
    const double excess = error / (atol + rtol * std::fabs(want[i]) + 1e-300);
    if (!(excess <= 1.0) && (worst < 0 || !(excess <= worst_excess))) {
      worst = i;
      worst_excess = excess;
    }
  }
  if (worst < 0) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "element " << worst << " of " << count << ": got " << got[worst] << ", want "
         << want[worst] << ", " << worst_excess << " times the bound (atol " << atol << ", rtol "
         << rtol << ")";
}

}  // namespace

testing::AssertionResult close(const float* got, const double* want, int64_t count, double atol,
                               double rtol) {
  return compare(got, want, count, atol, rtol);
}

testing::AssertionResult close(const double* got, const double* want, int64_t count, double atol,
                               double rtol) {
  return compare(got, want, count, atol, rtol);
}

testing::AssertionResult same_bits(const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::memcmp(a + i, b + i, sizeof(float)) != 0) {
      return testing::AssertionFailure()
             << "element " << i << " of " << count << ": " << a[i] << " and " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

double relative_to_max(const float* got, const double* want, int64_t count) {
  double error = 0, scale = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double e = std::fabs(static_cast<double>(got[i]) - want[i]);
    if (!(e <= error)) error = e;
    scale = std::fmax(scale, std::fabs(want[i]));
  }
  return scale > 0 ? error / scale : error;
}

}  // namespace mamba::test
