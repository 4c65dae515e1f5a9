// SPDX-License-Identifier: Apache-2.0
// The weights of a model, whatever the form of their files: safetensors or torch, single or
// sharded, GGUF or mamba.c's model.bin; under the tensor names of transformers in every case.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "formats/tensor_table.h"

namespace mamba {

class WeightFiles : public TensorTable {
 public:
  // A model folder, in which the first of these is taken: model.safetensors,
  // model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json. Or a path of one
  // file of weights. Throws bad_file or unsupported.
  explicit WeightFiles(const std::string& path);
  const std::vector<std::string>& files() const { return files_; }  // paths, in order of name
  void release(const TensorInfo& tensor) const override;
  std::string name_in_file(const std::string& name) const override;
  std::vector<int64_t> shape_in_file(const std::string& name,
                                     const std::vector<int64_t>& shape) const override;
  const char* config_name() const override;
  // True if the files have the names of the state-spaces package ("backbone.embedding.weight").
  bool has_state_spaces_names() const { return state_spaces_names_; }

 private:
  void open(const std::string& path);
  void open_file(const std::string& path);
  void read_index(const std::string& folder, const std::string& index_path,
                  const std::string& ending);
  void rename_embedding();
  std::vector<std::unique_ptr<TensorTable>> shards_;
  std::vector<std::string> files_;
  bool state_spaces_names_ = false;
};

// True if there is one of the files that WeightFiles takes in a folder, or for a GGUF file or
// model.bin of mamba.c.
bool has_weights(const std::string& folder);

}  // namespace mamba
