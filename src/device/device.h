// SPDX-License-Identifier: Apache-2.0
// A Device owns a table of kernels, a stream with its threads and scratch, and says what it runs
// on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device/cuda.h"
#include "device/device_memory.h"
#include "device/pool.h"
#include "device/stream.h"
#include "kernels/choices.h"
#include "kernels/kernels.h"
#include "mamba/dtype.h"

namespace mamba {

struct DeviceOptions {
  // "cpu" (the best for this CPU), "cpu:base", "cpu:avx2", "cpu:avx512", "cpu:avx512_bf16",
  // "cpu:onednn" (the best ISA, bf16 products by oneDNN; "cpu" means this one where there is AMX),
  // "ref" (scalar reference in f32) or "ref64" (in f64); "cuda" (the first NVIDIA GPU), "cuda:N".
  std::string name = "cpu";
  int threads = 0;  // 0: one per physical core that this process may use
  // "auto" takes the kernel that a measured table names, "reference" the general ones alone,
  // "fused" one kernel for as much as there is one for.
  std::string backend = "auto";
  // Where the file that tune has written for this card may be; "": no such file.
  std::string choices_folder = {};
  // Told why a file there is not used.
  std::function<void(const std::string&)> on_warning = {};
};

class Device {
 public:
  // Throws invalid_argument for an unknown name or a backend that the device has not, device for an
  // ISA that this CPU lacks or a GPU that is not there.
  static std::unique_ptr<Device> create(const DeviceOptions& options = {});
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Kernels& kernels() const { return *kernels_; }
  // Another table, which must outlive the device: to watch what is called (model/activations.h).
  void set_kernels(const Kernels& kernels) { kernels_ = &kernels; }
  Stream& stream() { return stream_; }
  Pool& pool() { return pool_; }
  // Where the buffers of kernels lie.
  DeviceMemory& memory() const { return *memory_; }
  // The same, for what may outlive the device; null: main memory.
  std::shared_ptr<DeviceMemory> shared_memory() const { return shared_memory_; }
  // Memory that the host must not touch, for kernels that can: to test that it does not.
  void set_memory(std::shared_ptr<DeviceMemory> memory);
  // Type of parameters, states, statistics and the residual stream on this device: f32, or f64 on
  // "ref64".
  DType real() const { return real_; }
  // Type of activations between kernels: bf16 where the products are and the kernels take it, else
  // real().
  DType activation(Product product) const {
    return bf16_activations_ && product == Product::kBF16 ? DType::kBF16 : real_;
  }
  // Whether the kernels take bf16 activations: those of GPUs do.
  void set_bf16_activations(bool take) { bf16_activations_ = take; }
  const std::string& name() const { return name_; }  // "cpu:avx512", "ref64", ...
  int threads() const { return stream_.threads; }
  // Threads for work on the host beside the kernels; of a GPU those of the physical cores.
  int host_threads() const;
  // Seconds that the device takes for what `body` enqueues.
  double time(const std::function<void()>& body);
  // Enqueues what `body` enqueues. On a GPU a call with the key of an earlier one may replay what
  // that enqueued, as one graph: the key must tell every buffer and size, and `body` must neither
  // copy to or from the host nor allocate.
  void replay(const std::vector<uint64_t>& key, const std::function<void()>& body);
  // Waits for everything enqueued and throws what the stream has recorded since the last call:
  // out_of_memory or device, kernel named.
  void sync();

  // Of the CPU, or of the GPU.
  std::string hardware() const;
  const Card& card() const { return card_; }
  // Which kernels run where there are several.
  Choices& choices() { return choices_; }
  // The file of tune that they come from, or "".
  const std::string& choices_file() const { return choices_file_; }

  // Names that create() accepts on this machine, best first.
  static std::vector<std::string> available();

 private:
  Device() = default;
  static std::unique_ptr<Device> create_cuda(const std::string& name);
  void set_choices(const DeviceOptions& options);
  void expect_not_refused();
  const Kernels* kernels_ = nullptr;
  Stream stream_;
  Pool pool_;
  DType real_ = DType::kF32;
  bool bf16_activations_ = false;
  std::string name_;
  Card card_;
  Choices choices_;
  std::vector<ChoiceRow> tuned_;
  std::string choices_file_;
  DeviceMemory* memory_ = &host_memory();
  std::shared_ptr<DeviceMemory> shared_memory_;
  std::shared_ptr<cuda::Connection> connection_;  // of a CUDA device
};

}  // namespace mamba
