// SPDX-License-Identifier: Apache-2.0
// StridedRows in bf16.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/bf16.h"

namespace mamba::test {

// rows x dim elements of bf16, row stride `stride`, `misalign` elements past 64 bytes; all NaN
// until set, and so are 64 elements on both sides.
class HalfRows {
 public:
  HalfRows(int64_t rows, int64_t dim, int64_t stride, int misalign)
      : rows_(rows),
        dim_(dim),
        stride_(stride),
        storage_(static_cast<size_t>((rows > 0 ? (rows - 1) * stride + dim : 0) + 3 * kGuard),
                 to_bf16(NAN)) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(storage_.data() + kGuard);
    begin_ = kGuard + static_cast<int64_t>((begin + 63) / 64 * 64 - begin) / 2 + misalign;
  }
  HalfRows(int64_t rows, int64_t dim, int64_t stride, int misalign,
           const std::vector<double>& values)
      : HalfRows(rows, dim, stride, misalign) {
    for (int64_t i = 0; i < rows * dim; ++i) {
      data()[i / dim * stride + i % dim] =
          to_bf16(static_cast<float>(values[static_cast<size_t>(i)]));
    }
  }
  bf16* data() { return storage_.data() + begin_; }
  int64_t stride() const { return stride_; }
  // The rows without the gaps.
  std::vector<float> values() const {
    std::vector<float> v;
    for (int64_t i = 0; i < rows_ * dim_; ++i) {
      v.push_back(to_f32(storage_[static_cast<size_t>(begin_ + i / dim_ * stride_ + i % dim_)]));
    }
    return v;
  }
  // Neither the guards nor the gaps were written.
  testing::AssertionResult intact() const {
    for (int64_t i = 0; i < static_cast<int64_t>(storage_.size()); ++i) {
      const int64_t at = i - begin_;
      const bool inside = at >= 0 && at < rows_ * stride_ && at % stride_ < dim_;
      if (!inside && !std::isnan(to_f32(storage_[static_cast<size_t>(i)]))) {
        return testing::AssertionFailure() << "element " << at << " was written";
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  static constexpr int64_t kGuard = 64;
  int64_t rows_, dim_, stride_, begin_ = 0;
  std::vector<bf16> storage_;
};

// Values that are exact in bf16.
inline void round_to_bf16(std::vector<double>& values) {
  for (double& v : values) v = to_f32(to_bf16(static_cast<float>(v)));
}

}  // namespace mamba::test
