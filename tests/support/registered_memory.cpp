// SPDX-License-Identifier: Apache-2.0
// Memory that the GPUs of the machine see at the host's addresses, for the tests of kernels, which
// keep their inputs in std::vector. operator new takes from one region that is registered with
// CUDA; without a GPU, when the region is full and before it exists, from malloc.
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

#include "device/cuda.h"

namespace {

constexpr size_t kRegion = size_t{1} << 31;  // bytes
constexpr int kSmallest = 6, kClasses = 31;  // blocks of 2^6 to 2^30 bytes

// Blocks of powers of two, taken from the front of the region and kept by size when given back.
struct Region {
  char* begin = nullptr;
  size_t used = 0;
  void* free[kClasses] = {};
  std::mutex mutex;

  void* take(size_t bytes) {
    const int size = std::max(kSmallest, static_cast<int>(std::bit_width(bytes - 1)));
    if (size >= kClasses) return nullptr;
    const std::lock_guard lock(mutex);
    if (void* block = free[size]) {
      free[size] = *static_cast<void**>(block);
      return block;
    }
    if ((size_t{1} << size) > kRegion - used) return nullptr;
    void* block = begin + used;
    used += size_t{1} << size;
    return block;
  }
  void give(void* block, int size) {
    const std::lock_guard lock(mutex);
    *static_cast<void**>(block) = free[size];
    free[size] = block;
  }
};

// Never destroyed: memory is given back until the very end.
Region* region = nullptr;
// Size class of every smallest block of the region, for what is given back.
uint8_t* classes = nullptr;

bool in_region(const void* p) {
  return region != nullptr && p >= region->begin && p < region->begin + kRegion;
}
size_t place(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - region->begin) >> kSmallest;
}

void* take_or_null(size_t bytes) noexcept {
  bytes = std::max(bytes, size_t{1});
  if (region != nullptr) {
    if (void* block = region->take(bytes)) {
      classes[place(block)] =
          static_cast<uint8_t>(std::max(kSmallest, static_cast<int>(std::bit_width(bytes - 1))));
      return block;
    }
  }
  return std::malloc(bytes);
}
void* take(size_t bytes) {
  void* block = take_or_null(bytes);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void give(void* block) noexcept {
  if (in_region(block)) {
    region->give(block, classes[place(block)]);
  } else {
    std::free(block);
  }
}

void* map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

// Before main, and so before any test.
[[maybe_unused]] const bool registered = [] {
  if (mamba::cuda::inventory().count == 0) return false;
  void* memory = map(kRegion);
  void* sizes = map(kRegion >> kSmallest);
  void* self = map(sizeof(Region));
  if (memory == nullptr || sizes == nullptr || self == nullptr ||
      !mamba::cuda::share_host_memory(memory, kRegion)) {
    return false;
  }
  classes = static_cast<uint8_t*>(sizes);
  auto* made = new (self) Region;
  made->begin = static_cast<char*>(memory);
  region = made;
  return true;
}();

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return take_or_null(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return take_or_null(bytes); }
void operator delete(void* p) noexcept { give(p); }
void operator delete[](void* p) noexcept { give(p); }
void operator delete(void* p, size_t) noexcept { give(p); }
void operator delete[](void* p, size_t) noexcept { give(p); }
