// SPDX-License-Identifier: Apache-2.0
// Guarded, misaligned buffers: NaN in what is not written yet, sentinels on both sides.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace mamba::test {

// `count` floats that start `misalign` elements past a 64-byte boundary, between guards of 64
// floats.
class Guarded {
 public:
  explicit Guarded(int64_t count, int misalign = 1)
      : count_(count), storage_(count + 2 * kGuard + 32) {
    uintptr_t at = reinterpret_cast<uintptr_t>(storage_.data() + kGuard);
    at = (at + 63) / 64 * 64;
    begin_ = (reinterpret_cast<float*>(at) - storage_.data()) + misalign;
    for (float& v : storage_) v = sentinel();
    poison();
  }
  // Fills the payload with NaN.
  void poison() {
    for (int64_t i = 0; i < count_; ++i) data()[i] = std::numeric_limits<float>::quiet_NaN();
  }
  float* data() { return storage_.data() + begin_; }
  const float* data() const { return storage_.data() + begin_; }
  int64_t size() const { return count_; }
  float& operator[](int64_t i) { return data()[i]; }
  std::vector<float> values() const { return {data(), data() + count_}; }
  // No element outside the payload was written.
  testing::AssertionResult intact() const {
    const float expected = sentinel();
    for (int64_t i = 0; i < static_cast<int64_t>(storage_.size()); ++i) {
      if (i >= begin_ && i < begin_ + count_) continue;
      if (std::memcmp(&storage_[i], &expected, sizeof expected) != 0) {
        return testing::AssertionFailure()
               << "written outside at element " << i - begin_ << " of " << count_;
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  static constexpr int64_t kGuard = 64;
  static float sentinel() {
    const uint32_t bits = 0x7fedbeef;  // a NaN, so that reading a guard shows too
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  }
  int64_t count_ = 0;
  int64_t begin_ = 0;
  std::vector<float> storage_;
};

}  // namespace mamba::test
