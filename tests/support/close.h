// SPDX-License-Identifier: Apache-2.0
// Comparison with a stated bound; a failure names the worst element, both values and the bound.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace mamba::test {

// |got - want| <= atol + rtol * |want| for every element; NaN never passes, nor does a length
// mismatch.
testing::AssertionResult close(const float* got, const double* want, int64_t count, double atol,
                               double rtol);
testing::AssertionResult close(const double* got, const double* want, int64_t count, double atol,
                               double rtol);

// The same bits, element by element.
testing::AssertionResult same_bits(const float* a, const float* b, int64_t count);

// Largest |got - want| divided by the largest |want| (an error relative to the scale of the
// tensor).
double relative_to_max(const float* got, const double* want, int64_t count);

template <class T>
testing::AssertionResult close(const std::vector<T>& got, const std::vector<double>& want,
                               double atol, double rtol) {
  if (got.size() != want.size()) {
    return testing::AssertionFailure() << got.size() << " elements, expected " << want.size();
  }
  return close(got.data(), want.data(), static_cast<int64_t>(got.size()), atol, rtol);
}

}  // namespace mamba::test
