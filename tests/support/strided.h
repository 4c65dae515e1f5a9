// SPDX-License-Identifier: Apache-2.0
// For kernel tests: guarded rows with a stride and NaN in the gaps, and gradients by differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "support/poison.h"

namespace mamba::test {

// The relative error of one f32 rounding.
constexpr double kRounding = 0x1p-24;

// rows x dim floats, row stride `stride`, all NaN until set, `misalign` elements past 64 bytes.
class StridedRows {
 public:
  StridedRows(int64_t rows, int64_t dim, int64_t stride, int misalign = 1)
      : rows_(rows),
        dim_(dim),
        stride_(stride),
        buffer_(rows > 0 && dim > 0 ? (rows - 1) * stride + dim : 0, misalign) {}
  StridedRows(int64_t rows, int64_t dim, int64_t stride, int misalign,
              const std::vector<double>& values)
      : StridedRows(rows, dim, stride, misalign) {
    set(values);
  }
  void set(const std::vector<double>& values) {
    for (int64_t i = 0; i < rows_ * dim_; ++i) {
      data()[i / dim_ * stride_ + i % dim_] = static_cast<float>(values[static_cast<size_t>(i)]);
    }
  }
  float* data() { return buffer_.data(); }
  int64_t stride() const { return stride_; }
  // The rows without the gaps.
  std::vector<float> values() const {
    std::vector<float> v;
    for (int64_t i = 0; i < rows_ * dim_; ++i) {
      v.push_back(buffer_.data()[i / dim_ * stride_ + i % dim_]);
    }
    return v;
  }
  // Neither the guards nor the gaps were written.
  testing::AssertionResult intact() const {
    for (int64_t i = 0; i < buffer_.size(); ++i) {
      if (i % stride_ >= dim_ && !std::isnan(buffer_.data()[i])) {
        return testing::AssertionFailure() << "gap element " << i << " was written";
      }
    }
    return buffer_.intact();
  }

 private:
  int64_t rows_, dim_, stride_;
  Guarded buffer_;
};

// d loss() / d input[i] for every i, by central differences of fourth order: for smooth functions
// of order 1 the error is about 1e-12 of the loss.
inline std::vector<double> numeric_gradient(std::vector<double>& input,
                                            const std::function<double()>& loss) {
  constexpr double h = 1e-3;
  std::vector<double> gradient;
  for (double& x : input) {
    const double at = x;
    const auto f = [&](double offset) {
      x = at + offset;
      return loss();
    };
    gradient.push_back((8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h));
    x = at;
  }
  return gradient;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline double max_abs(const std::vector<double>& v) {
  double m = 0;
  for (double x : v) m = std::fmax(m, std::fabs(x));
  return m;
}

}  // namespace mamba::test
