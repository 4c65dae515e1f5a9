// SPDX-License-Identifier: Apache-2.0
// Finding the files of weights of a folder, and the indices of shards.
#include "formats/weight_files.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/check.h"
#include "base/json.h"
#include "formats/gguf_model.h"
#include "formats/mamba_c_file.h"
#include "formats/safetensors.h"
#include "formats/torch_zip.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxIndex = 100'000'000;
constexpr const char* kSafetensorsEnding = ".safetensors";
constexpr const char* kTorchEnding = ".bin";
constexpr const char* kIndexEnding = ".index.json";

// What a folder may have, in the order of preference.
struct Candidate {
  const char* name;
  const char* ending;
};
constexpr Candidate kCandidates[] = {{"model.safetensors", kSafetensorsEnding},
                                     {"pytorch_model.bin", kTorchEnding}};

}  // namespace

WeightFiles::WeightFiles(const std::string& path) {
  where_ = path;
  open(path);
  rename_embedding();
}

void WeightFiles::open(const std::string& path) {
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored)) return open_file(path);
  for (const Candidate& candidate : kCandidates) {
    const std::string single = (fs::path(path) / candidate.name).string();
    const std::string index = single + kIndexEnding;
    if (fs::exists(single, ignored)) return open_file(single);
    if (fs::exists(index, ignored)) return read_index(path, index, candidate.ending);
  }
  fail(ErrorCode::kBadFile,
       "[{}] expected model.safetensors or pytorch_model.bin, or the .index.json of their shards, "
       "found none of them; name a model folder or a file of weights",
       path);
}

void WeightFiles::open_file(const std::string& path) {
  files_ = {path};
  if (is_gguf_file(path)) {
    auto model = std::make_unique<GgufModel>(path);
    files_ = model->file().paths();
    shards_.push_back(std::move(model));
  } else if (is_mamba_c_file(path)) {
    shards_.push_back(std::make_unique<MambaCFile>(path));
  } else if (path.ends_with(kTorchEnding) || is_zip_file(path)) {
    shards_.push_back(std::make_unique<TorchFile>(path));
  } else {
    shards_.push_back(std::make_unique<SafetensorsFile>(path));
  }
  tensors_ = shards_[0]->tensors();
  metadata_ = shards_[0]->metadata();
  where_ = path;
}

void WeightFiles::release(const TensorInfo& tensor) const {
  for (const std::unique_ptr<TensorTable>& shard : shards_) shard->release(tensor);
}

// All shards are of one form.
std::string WeightFiles::name_in_file(const std::string& name) const {
  return shards_.empty() ? name : shards_[0]->name_in_file(name);
}

std::vector<int64_t> WeightFiles::shape_in_file(const std::string& name,
                                                const std::vector<int64_t>& shape) const {
  return shards_.empty() ? shape : shards_[0]->shape_in_file(name, shape);
}

const char* WeightFiles::config_name() const {
  return shards_.empty() ? TensorTable::config_name() : shards_[0]->config_name();
}

void WeightFiles::rename_embedding() {
  constexpr const char* kTransformers = "backbone.embeddings.weight";
  constexpr const char* kStateSpaces = "backbone.embedding.weight";
  if (find(kTransformers) != nullptr) return;
  for (TensorInfo& tensor : tensors_) {
    if (tensor.name != kStateSpaces) continue;
    tensor.name = kTransformers;
    state_spaces_names_ = true;
  }
  sort();
}

bool has_weights(const std::string& folder) {
  if (is_gguf_file(folder) || is_mamba_c_file(folder)) return true;
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) return false;
  return std::any_of(std::begin(kCandidates), std::end(kCandidates), [&](const Candidate& c) {
    const std::string single = (fs::path(folder) / c.name).string();
    return fs::exists(single, ignored) || fs::exists(single + kIndexEnding, ignored);
  });
}

void WeightFiles::read_index(const std::string& folder, const std::string& index_path,
                             const std::string& ending) {
  const Json index = read_json_file(index_path, {kMaxIndex, 8});
  const Json& weight_map = get_member(index, "weight_map", index_path);
  if (!weight_map.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected weight_map to be an object, got {}; correct the index",
         index_path, printable_json(weight_map));
  }
  std::map<std::string, std::string> owner;  // tensor -> file
  std::map<std::string, bool> names;         // files
  for (const auto& [tensor, file] : weight_map.items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    // A plain name: the index must not reach outside of its folder.
    if (name.find('/') != std::string::npos || name.find('\\') != std::string::npos ||
        name.find('\0') != std::string::npos || !name.ends_with(ending) || name.starts_with(".")) {
      fail(ErrorCode::kBadFile,
           "[{}] expected the file of tensor \"{}\" as a plain name ending in {}, got {}; "
           "correct the index",
           index_path, printable(tensor, 200), ending, printable_json(file));
    }
    owner[tensor] = name;
    names[name] = true;
  }
  for (const auto& [name, unused] : names) {
    const std::string path = (fs::path(folder) / name).string();
    if (!fs::exists(path)) {
      fail(ErrorCode::kBadFile,
           "[{}] expected the shard {}, which {} lists; found no such file; fetch it", folder, name,
           index_path);
    }
    files_.push_back(path);
    if (ending == kTorchEnding) {
      shards_.push_back(std::make_unique<TorchFile>(path));
    } else {
      shards_.push_back(std::make_unique<SafetensorsFile>(path));
    }
    for (const TensorInfo& tensor : shards_.back()->tensors()) {
      const auto found = owner.find(tensor.name);
      if (found == owner.end() || found->second != name) {
        fail(ErrorCode::kBadFile,
             "[{}] expected tensor \"{}\" {} as {} says, found it in {}; the shards do not belong "
             "together",
             folder, printable(tensor.name, 200),
             found == owner.end() ? "nowhere" : "only in " + found->second, index_path, name);
      }
      tensors_.push_back(tensor);
    }
    metadata_.insert(shards_.back()->metadata().begin(), shards_.back()->metadata().end());
  }
  sort();
  for (const auto& [tensor, name] : owner) {
    if (find(tensor) == nullptr) {
      fail(ErrorCode::kBadFile,
           "[{}] expected tensor \"{}\" in the shard {} as {} says, found none there; fetch the "
           "shards "
           "again",
           folder, printable(tensor, 200), name, index_path);
    }
  }
}

}  // namespace mamba
