// SPDX-License-Identifier: Apache-2.0
// State as a value.
#include "mamba/state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/bf16.h"
#include "base/check.h"
#include "device/memory.h"

namespace mamba {

State::State(std::shared_ptr<const std::vector<StateTensor>> tensors, int64_t elements, DType dtype,
             int64_t batch)
    : tensors_(std::move(tensors)), elements_(elements), dtype_(dtype), batch_(batch) {
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
  State one(tensors_, elements_, dtype_, 1);
  one.assign(0, *this, row);
  return one;
}

void State::assign(int64_t row, const State& from, int64_t from_row) {
  if (row < 0 || row >= batch_ || from_row < 0 || from_row >= from.batch_) {
    fail(ErrorCode::kInvalidArgument, "[state] expected rows below {} and {}, got {} and {}",
         batch_, from.batch_, row, from_row);
  }
  if (from.elements_ != elements_ || from.dtype_ != dtype_) {
    fail(ErrorCode::kInvalidArgument,
         "[state] expected a state of {} bytes a sequence, got one of {}; it is another model's",
         bytes_per_sequence(), from.bytes_per_sequence());
  }
  std::memmove(sequence(row), from.sequence(from_row), static_cast<size_t>(bytes_per_sequence()));
}

State State::as(DType dtype) const {
  const auto either = [](DType t) { return t == DType::kF32 || t == DType::kBF16; };
  if (dtype_ == dtype) return *this;
  if (!either(dtype_) || !either(dtype)) {
    fail(ErrorCode::kInvalidArgument, "[state] expected f32 or bf16, got {} to become {}",
         dtype_name(dtype_), dtype_name(dtype));
  }
  State to(tensors_, elements_, dtype, batch_);
  const int64_t count = batch_ * elements_;
  if (dtype == DType::kBF16) {
    const auto* from = static_cast<const float*>(sequence(0));
    auto* out = static_cast<bf16*>(to.sequence(0));
    for (int64_t i = 0; i < count; ++i) out[i] = to_bf16(from[i]);
  } else {
    const auto* from = static_cast<const bf16*>(sequence(0));
    auto* out = static_cast<float*>(to.sequence(0));
    for (int64_t i = 0; i < count; ++i) out[i] = to_f32(from[i]);
  }
  return to;
}

bool State::operator==(const State& other) const {
  return elements_ == other.elements_ && dtype_ == other.dtype_ && batch_ == other.batch_ &&
         std::memcmp(sequence(0), other.sequence(0),
                     static_cast<size_t>(batch_ * bytes_per_sequence())) == 0;
}

double State::max_difference(const State& other) const {
  if (elements_ != other.elements_ || dtype_ != other.dtype_ || batch_ != other.batch_) {
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
  if (dtype_ == DType::kBF16) {
    return as(DType::kF32).max_difference(other.as(DType::kF32));
  }
  if (dtype_ == DType::kF64) {
    return worst(static_cast<const double*>(sequence(0)),
                 static_cast<const double*>(other.sequence(0)));
  }
  return worst(static_cast<const float*>(sequence(0)),
               static_cast<const float*>(other.sequence(0)));
}

}  // namespace mamba
