// SPDX-License-Identifier: Apache-2.0
// Tensors by name, as every format of weight files gives them and takes them: a table of what open
// files hold, conversion of elements, and tensors to write.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "mamba/dtype.h"

namespace mamba {

// A tensor in an open file. BOOL is given as kU8.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data =
      nullptr;  // row-major, little endian, NOT necessarily aligned; null if bytes is 0
  int64_t bytes = 0;

  int64_t count() const { return bytes / block_bytes(dtype) * block_elements(dtype); }
};

// "[2, 3]", as messages show shapes.
std::string shape_text(const std::vector<int64_t>& shape);

// Element by element, from F32, BF16, F16, F64 (rounded) or blocks; unsupported for integers.
// out: count().
void read_to_f32(const TensorInfo& tensor, float* out);
// The elements [begin, begin + count) of it; of blocks, whole ones.
void read_to_f32(const TensorInfo& tensor, int64_t begin, int64_t count, float* out);
// Rounds to the nearest (ties to even) F32, BF16 or F16 at `out`, of any alignment. False if a
// finite value became infinite.
bool write_from_f32(const float* values, int64_t count, DType dtype, void* out);
// From I64, I32 or U8; unsupported for others.
std::vector<int64_t> read_to_i64(const TensorInfo& tensor);

// Tensors by name, over one or more files that stay mapped as long as this lives.
class TensorTable {
 public:
  virtual ~TensorTable() = default;
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // sorted by name
  const TensorInfo* find(std::string_view name) const;                 // null if absent
  // Throws bad_file with the nearest names if absent.
  const TensorInfo& get(std::string_view name) const;
  // Throws bad_file unless the tensor is there and has this shape.
  const TensorInfo& get(std::string_view name, const std::vector<int64_t>& shape) const;
  // The tensor's memory is not needed for now: reading it again takes it from the file.
  virtual void release(const TensorInfo&) const {}
  // What messages call a tensor, its shape as it is stored, and where the configuration stands.
  virtual std::string name_in_file(const std::string& name) const { return name; }
  virtual std::vector<int64_t> shape_in_file(const std::string& /*name*/,
                                             const std::vector<int64_t>& shape) const {
    return shape;
  }
  virtual const char* config_name() const { return "config.json"; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& where() const { return where_; }  // the path, for messages

 protected:
  void sort();  // by name
  std::string where_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

// A tensor to write, row-major: from memory, or, where `data` is null, in blocks from `fill`, which
// puts the elements [begin, begin + count) at `out`.
struct TensorData {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  std::function<void(int64_t begin, int64_t count, void* out)> fill = nullptr;
};

// Throws internal if the product overflows.
int64_t count_elements(const TensorData& tensor);
int64_t count_bytes(const TensorData& tensor);
// The tensor's bytes in order, a few MiB at a time where `fill` makes them.
void for_each_block(const TensorData& tensor,
                    const std::function<void(const void* bytes, size_t count)>& sink);

}  // namespace mamba
