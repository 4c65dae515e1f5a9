// SPDX-License-Identifier: Apache-2.0
// State as a value.
#include "mamba/state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "device/memory.h"

namespace mamba {

State::State(std::shared_ptr<const std::vector<StateTensor>> tensors, int64_t elements,
             int element_size, int64_t batch)
    : tensors_(std::move(tensors)),
      elements_(elements),
      element_size_(element_size),
      batch_(batch) {
  try {
    const size_t count = static_cast<size_t>((batch * bytes_per_sequence() + 7) / 8);
    storage_.reserve(count);
    prefer_huge_pages(storage_.data(), batch * bytes_per_sequence());
    storage_.resize(count);
  } catch (const std::bad_alloc&) {
    fail(
        ErrorCode::kOutOfMemory,
        "[state] expected {} bytes for {} sequences, got none from the system; use a smaller batch",
        batch * bytes_per_sequence(), batch);
  }
}

void* State::sequence(int64_t row) {
  return reinterpret_cast<char*>(storage_.data()) + row * bytes_per_sequence();
}

const void* State::sequence(int64_t row) const {
  return reinterpret_cast<const char*>(storage_.data()) + row * bytes_per_sequence();
}

State State::fork(int64_t row) const {
  State one(tensors_, elements_, element_size_, 1);
  one.assign(0, *this, row);
  return one;
}

void State::assign(int64_t row, const State& from, int64_t from_row) {
  if (row < 0 || row >= batch_ || from_row < 0 || from_row >= from.batch_) {
    fail(ErrorCode::kInvalidArgument, "[state] expected rows below {} and {}, got {} and {}",
         batch_, from.batch_, row, from_row);
  }
  if (from.elements_ != elements_ || from.element_size_ != element_size_) {
    fail(ErrorCode::kInvalidArgument,
         "[state] expected a state of {} bytes a sequence, got one of {}; it is another model's",
         bytes_per_sequence(), from.bytes_per_sequence());
  }
  std::memmove(sequence(row), from.sequence(from_row), static_cast<size_t>(bytes_per_sequence()));
}

bool State::operator==(const State& other) const {
  return elements_ == other.elements_ && element_size_ == other.element_size_ &&
         batch_ == other.batch_ &&
         std::memcmp(sequence(0), other.sequence(0),
                     static_cast<size_t>(batch_ * bytes_per_sequence())) == 0;
}

double State::max_difference(const State& other) const {
  if (elements_ != other.elements_ || element_size_ != other.element_size_ ||
      batch_ != other.batch_) {
    return std::numeric_limits<double>::infinity();
  }
  const auto worst = [&]<class T>(const T* a, const T* b) {
    double most = 0;
    for (int64_t i = 0; i < batch_ * elements_; ++i) {
      const double d = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      if (!(d <= most)) most = d;  // NaN stays
    }
    return most;
  };
  if (element_size_ == 8) {
    return worst(static_cast<const double*>(sequence(0)),
                 static_cast<const double*>(other.sequence(0)));
  }
  return worst(static_cast<const float*>(sequence(0)),
               static_cast<const float*>(other.sequence(0)));
}

}  // namespace mamba
