// SPDX-License-Identifier: Apache-2.0
// Main memory as the memory of a device.
#include "device/device_memory.h"

#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "device/memory.h"

namespace mamba {
namespace {

class HostMemory : public DeviceMemory {
 public:
  bool on_host() const override { return true; }

  void* allocate(int64_t bytes, const char* purpose) override {
    const int64_t rounded = (bytes + 63) / 64 * 64;
    if (rounded == 0) return nullptr;
    void* p = std::aligned_alloc(64, static_cast<size_t>(rounded));
    if (p == nullptr) {
      fail(ErrorCode::kOutOfMemory,
           "[memory] expected {:.1f} MiB for {}, got none from the system; use a smaller batch or "
           "sequence length",
           static_cast<double>(rounded) / 1048576.0, purpose);
    }
    prefer_huge_pages(p, rounded);
    std::memset(p, 0, static_cast<size_t>(rounded));
    return p;
  }
  void release(void* data) noexcept override { std::free(data); }
  double free_bytes() const override { return machine_bytes(); }

  void copy_in(void* to, const void* from, int64_t bytes) override {
    copy_rows(to, bytes, from, bytes, bytes, 1);
  }
  void copy_out(void* to, const void* from, int64_t bytes) override {
    copy_rows(to, bytes, from, bytes, bytes, 1);
  }
  void copy_rows(void* to, int64_t to_step, const void* from, int64_t from_step, int64_t row_bytes,
                 int64_t rows) override {
    if (row_bytes == 0) return;
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(static_cast<char*>(to) + r * to_step,
                  static_cast<const char*>(from) + r * from_step, static_cast<size_t>(row_bytes));
    }
  }
  void zero(void* data, int64_t bytes) override {
    if (bytes > 0) std::memset(data, 0, static_cast<size_t>(bytes));
  }
  void wait() override {}
};

}  // namespace

DeviceMemory& host_memory() {
  static HostMemory memory;
  return memory;
}

void expect_memory(const DeviceMemory& memory, double bytes, const std::string& where,
                   const std::string& what, const std::string& advice) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  const double there = memory.free_bytes();
  if (bytes <= there) return;
  fail(ErrorCode::kOutOfMemory,
       "[{}] expected to need at most the {:.1f} GiB {}, got {:.1f} GiB for {}; {}", where,
       there / kGiB, memory.on_host() ? "of this machine" : "that are free on the device",
       bytes / kGiB, what, advice);
}

HostView::HostView(DeviceMemory& memory, CBuf data, int64_t count, Use use)
    : memory_(memory),
      device_(const_cast<void*>(data.data)),
      bytes_(count * dtype_size(data.dtype)),
      buf_(device_, data.dtype) {
  if (memory.on_host() || device_ == nullptr) return;
  copy_ = std::make_unique<std::byte[]>(static_cast<size_t>(bytes_));
  buf_.data = copy_.get();
  if (use == Use::kRead) memory.copy_out(copy_.get(), device_, bytes_);
}

void HostView::write_back() {
  if (copy_ != nullptr) memory_.copy_in(device_, copy_.get(), bytes_);
}

}  // namespace mamba
