// SPDX-License-Identifier: Apache-2.0
// CUDA devices: inventory, stream, scratch and memory. The runtime is linked statically and loads
// the driver itself, so that a program with this file runs where there is no driver.
#include "device/cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "device/cuda_graphs.h"
#include "kernels/matrix_library.h"

namespace mamba::cuda {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;
constexpr int kOldest = 8;  // major compute capability

// Bytes of a copy to the device that wait in page-locked memory, so that the host need not.
constexpr int64_t kStageBytes = 1 << 18;
constexpr int kStages = 8;

class CudaConnection : public Connection, public DeviceMemory {
 public:
  CudaConnection(int index, const std::string& name, Stream& stream)
      : index_(index), name_(name), stream_(&stream) {
    cudaDeviceProp properties;
    expect(cudaGetDeviceProperties(&properties, index), "looking at it");
    hardware_ = properties.name;
    card_ = {10 * properties.major + properties.minor, properties.multiProcessorCount};
    if (properties.major < kOldest) {
      fail(
          ErrorCode::kDevice,
          "[device {}] expected compute capability {}.0 or newer, got {}.{} ({}); use --device cpu",
          name, kOldest, properties.major, properties.minor, properties.name);
    }
    expect(cudaSetDevice(index), "selecting it");
    expect(cudaStreamCreateWithFlags(&cuda_, cudaStreamNonBlocking), "starting a stream");
    stream.cuda = cuda_;
    stream.overlaps = properties.major >= 9;
    stream.grow = grow;
    stream.take = take;
    stream.give = [](Stream&, void* data) { cudaFree(data); };  // waits for what uses it
    stream.products = open_matrix_library();
  }

  // Nothing can be done about errors here; a broken device gives its memory back by itself.
  ~CudaConnection() override {
    cudaSetDevice(index_);
    cudaStreamSynchronize(cuda_);
    for (cudaEvent_t event : staged_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (stage_ != nullptr) cudaFreeHost(stage_);
    if (cuda_ != nullptr) cudaStreamDestroy(cuda_);
  }

  void detach() noexcept override {
    cudaSetDevice(index_);
    cudaStreamSynchronize(cuda_);
    graphs_.clear();
    close_matrix_library(static_cast<MatrixLibrary*>(stream_->products));
    cudaFree(stream_->scratch_data);
    stream_->cuda = stream_->products = stream_->scratch_data = nullptr;
    stream_->scratch_bytes = 0;
    stream_ = nullptr;
  }

  std::string hardware() const override { return hardware_; }
  Card card() const override { return card_; }

  double time(const std::function<void()>& body) override {
    cudaEvent_t events[2];
    for (cudaEvent_t& event : events) expect(cudaEventCreate(&event), "timing");
    expect(cudaEventRecord(events[0], cuda_), "timing");
    body();
    expect(cudaEventRecord(events[1], cuda_), "timing");
    wait();
    float milliseconds = 0;
    expect(cudaEventElapsedTime(&milliseconds, events[0], events[1]), "timing");
    for (cudaEvent_t event : events) expect(cudaEventDestroy(event), "timing");
    return static_cast<double>(milliseconds) / 1e3;
  }

  // Graphs hold addresses of scratch memory, which grows.
  void replay(std::vector<uint64_t> key, const std::function<void()>& body) override {
    key.push_back(reinterpret_cast<uint64_t>(stream_->scratch_data));
    graphs_.run(*stream_, key, body);
  }

  DeviceMemory& memory() override { return *this; }
  bool on_host() const override { return false; }

  void* allocate(int64_t bytes, const char* purpose) override {
    if (bytes == 0) return nullptr;
    expect(cudaSetDevice(index_), "selecting it");
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      fail(ErrorCode::kOutOfMemory,
           "[device {}] expected {:.1f} MiB for {}, got {:.1f} MiB free; use a smaller batch or "
           "sequence length, or a smaller model",
           name_, static_cast<double>(bytes) / kMiB, purpose, free_bytes() / kMiB);
    }
    expect(error, "allocating memory");
    zero(data, bytes);
    return data;
  }
  void release(void* data) noexcept override { cudaFree(data); }
  double free_bytes() const override {
    size_t free = 0, total = 0;
    cudaSetDevice(index_);
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    return static_cast<double>(free);
  }

  void copy_in(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0 && stage_ == nullptr) make_stages();
    for (int64_t at = 0; at < bytes; at += kStageBytes) {
      const int64_t part = bytes - at < kStageBytes ? bytes - at : kStageBytes;
      const int slot = next_stage_++ % kStages;
      expect(cudaEventSynchronize(staged_[slot]), "copying to it");
      char* stage = static_cast<char*>(stage_) + slot * kStageBytes;
      std::memcpy(stage, static_cast<const char*>(from) + at, static_cast<size_t>(part));
      expect(cudaMemcpyAsync(static_cast<char*>(to) + at, stage, static_cast<size_t>(part),
                             cudaMemcpyHostToDevice, cuda_),
             "copying to it");
      expect(cudaEventRecord(staged_[slot], cuda_), "copying to it");
    }
  }
  // Through page-locked memory, in which short copies take half the time.
  void copy_out(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0 && stage_ == nullptr) make_stages();
    for (cudaEvent_t event : staged_) {
      if (bytes > 0) expect(cudaEventSynchronize(event), "copying from it");
    }
    for (int64_t at = 0; at < bytes; at += kStageBytes * kStages) {
      const auto part = static_cast<size_t>(std::min(kStageBytes * kStages, bytes - at));
      expect(cudaMemcpyAsync(stage_, static_cast<const char*>(from) + at, part,
                             cudaMemcpyDeviceToHost, cuda_),
             "copying from it");
      wait();
      std::memcpy(static_cast<char*>(to) + at, stage_, part);
    }
    wait();
  }
  void copy_rows(void* to, int64_t to_step, const void* from, int64_t from_step, int64_t row_bytes,
                 int64_t rows) override {
    if (row_bytes == 0 || rows == 0) return;
    const auto n = [](int64_t v) { return static_cast<size_t>(v); };
    if (rows == 1 || (to_step == row_bytes && from_step == row_bytes)) {
      expect(cudaMemcpyAsync(to, from, n(row_bytes * rows), cudaMemcpyDeviceToDevice, cuda_),
             "copying");
      return;
    }
    if (to_step < row_bytes || from_step < row_bytes) {  // the same row again
      for (int64_t r = 0; r < rows; ++r) {
        copy_rows(static_cast<char*>(to) + r * to_step, 0,
                  static_cast<const char*>(from) + r * from_step, 0, row_bytes, 1);
      }
      return;
    }
    expect(cudaMemcpy2DAsync(to, n(to_step), from, n(from_step), n(row_bytes), n(rows),
                             cudaMemcpyDeviceToDevice, cuda_),
           "copying rows");
  }
  void zero(void* data, int64_t bytes) override {
    if (bytes > 0) expect(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), cuda_), "zeroing");
  }
  void wait() override { expect(cudaStreamSynchronize(cuda_), "running kernels"); }

 private:
  void expect(cudaError_t error, const char* doing) const {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    fail(ErrorCode::kDevice, "[device {}] {} failed: {}", name_, doing, cudaGetErrorString(error));
  }

  void make_stages() {
    for (cudaEvent_t& event : staged_) {
      expect(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "preparing copies");
    }
    expect(cudaHostAlloc(&stage_, kStageBytes * kStages, cudaHostAllocDefault), "preparing copies");
  }

  static void* take(Stream&, int64_t bytes) {
    void* data = nullptr;
    if (cudaMalloc(&data, static_cast<size_t>(bytes > 0 ? bytes : 1)) == cudaSuccess) return data;
    cudaGetLastError();
    return nullptr;
  }

  static bool grow(Stream& stream, int64_t bytes) {
    // What runs still uses the old block: cudaFree waits for it.
    cudaFree(stream.scratch_data);
    stream.scratch_data = nullptr;
    stream.scratch_bytes = 0;
    const cudaError_t error = cudaMalloc(&stream.scratch_data, static_cast<size_t>(bytes));
    if (error == cudaSuccess) {
      stream.scratch_bytes = bytes;
      return true;
    }
    cudaGetLastError();
    stream.scratch_data = nullptr;
    if (stream.failed == nullptr) {
      stream.failed = "scratch memory of a kernel";
      stream.failed_why = cudaGetErrorString(error);
      if (error == cudaErrorMemoryAllocation) stream.failed_bytes = bytes;
    }
    return false;
  }

  int index_;
  std::string name_, hardware_;
  Card card_;
  Stream* stream_;  // null once detached
  GraphCache graphs_;
  cudaStream_t cuda_ = nullptr;
  void* stage_ = nullptr;
  cudaEvent_t staged_[kStages] = {};
  unsigned next_stage_ = 0;
};

}  // namespace

Inventory inventory() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return {count, ""};
  cudaGetLastError();
  // Without a driver the runtime says that the driver is too old.
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return {0, "this machine has no NVIDIA driver"};
  }
  return {0, std::string("this machine offers no CUDA device: ") + cudaGetErrorString(error)};
}

std::shared_ptr<Connection> connect(int index, const std::string& name, Stream& stream) {
  return std::make_shared<CudaConnection>(index, name, stream);
}

const Kernels& kernels() { return cuda_kernels(); }

bool share_host_memory(void* data, int64_t bytes) {
  if (inventory().count == 0) return false;
  return cudaHostRegister(data, static_cast<size_t>(bytes),
                          cudaHostRegisterPortable | cudaHostRegisterMapped) == cudaSuccess;
}

}  // namespace mamba::cuda
