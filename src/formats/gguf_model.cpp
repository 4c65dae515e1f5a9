// SPDX-License-Identifier: Apache-2.0
// Names and shapes of a model's tensors in GGUF files, both ways.
#include "formats/gguf_model.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

struct Name {
  const char* gguf;
  const char* ours;
};
constexpr Name kShell[] = {{"token_embd.weight", "backbone.embeddings.weight"},
                           {"output_norm.weight", "backbone.norm_f.weight"},
                           {"output.weight", "lm_head.weight"}};
// Behind "blk.N." and "backbone.layers.N.".
constexpr Name kLayer[] = {{"attn_norm.weight", "norm.weight"},
                           {"ssm_in.weight", "mixer.in_proj.weight"},
                           {"ssm_conv1d.weight", "mixer.conv1d.weight"},
                           {"ssm_conv1d.bias", "mixer.conv1d.bias"},
                           {"ssm_x.weight", "mixer.x_proj.weight"},
                           {"ssm_dt.weight", "mixer.dt_proj.weight"},
                           {"ssm_dt.bias", "mixer.dt_proj.bias"},
                           {"ssm_a", "mixer.A_log"},
                           {"ssm_d", "mixer.D"},
                           {"ssm_norm.weight", "mixer.norm.weight"},
                           {"ssm_out.weight", "mixer.out_proj.weight"}};
constexpr const char* kDtBias2 = "mixer.dt_bias";  // what Mamba-2 calls ssm_dt.bias
constexpr std::string_view kGgufLayer = "blk.", kOurLayer = "backbone.layers.";

// "12." and the rest of "12.rest"; empty if there is no number.
std::pair<std::string, std::string> split_number(std::string_view text) {
  size_t digits = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9') ++digits;
  if (digits == 0 || digits >= text.size() || text[digits] != '.') return {};
  return {std::string(text.substr(0, digits + 1)), std::string(text.substr(digits + 1))};
}

// The transformers name, or the name as it is for a tensor that these models do not have.
std::string our_name(const std::string& gguf, bool two) {
  for (const Name& name : kShell) {
    if (gguf == name.gguf) return name.ours;
  }
  if (!gguf.starts_with(kGgufLayer)) return gguf;
  const auto [number, rest] = split_number(std::string_view(gguf).substr(kGgufLayer.size()));
  for (const Name& name : kLayer) {
    if (rest != name.gguf) continue;
    const bool dt_bias = two && rest == "ssm_dt.bias";
    return std::string(kOurLayer) + number + (dt_bias ? kDtBias2 : name.ours);
  }
  return gguf;
}

// The shape that transformers has for what the file holds: dimensions of 1 moved or dropped.
std::vector<int64_t> our_shape(const std::string& name, const Config& c,
                               const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  const auto is = [&](const char* ending) { return name.ends_with(ending); };
  if (is(".mixer.conv1d.weight") && shape.size() == 2) return {shape[0], 1, shape[1]};
  if (c.mixer == "mamba2") {
    const bool one = shape.size() == 2 && shape[1] == 1;
    if ((is(".mixer.A_log") || is(".mixer.D")) && one) return {shape[0]};
    const bool groups = shape.size() == 2 && shape[0] == c.n_groups && count == c.d_inner;
    if (is(".mixer.norm.weight") && groups) return {count};
  }
  return shape;
}

}  // namespace

GgufModel::GgufModel(const std::string& path) : file_(path) { build(); }

GgufModel::GgufModel(const void* bytes, size_t count, const std::string& where)
    : file_(bytes, count, where) {
  build();
}

void GgufModel::build() {
  where_ = file_.where();
  config_ = read_gguf_config(file_);
  for (const TensorInfo& tensor : file_.tensors()) add(tensor);
  for (const auto& [key, value] : file_.values()) {
    if (value.type == GgufType::kString) metadata_[key] = value.text;
  }
  sort();
}

void GgufModel::add(TensorInfo tensor) {
  tensor.name = our_name(tensor.name, config_.mixer == "mamba2");
  tensor.shape = our_shape(tensor.name, config_, tensor.shape);
  if (tensor.name.ends_with(".mixer.A_log")) {
    std::vector<float>& values = A_log_.emplace_back(static_cast<size_t>(tensor.count()));
    read_to_f32(tensor, values.data());
    for (float& v : values) {
      if (!(v < 0) || std::isinf(v)) {
        fail(ErrorCode::kBadFile,
             "[{}] expected A of \"{}\" to be negative, got {} at element {}; the file is damaged",
             where_, printable(name_in_file(tensor.name), 200), v, &v - values.data());
      }
      v = static_cast<float>(std::log(-static_cast<double>(v)));
    }
    tensor.dtype = DType::kF32;
    tensor.data = values.data();
    tensor.bytes = static_cast<int64_t>(values.size()) * 4;
  }
  tensors_.push_back(std::move(tensor));
}

std::string GgufModel::name_in_file(const std::string& name) const {
  const std::string stored = gguf_name(name);
  return stored.empty() ? name : stored;
}

// The dimensions that our_shape() leaves out or moves.
std::vector<int64_t> GgufModel::shape_in_file(const std::string& name,
                                              const std::vector<int64_t>& shape) const {
  const TensorInfo* ours = find(name);
  const TensorInfo* stored = file_.find(name_in_file(name));
  if (ours != nullptr && stored != nullptr && ours->shape == shape) return stored->shape;
  return gguf_name(name).empty() ? shape : gguf_place(config_, name, shape).shape;
}

const char* GgufModel::config_name() const { return "the file's metadata"; }

std::string gguf_name(const std::string& name) {
  for (const Name& entry : kShell) {
    if (name == entry.ours) return entry.gguf;
  }
  if (!name.starts_with(kOurLayer)) return "";
  const auto [number, rest] = split_number(std::string_view(name).substr(kOurLayer.size()));
  const std::string layer = std::string(kGgufLayer) + number;
  for (const Name& entry : kLayer) {
    if (rest == entry.ours) return layer + entry.gguf;
  }
  return rest == kDtBias2 ? layer + "ssm_dt.bias" : "";
}

GgufPlace gguf_place(const Config& config, const std::string& name,
                     const std::vector<int64_t>& shape) {
  GgufPlace place{gguf_name(name), shape, false};
  MAMBA_CHECK(!place.name.empty());
  if (name.starts_with(kOurLayer)) {
    const auto [number, rest] = split_number(std::string_view(name).substr(kOurLayer.size()));
    place.is_A = rest == "mixer.A_log";
    if (rest == "mixer.conv1d.weight") place.shape = {shape[0], shape[2]};
    if (config.mixer == "mamba2" && (place.is_A || rest == "mixer.D")) place.shape = {shape[0], 1};
    if (rest == "mixer.norm.weight") {
      place.shape = {config.n_groups, config.d_inner / config.n_groups};
    }
  }
  return place;
}

}  // namespace mamba
