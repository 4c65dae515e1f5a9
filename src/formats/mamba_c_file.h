// SPDX-License-Identifier: Apache-2.0
// model.bin of kroggen/mamba.c, read: a header of 256 bytes and all tensors of a Mamba-1 model in
// f32, grouped by kind. Configuration and weights come from the one file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "formats/tensor_table.h"
#include "mamba/config.h"

namespace mamba {

// The tensors under the transformers names. The file holds A = -exp(A_log), so A_log is recomputed
// as ln(-A), rounded once; the rest lies in the mapped file. Throws bad_file or
// unsupported.
class MambaCFile : public TensorTable {
 public:
  explicit MambaCFile(const std::string& path);
  // From memory that outlives this object; `where` stands for the path in messages.
  MambaCFile(const void* bytes, size_t count, const std::string& where);
  void release(const TensorInfo& tensor) const override;
  const Config& config() const { return config_; }

 private:
  void parse(const uint8_t* bytes, size_t count);
  void read_header(const uint8_t* bytes, size_t count);
  std::unique_ptr<MappedFile> file_;
  Config config_;
  std::vector<float> A_log_;  // of all layers (n_layer, d_inner, d_state)
};

// True if a readable file at `path` starts like one.
bool is_mamba_c_file(const std::string& path);

}  // namespace mamba
