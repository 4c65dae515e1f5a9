// SPDX-License-Identifier: Apache-2.0
// The safetensors format: reading one file, writing one or a folder of shards with an index.
// Reading trusts nothing; writing gives the bytes that the reference implementation gives. What
// reads model folders of any form is WeightFiles.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "formats/tensor_table.h"

namespace mamba {

// One file. Throws bad_file (malformed, with the tensor and the byte) or unsupported (a dtype that
// this engine does not compute with).
class SafetensorsFile : public TensorTable {
 public:
  explicit SafetensorsFile(const std::string& path);
  // From memory that outlives this object; `where` stands for the path in messages.
  SafetensorsFile(const void* bytes, size_t count, const std::string& where);
  void release(const TensorInfo& tensor) const override;

 private:
  void parse(const uint8_t* bytes, size_t count);
  std::unique_ptr<MappedFile> file_;
};

using TensorMetadata = std::map<std::string, std::string>;

// One file, atomically. The order is canonical (larger dtypes first, then by name) whatever the
// order of `tensors`; names must differ. The first tensor begins at a multiple of `alignment`;
// mode as in AtomicFile.
void write_safetensors(const std::string& path, const std::vector<TensorData>& tensors,
                       const TensorMetadata& metadata = {}, int64_t alignment = 8,
                       unsigned mode = 0666);

// The bytes of such a file.
std::string safetensors_bytes(const std::vector<TensorData>& tensors,
                              const TensorMetadata& metadata = {});

// model.safetensors in `folder`, or, if that would hold more than max_shard_bytes of tensors,
// model-00001-of-0000n.safetensors and an index (a single larger tensor gets a shard of its own).
// Every file is written atomically, the index last; files of the other form are removed at the end.
void write_sharded_safetensors(const std::string& folder, const std::vector<TensorData>& tensors,
                               const TensorMetadata& metadata, int64_t max_shard_bytes);

}  // namespace mamba
