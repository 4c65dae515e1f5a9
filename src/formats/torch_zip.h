// SPDX-License-Identifier: Apache-2.0
// pytorch_model.bin as torch.save writes it since 1.6: a zip of data.pkl (see pickle.h) and one
// member for each storage. Reading trusts nothing and executes nothing; stored members are used
// where they lie in the mapped file, deflated ones are unpacked.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "formats/tensor_table.h"

namespace mamba {

struct PickledTensor;

// One file. Tensors that are no plain row-major run of their storage are copied into one. Throws
// bad_file (malformed, with the member) or unsupported (names, opcodes and compression that such a
// file has no need of; files of torch before 1.6; TorchScript).
class TorchFile : public TensorTable {
 public:
  explicit TorchFile(const std::string& path);
  // From memory that outlives this object; `where` stands for the path in messages.
  TorchFile(const void* bytes, size_t count, const std::string& where);
  void release(const TensorInfo& tensor) const override;

 private:
  void parse(const uint8_t* bytes, size_t count);
  void add(const PickledTensor& tensor, const uint8_t* storage);
  std::unique_ptr<MappedFile> file_;
  std::vector<std::unique_ptr<uint8_t[]>> owned_;  // unpacked storages and copied tensors
};

// True if the file at `path` starts like a zip.
bool is_zip_file(const std::string& path);

// Writes such a file, atomically: uncompressed, every storage at a multiple of 64 bytes, the same
// bytes for the same tensors. `aliases` are further names (new -> existing) of tensors, which share
// their storage, as a tied head does. `folder` is that within the zip (torch takes the file's
// stem). Sizes and offsets from `zip64_from` on take zip64 records.
void write_torch_file(const std::string& path, const std::string& folder,
                      const std::vector<TensorData>& tensors,
                      const std::map<std::string, std::string>& aliases = {},
                      int64_t zip64_from = 0xffffffff);

}  // namespace mamba
