// SPDX-License-Identifier: Apache-2.0
// The list of a model's tensors and the choice of those that train.
#include "model/parameter_table.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "base/near_names.h"
#include "model/mixer.h"

namespace mamba {
namespace {

void add_norm(ParamTable& table, const Config& config, const std::string& name) {
  ParamSpec spec;
  spec.name = name + ".weight";
  spec.shape = {config.d_model};
  spec.count = config.d_model;
  spec.init = Init::kOne;
  table.add(spec);
  if (config.norm != NormKind::kLayer) return;
  spec.name = name + ".bias";
  spec.init = Init::kZero;
  table.add(spec);
}

void add_operator(ParamTable& table, const Mixer& op, const std::string& prefix) {
  for (ParamSpec spec : op.params()) {
    spec.name = prefix + spec.name;
    table.add(std::move(spec));
  }
}

int64_t aligned(int64_t elements) {
  return (elements + ParamTable::kAlignElements - 1) / ParamTable::kAlignElements *
         ParamTable::kAlignElements;
}

bool match_one(const ParamTable& table, const std::string& pattern, std::vector<bool>* frozen) {
  bool found = false;
  for (size_t i = 0; i < table.specs().size(); ++i) {
    if (fnmatch(pattern.c_str(), table.specs()[i].name.c_str(), FNM_NOESCAPE) != 0) continue;
    (*frozen)[i] = found = true;
  }
  return found;
}

}  // namespace

ParamTable parameter_table(const Config& config) {
  ParamTable table;
  ParamSpec matrix;
  matrix.name = "backbone.embeddings.weight";
  matrix.shape = {config.vocab_size, config.d_model};
  matrix.count = config.vocab_size * config.d_model;
  matrix.init = Init::kNormal;
  matrix.scale = config.embedding_std;
  matrix.decay = matrix.matrix = true;
  table.add(matrix);
  const std::unique_ptr<Mixer> mixer = make_mixer(config);
  const std::unique_ptr<Mixer> mlp = config.d_intermediate > 0 ? make_gated_mlp(config) : nullptr;
  for (int64_t i = 0; i < config.n_layer; ++i) {
    const std::string prefix = fmt::format("backbone.layers.{}.", i);
    add_norm(table, config, prefix + "norm");
    add_operator(table, *mixer, prefix + "mixer.");
    if (mlp == nullptr) continue;
    add_norm(table, config, prefix + "norm2");
    add_operator(table, *mlp, prefix + "mlp.");
  }
  add_norm(table, config, "backbone.norm_f");
  if (!config.tie_embeddings) {
    matrix.name = "lm_head.weight";
    table.add(matrix);
  }
  return table;
}

TrainedLayout layout_trained(const ParamTable& table, const std::vector<bool>& frozen) {
  TrainedLayout layout;
  for (size_t i = 0; i < table.specs().size(); ++i) {
    const ParamSpec& spec = table.specs()[i];
    if (!frozen.empty() && frozen[i]) {
      layout.offsets.push_back(-1);
      if (!spec.matrix) layout.sink = std::max(layout.sink, aligned(spec.count));
    } else {
      layout.offsets.push_back(layout.count);
      layout.count += aligned(spec.count);
    }
  }
  return layout;
}

std::vector<bool> frozen_by(const ParamTable& table, const std::vector<std::string>& patterns) {
  constexpr size_t kLongest = 256;  // the time that matching takes grows fast with asterisks
  if (patterns.empty()) return {};
  std::vector<bool> frozen(table.specs().size());
  for (const std::string& pattern : patterns) {
    if (pattern.empty() || pattern.size() > kLongest) {
      fail(ErrorCode::kInvalidArgument,
           "[--freeze] expected a pattern of 1..{} characters, got {}; use one like "
           "'backbone.layers.0.*'",
           kLongest, pattern.size());
    }
    if (match_one(table, pattern, &frozen)) continue;
    std::vector<std::string_view> names;
    for (const ParamSpec& spec : table.specs()) names.push_back(spec.name);
    fail(ErrorCode::kInvalidArgument,
         "[--freeze] expected a pattern that names tensors of the model, got '{}', which names "
         "none; the nearest of {} names: {}",
         printable(pattern), names.size(), near_names(pattern, names));
  }
  if (std::find(frozen.begin(), frozen.end(), false) == frozen.end()) {
    fail(ErrorCode::kInvalidArgument,
         "[--freeze] expected patterns that leave something to train, got all {} tensors frozen; "
         "freeze fewer",
         frozen.size());
  }
  return frozen;
}

}  // namespace mamba
