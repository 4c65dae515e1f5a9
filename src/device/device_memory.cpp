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

}  // namespace mamba
