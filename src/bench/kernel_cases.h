// SPDX-License-Identifier: Apache-2.0
// One benchmark case for each kernel: sample shapes, buffers with random values, and what a call
// costs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "device/arena.h"
#include "kernels/kernels.h"

namespace mamba {

// Sizes by name, e.g. {"B", 8}, {"L", 256}. A size of 0 in a sample shape is a switch, 0 or 1; the
// one named "type" is a DType of blocks.
class Shape {
 public:
  Shape(std::initializer_list<std::pair<std::string, int64_t>> sizes) : sizes_(sizes) {}
  int64_t operator[](const std::string& name) const;
  // Throws invalid_argument for a name that the kernel does not have, or a value out of range.
  void set(const std::string& name, int64_t value);
  const std::vector<std::pair<std::string, int64_t>>& sizes() const { return sizes_; }
  // Of the size "type" by its name, e.g. "q4_k". Throws as set() does.
  void set_type(const std::string& name);
  // Which multiply-adds do the work: "int8" of blocks, "bf16", "f32".
  std::string multiplies() const;
  // "B=8 L=256", "M=1 type=q4_k"
  std::string text() const;

 private:
  std::vector<std::pair<std::string, int64_t>> sizes_;
};

// A kernel with its buffers. What a call reads counts once in cost.bytes, what it writes once, what
// it updates twice.
class KernelCase {
 public:
  // Buffers lie in `memory`, which must outlive the case.
  explicit KernelCase(const Shape& sizes, DeviceMemory& memory = host_memory())
      : shape(sizes), memory_(memory) {}

  // An input of random values in [low, high).
  CBuf in(int64_t count, double low = -1, double high = 1);
  // i32 ids in [0, high).
  CBuf ids(int64_t count, int64_t high);
  // An output, overwritten.
  Buf out(int64_t count, DType dtype = DType::kF32);
  // Room for what a call computes on its way: neither a cost nor a result.
  Buf room(int64_t count);
  // Updated in place; reset() gives it its first values again.
  Buf inout(int64_t count, double low = -1, double high = 1);

  void reset();
  // All outputs as numbers.
  std::vector<std::vector<double>> results() const;

  Shape shape;
  Cost cost;
  int64_t terms = 1;  // of the longest chain of sums: what rounding errors grow with
  std::function<void(const Kernels&, Stream&)> prepare, run,
      finish;  // prepare, finish may be empty

 private:
  struct Tensor {
    AlignedBlock block;
    DType dtype;
    int64_t count;
    bool output;
    std::vector<float> first;  // values before a call, if it updates them
  };
  Tensor& add(DType dtype, int64_t count, bool output);
  std::vector<float> random(int64_t count, double low, double high);
  DeviceMemory& memory_;
  std::vector<Tensor> tensors_;
  uint64_t streams_ = 0;
};

// Makes the case run a kernel on its filled arguments.
template <class Args>
void run_with(KernelCase& c, void (*Kernels::*kernel)(Stream&, const Args&) noexcept,
              const Args& args) {
  c.run = [kernel, args](const Kernels& k, Stream& s) { (k.*kernel)(s, args); };
}

struct KernelEntry {
  const char* name;  // as in kernels.def
  Shape sample;
  void (*build)(KernelCase&);
};

// Every kernel of kernels.def but those that only prepare weights.
const std::vector<KernelEntry>& kernel_entries();

// The parts of the list.
std::vector<KernelEntry> dense_kernel_entries();
std::vector<KernelEntry> quant_kernel_entries();
std::vector<KernelEntry> sequence_kernel_entries();

}  // namespace mamba
