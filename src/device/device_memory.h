// SPDX-License-Identifier: Apache-2.0
// The memory that a device computes in. On the CPU it is main memory; on a GPU the host must not
// read it, and everything but allocate and copy_out is enqueued behind the kernels of the stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/buf.h"

namespace mamba {

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  // True where host code may read and write what allocate() gives.
  virtual bool on_host() const = 0;
  // `bytes` zeroed bytes, aligned to 64 or more; null for 0. Throws out_of_memory that says what
  // they were for, how much was asked and is free, and what to lower.
  virtual void* allocate(int64_t bytes, const char* purpose) = 0;
  // What allocate() gave, or null. Waits for the kernels that use it.
  virtual void release(void* data) noexcept = 0;
  // Bytes that allocate() could still give, about; of main memory all that there are.
  virtual double free_bytes() const = 0;

  // Host to device; `from` may be changed as soon as this returns.
  virtual void copy_in(void* to, const void* from, int64_t bytes) = 0;
  // Device to host, once everything enqueued before is done; `to` is filled when this returns.
  virtual void copy_out(void* to, const void* from, int64_t bytes) = 0;
  // Device to device: rows of row_bytes, `to_step` and `from_step` bytes apart (0: the same row
  // again); no overlap.
  virtual void copy_rows(void* to, int64_t to_step, const void* from, int64_t from_step,
                         int64_t row_bytes, int64_t rows) = 0;
  void copy(void* to, const void* from, int64_t bytes) {
    copy_rows(to, bytes, from, bytes, bytes, 1);
  }
  virtual void zero(void* data, int64_t bytes) = 0;
  // Returns when everything enqueued so far is done.
  virtual void wait() = 0;
};

// Throws out_of_memory unless `bytes` fit into main memory or what is free of a device's. where: a
// flag or a command; what: what needs them; advice: what to change.
void expect_memory(const DeviceMemory& memory, double bytes, const std::string& where,
                   const std::string& what, const std::string& advice);

// Main memory, for every device that is a CPU; has no state.
DeviceMemory& host_memory();

// `count` elements of device memory for the host: that memory itself on a CPU, a copy on a GPU.
// kRead fills the copy, else it is zero; write_back() puts it into the device's memory.
class HostView {
 public:
  enum class Use : uint8_t { kRead, kWrite };
  HostView(DeviceMemory& memory, CBuf data, int64_t count, Use use = Use::kRead);
  template <class T>
  T* as() const {
    return buf_.as<T>();
  }
  Buf buf() const { return buf_; }
  void write_back();

 private:
  DeviceMemory& memory_;
  void* device_;
  int64_t bytes_;
  std::unique_ptr<std::byte[]> copy_;
  Buf buf_;
};

}  // namespace mamba
