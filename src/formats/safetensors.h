// SPDX-License-Identifier: Apache-2.0
// The safetensors format, read and written: one file, or a folder of shards with an index. Reading
// trusts nothing; writing gives the bytes that the reference implementation gives.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
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

  int64_t count() const { return bytes / dtype_size(dtype); }
};

// "[2, 3]", as messages show shapes.
std::string shape_text(const std::vector<int64_t>& shape);

// Element by element, from F32, BF16, F16 or F64 (rounded); unsupported for integers. out: count().
void read_to_f32(const TensorInfo& tensor, float* out);
// From I64, I32 or U8; unsupported for others.
std::vector<int64_t> read_to_i64(const TensorInfo& tensor);

// Tensors by name, over one or more files that stay mapped as long as this lives.
class TensorTable {
 public:
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // sorted by name
  const TensorInfo* find(std::string_view name) const;                 // null if absent
  // Throws bad_file with the nearest names if absent.
  const TensorInfo& get(std::string_view name) const;
  // Throws bad_file unless the tensor is there and has this shape.
  const TensorInfo& get(std::string_view name, const std::vector<int64_t>& shape) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& where() const { return where_; }  // the path, for messages

 protected:
  std::string where_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

// One file. Throws bad_file (malformed, with the tensor and the byte) or unsupported (a dtype that
// this engine does not compute with).
class SafetensorsFile : public TensorTable {
 public:
  explicit SafetensorsFile(const std::string& path);
  // From memory that outlives this object; `where` stands for the path in messages.
  SafetensorsFile(const void* bytes, size_t count, const std::string& where);

 private:
  void parse(const uint8_t* bytes, size_t count);
  std::unique_ptr<MappedFile> file_;
};

// A model folder: model.safetensors, or model.safetensors.index.json and its shards. A path of a
// file is taken as that one file.
class ShardedSafetensors : public TensorTable {
 public:
  explicit ShardedSafetensors(const std::string& folder);
  const std::vector<std::string>& files() const { return files_; }  // paths, in order of name

 private:
  void read_index(const std::string& folder, const std::string& index_path);
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::vector<std::string> files_;
};

// A tensor to write: `data` is row-major and holds the product of `shape` elements.
struct TensorData {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

using TensorMetadata = std::map<std::string, std::string>;

// One file, atomically. The order is canonical (larger dtypes first, then by name) whatever the
// order of `tensors`; names must differ.
void write_safetensors(const std::string& path, const std::vector<TensorData>& tensors,
                       const TensorMetadata& metadata = {});

// model.safetensors in `folder`, or, if that would hold more than max_shard_bytes of tensors,
// model-00001-of-0000n.safetensors and an index (a single larger tensor gets a shard of its own).
// Every file is written atomically, the index last; files of the other form are removed at the end.
void write_sharded_safetensors(const std::string& folder, const std::vector<TensorData>& tensors,
                               const TensorMetadata& metadata, int64_t max_shard_bytes);

}  // namespace mamba
