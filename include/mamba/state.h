// SPDX-License-Identifier: Apache-2.0
// The recurrent state of a batch of sequences: a value that can be copied, forked, saved and
// compared.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mamba/dtype.h"

namespace mamba {

class DeviceMemory;

// One tensor of the state of one sequence.
struct StateTensor {
  std::string name;            // "layers.0.conv", "layers.0.ssm", ...
  std::vector<int64_t> shape;  // of one sequence
  int64_t offset;              // in elements from the start of the sequence's state
};

// Every sequence's state is one contiguous run of `elements()` numbers in f32 (bf16 where asked
// for, f64 on the f64 reference), so that copying, forking or saving one sequence is one copy. Made
// by Model::new_state. A bf16 state is rounded to nearest even after every call; half the bytes to
// move in each step, at the error that docs/numerics.md reports. It lies in the memory of its
// model's device, which it may outlive; read() and write() reach it anywhere.
class State {
 public:
  State();
  // memory: of a device; null: main memory. Zeroed.
  State(std::shared_ptr<const std::vector<StateTensor>> tensors, int64_t elements, DType dtype,
        int64_t batch, std::shared_ptr<DeviceMemory> memory = nullptr);
  State(const State& other);
  State(State&&) noexcept;
  State& operator=(const State& other);
  State& operator=(State&&) noexcept;
  ~State();

  int64_t batch() const { return batch_; }
  int64_t elements() const { return elements_; }  // of one sequence
  DType dtype() const { return dtype_; }
  int64_t bytes_per_sequence() const { return elements_ * dtype_size(dtype_); }
  const std::vector<StateTensor>& tensors() const { return *tensors_; }

  // Where a sequence's numbers lie: memory that the host may touch where on_host().
  void* sequence(int64_t row);
  const void* sequence(int64_t row) const;
  bool on_host() const;
  // bytes_per_sequence() bytes of row `row`, to and from main memory.
  void read(int64_t row, void* to) const;
  void write(int64_t row, const void* from);
  // The same in main memory.
  State to_host() const;

  // A state of one sequence: a copy of row `row`.
  State fork(int64_t row) const;
  // Overwrites row `row` with row `from_row` of `from`, which must come from the same model.
  void assign(int64_t row, const State& from, int64_t from_row);
  // The same sequences in f32 or bf16 (rounded to nearest even); throws invalid_argument for
  // others.
  State as(DType dtype) const;
  // The same layout and the same bits in every sequence.
  bool operator==(const State& other) const;
  // Largest absolute difference over all elements; infinity if layouts differ.
  double max_difference(const State& other) const;

 private:
  std::shared_ptr<const std::vector<StateTensor>> tensors_;
  int64_t elements_ = 0;
  DType dtype_ = DType::kF32;
  int64_t batch_ = 0;
  struct Storage;
  std::unique_ptr<Storage> storage_;  // null: no sequences
};

}  // namespace mamba
