// SPDX-License-Identifier: Apache-2.0
// Mamba models in GGUF files as llama.cpp has them (architectures "mamba" and "mamba2"): what their
// metadata and tensors mean, and how ours are written so.
#pragma once

#include <string>
#include <vector>

#include "formats/gguf.h"
#include "mamba/config.h"

namespace mamba {

// The tensors under their transformers names and shapes. Blocks stay as they are in the mapped
// file; A_log is recomputed from A = -exp(A_log) as ln(-A), rounded once. Throws bad_file or
// unsupported.
class GgufModel : public TensorTable {
 public:
  explicit GgufModel(const std::string& path);
  // From memory that outlives this object; `where` stands for the path in messages.
  GgufModel(const void* bytes, size_t count, const std::string& where);
  void release(const TensorInfo& tensor) const override { file_.release(tensor); }
  std::string name_in_file(const std::string& name) const override;
  std::vector<int64_t> shape_in_file(const std::string& name,
                                     const std::vector<int64_t>& shape) const override;
  const char* config_name() const override;
  const Config& config() const { return config_; }
  const GgufFile& file() const { return file_; }

 private:
  void build();
  void add(TensorInfo tensor);
  GgufFile file_;
  Config config_;
  std::vector<std::vector<float>> A_log_;
};

// The configuration that the metadata and the shapes of tensors say.
Config read_gguf_config(const GgufFile& file);

// The metadata of a model without its tokenizer: the keys that llama.cpp reads, and under
// "mamba_cpp.config" the whole configuration as config.json. Throws unsupported naming what these
// architectures cannot express and the model's function depends on.
GgufMetadata gguf_config_metadata(const Config& config);

// The name in GGUF files of a tensor that transformers calls `name`; "" if there is none.
std::string gguf_name(const std::string& name);

// A tensor's name and shape in GGUF files. `name` is that of transformers.
struct GgufPlace {
  std::string name;
  std::vector<int64_t> shape;
  bool is_A = false;  // the file has -exp of the values
};
GgufPlace gguf_place(const Config& config, const std::string& name,
                     const std::vector<int64_t>& shape);

}  // namespace mamba
