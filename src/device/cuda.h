// SPDX-License-Identifier: Apache-2.0
// What Device needs of CUDA: cuda.cpp, or cuda_absent.cpp in a build without it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device/device_memory.h"
#include "device/stream.h"
#include "kernels/choices.h"
#include "kernels/kernels.h"

namespace mamba::cuda {

// How many devices there are; where none, `why_none` says what is missing.
struct Inventory {
  int count = 0;
  std::string why_none;
};
Inventory inventory();

// The stream, scratch and memory of one device.
class Connection {
 public:
  virtual ~Connection() = default;
  virtual DeviceMemory& memory() = 0;
  virtual std::string hardware() const = 0;
  virtual Card card() const = 0;
  // Seconds that the device takes for what `body` enqueues.
  virtual double time(const std::function<void()>& body) = 0;
  // See Device::replay.
  virtual void replay(std::vector<uint64_t> key, const std::function<void()>& body) = 0;
  // Takes back what connect() gave to the Stream; the memory stays for what was allocated there.
  virtual void detach() noexcept = 0;
};
// Connects `stream` to device `index` of the inventory. `name` is what errors call it. Throws
// device where it is too old or does not start.
std::shared_ptr<Connection> connect(int index, const std::string& name, Stream& stream);
// Only where connect() succeeded.
const Kernels& kernels();

// Makes host memory readable and writable by all devices at the same addresses, until the end of
// the process: for tests. False where there is no device or the system refuses.
bool share_host_memory(void* data, int64_t bytes);

}  // namespace mamba::cuda
