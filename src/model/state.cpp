// SPDX-License-Identifier: Apache-2.0
// State as a value.
#include "mamba/state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/bf16.h"
#include "base/check.h"
#include "device/arena.h"

namespace mamba {

struct State::Storage {
  Storage(int64_t bytes, std::shared_ptr<DeviceMemory> its_memory)
      : owner(std::move(its_memory)), block(bytes, "states", memory()) {}
  DeviceMemory& memory() const { return owner != nullptr ? *owner : host_memory(); }

  std::shared_ptr<DeviceMemory> owner;  // null: main memory
  AlignedBlock block;
};

State::State() = default;
State::~State() = default;
State::State(State&&) noexcept = default;
State& State::operator=(State&&) noexcept = default;

State::State(std::shared_ptr<const std::vector<StateTensor>> tensors, int64_t elements, DType dtype,
             int64_t batch, std::shared_ptr<DeviceMemory> memory)
    : tensors_(std::move(tensors)), elements_(elements), dtype_(dtype), batch_(batch) {
  storage_ = std::make_unique<Storage>(batch * bytes_per_sequence(), std::move(memory));
}

State::State(const State& other)
    : tensors_(other.tensors_),
      elements_(other.elements_),
      dtype_(other.dtype_),
      batch_(other.batch_) {
  if (other.storage_ == nullptr) return;
  const AlignedBlock& from = other.storage_->block;
  storage_ = std::make_unique<Storage>(from.size(), other.storage_->owner);
  storage_->memory().copy(storage_->block.data(), from.data(), from.size());
}

State& State::operator=(const State& other) {
  if (this != &other) *this = State(other);
  return *this;
}

void* State::sequence(int64_t row) {
  return const_cast<void*>(static_cast<const State*>(this)->sequence(row));
}

const void* State::sequence(int64_t row) const {
  if (storage_ == nullptr || storage_->block.data() == nullptr) return nullptr;
  return static_cast<const char*>(storage_->block.data()) + row * bytes_per_sequence();
}

bool State::on_host() const { return storage_ == nullptr || storage_->memory().on_host(); }

void State::read(int64_t row, void* to) const {
  storage_->memory().copy_out(to, sequence(row), bytes_per_sequence());
}

void State::write(int64_t row, const void* from) {
  storage_->memory().copy_in(sequence(row), from, bytes_per_sequence());
}

State State::to_host() const {
  if (on_host()) return *this;
  State host(tensors_, elements_, dtype_, batch_);
  storage_->memory().copy_out(host.sequence(0), sequence(0), batch_ * bytes_per_sequence());
  return host;
}

State State::fork(int64_t row) const {
  State one(tensors_, elements_, dtype_, 1, storage_ != nullptr ? storage_->owner : nullptr);
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
  const void* source = from.sequence(from_row);
  if (source == sequence(row)) return;
  if (from.storage_->owner == storage_->owner) {
    storage_->memory().copy(sequence(row), source, bytes_per_sequence());
  } else {
    write(row, from.to_host().sequence(from_row));
  }
}

State State::as(DType dtype) const {
  const auto either = [](DType t) { return t == DType::kF32 || t == DType::kBF16; };
  if (dtype_ == dtype) return *this;
  if (!either(dtype_) || !either(dtype)) {
    fail(ErrorCode::kInvalidArgument, "[state] expected f32 or bf16, got {} to become {}",
         dtype_name(dtype_), dtype_name(dtype));
  }
  if (!on_host()) {
    const State rounded = to_host().as(dtype);
    State there(tensors_, elements_, dtype, batch_, storage_->owner);
    storage_->memory().copy_in(there.sequence(0), rounded.sequence(0),
                               batch_ * there.bytes_per_sequence());
    return there;
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
  if (!on_host() || !other.on_host()) return to_host() == other.to_host();
  if (elements_ != other.elements_ || dtype_ != other.dtype_ || batch_ != other.batch_)
    return false;
  const auto bytes = static_cast<size_t>(batch_ * bytes_per_sequence());
  return bytes == 0 || std::memcmp(sequence(0), other.sequence(0), bytes) == 0;
}

double State::max_difference(const State& other) const {
  if (elements_ != other.elements_ || dtype_ != other.dtype_ || batch_ != other.batch_) {
    return std::numeric_limits<double>::infinity();
  }
  if (!on_host() || !other.on_host()) return to_host().max_difference(other.to_host());
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
