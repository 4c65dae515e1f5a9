// SPDX-License-Identifier: Apache-2.0
// Arena: hands out 64-byte aligned views of one block. Without a block it only counts, so that the
// memory of a step is planned by the very code that uses it.
#pragma once

#include <cstdint>
#include <memory>

#include "base/buf.h"
#include "base/check.h"
#include "device/device_memory.h"

namespace mamba {

// What gives an AlignedBlock back.
struct ReleaseMemory {
  DeviceMemory* memory = nullptr;
  void operator()(void* p) const { memory->release(p); }
};

// Memory of fixed size on one device, zeroed, aligned to 64 bytes or more.
class AlignedBlock {
 public:
  AlignedBlock() = default;
  // Throws out_of_memory saying what the memory was for. `memory` must outlive the block.
  AlignedBlock(int64_t bytes, const char* purpose, DeviceMemory& memory = host_memory());
  void* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  std::unique_ptr<void, ReleaseMemory> data_;
  int64_t size_ = 0;
};

class Arena {
 public:
  // Counts only.
  Arena() = default;
  // `peak`, where given, is raised to the furthest byte that was ever handed out; it must outlive
  // all copies.
  Arena(void* data, int64_t bytes, int64_t* peak = nullptr)
      : base_(static_cast<char*>(data)), capacity_(bytes), peak_(peak) {}

  // `count` elements; null data while counting. Past the capacity it is a bug of the plan.
  Buf alloc(DType dtype, int64_t count) {
    const int64_t at = used_;
    used_ += (count * dtype_size(dtype) + 63) / 64 * 64;
    if (base_ == nullptr) return Buf(nullptr, dtype);
    MAMBA_CHECK(used_ <= capacity_);
    if (peak_ != nullptr && before_ + used_ > *peak_) *peak_ = before_ + used_;
    return Buf(base_ + at, dtype);
  }
  int64_t used() const { return used_; }
  // The part that is not handed out yet; what is taken there is not taken here.
  Arena rest() const {
    if (base_ == nullptr) return Arena();
    Arena rest(base_ + used_, capacity_ - used_, peak_);
    rest.before_ = before_ + used_;
    return rest;
  }

 private:
  char* base_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
  int64_t before_ = 0;  // bytes of the block before base_
  int64_t* peak_ = nullptr;
};

}  // namespace mamba
