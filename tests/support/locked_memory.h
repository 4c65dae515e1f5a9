// SPDX-License-Identifier: Apache-2.0
// A device whose memory the host cannot touch, as on a GPU, but made of main memory and the CPU's
// kernels: every host access outside of a kernel or a copy ends the test program.
#pragma once

#include <sys/mman.h>

#include <deque>
#include <map>
#include <memory>

#include "base/check.h"
#include "device/device.h"

namespace mamba::test {

class LockedMemory : public DeviceMemory {
 public:
  bool on_host() const override { return false; }
  void* allocate(int64_t bytes, const char*) override {
    if (bytes == 0) return nullptr;
    const size_t size = static_cast<size_t>(bytes + kPage - 1) / kPage * kPage;
    void* data = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MAMBA_CHECK(data != MAP_FAILED);
    blocks_[data] = size;
    return data;
  }
  void release(void* data) noexcept override {
    if (data == nullptr) return;
    munmap(data, blocks_[data]);
    blocks_.erase(data);
  }
  double free_bytes() const override { return 1e12; }
  void copy_in(void* to, const void* from, int64_t bytes) override {
    const Open open(*this);
    host_memory().copy_in(to, from, bytes);
  }
  void copy_out(void* to, const void* from, int64_t bytes) override {
    const Open open(*this);
    host_memory().copy_out(to, from, bytes);
  }
  // Between blocks of this memory alone: other pointers are taken from the host, wrongly.
  void copy_rows(void* to, int64_t to_step, const void* from, int64_t from_step, int64_t row_bytes,
                 int64_t rows) override {
    if (row_bytes == 0 || rows == 0) return;
    MAMBA_CHECK(owns(to) && owns(from));
    const Open open(*this);
    host_memory().copy_rows(to, to_step, from, from_step, row_bytes, rows);
  }
  void zero(void* data, int64_t bytes) override {
    if (bytes == 0) return;
    MAMBA_CHECK(owns(data));
    const Open open(*this);
    host_memory().zero(data, bytes);
  }
  void wait() override {}

  // While one lives, the memory can be touched.
  class Open {
   public:
    explicit Open(LockedMemory& memory) : memory_(memory) {
      memory_.protect(PROT_READ | PROT_WRITE);
    }
    ~Open() { memory_.protect(PROT_NONE); }

   private:
    LockedMemory& memory_;
  };

  struct Block {
    char* begin = nullptr;
    size_t size = 0;
  };
  // The block that p points into, if any.
  Block block_of(const void* p) const {
    auto after = blocks_.upper_bound(const_cast<void*>(p));
    if (after == blocks_.begin()) return {};
    const auto& [begin, size] = *--after;
    if (p >= static_cast<const char*>(begin) + size) return {};
    return {static_cast<char*>(begin), size};
  }
  bool owns(const void* p) const { return block_of(p).begin != nullptr; }

 private:
  static constexpr int64_t kPage = 4096;
  void protect(int access) {
    for (const auto& [data, size] : blocks_) MAMBA_CHECK(mprotect(data, size, access) == 0);
  }
  std::map<void*, size_t> blocks_;
};

// The kernels of a device, each of which opens the device's memory while it runs.
struct LockedKernels : Kernels {
  const Kernels* real;
};
template <class Args, void (*Kernels::*kKernel)(Stream&, const Args&) noexcept>
void run_open(Stream& stream, const Args& args) noexcept {
  const Device& device = *static_cast<const Device*>(stream.owner);
  const LockedMemory::Open open(static_cast<LockedMemory&>(device.memory()));
  (static_cast<const LockedKernels&>(device.kernels()).real->*kKernel)(stream, args);
}

// A device like `name` with locked memory; its table lives as long as the program.
inline std::unique_ptr<Device> locked_device(const std::string& name, int threads) {
  std::unique_ptr<Device> device = Device::create({name, threads});
  static std::deque<LockedKernels> tables;
  LockedKernels* table = &tables.emplace_back();
  table->name = device->kernels().name;
  table->real = &device->kernels();
#define MAMBA_KERNEL(function, Args) table->function = run_open<Args, &Kernels::function>;
#include "kernels/kernels.def"
#undef MAMBA_KERNEL
  device->set_kernels(*table);
  device->set_memory(std::make_shared<LockedMemory>());
  return device;
}

}  // namespace mamba::test
