// SPDX-License-Identifier: Apache-2.0
// Mean and standard error of a stream of values by Welford's update, exact enough for 10^9 of them.
#pragma once

#include <cmath>
#include <cstdint>

namespace mamba {

class RunningMean {
 public:
  void add(double value) {
    ++count_;
    const double before = value - mean_;
    mean_ += before / static_cast<double>(count_);
    squares_ += before * (value - mean_);
  }
  int64_t count() const { return count_; }
  double mean() const { return mean_; }
  // Of the mean, values taken as independent; 0 with fewer than two.
  double standard_error() const {
    const double n = static_cast<double>(count_);
    return count_ > 1 ? std::sqrt(squares_ / (n - 1) / n) : 0.0;
  }

 private:
  int64_t count_ = 0;
  double mean_ = 0, squares_ = 0;
};

}  // namespace mamba
