// SPDX-License-Identifier: Apache-2.0
// Types by name, and the rules by which a matrix gets another one.
#include "model/quantize_plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>

#include "base/check.h"
#include "base/json.h"
#include "mamba/quantize.h"
#include "model/weight_types.h"

namespace mamba {
namespace {

struct Named {
  const char* name;
  DType dtype;
  int64_t file_type;  // llama.cpp's number
  bool mixed = false;
};
constexpr Named kTypes[] = {
    {"f32", DType::kF32, 0},
    {"f16", DType::kF16, 1},
    {"bf16", DType::kBF16, 32},
    {"q8_0", DType::kQ8_0, 7},
    {"q6_k", DType::kQ6_K, 18},
    {"q5_k_m", DType::kQ5_K, 17, true},
    {"q5_k_s", DType::kQ5_K, 16},
    {"q5_k", DType::kQ5_K, 16},
    {"q5_1", DType::kQ5_1, 9},
    {"q5_0", DType::kQ5_0, 8},
    {"q4_k_m", DType::kQ4_K, 15, true},
    {"q4_k_s", DType::kQ4_K, 14},
    {"q4_k", DType::kQ4_K, 14},
    {"iq4_nl", DType::kIQ4_NL, 25},
    {"q4_1", DType::kQ4_1, 3},
    {"q4_0", DType::kQ4_0, 2},
};

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

const Named& type_named(const std::string& name, const char* where, bool mixes) {
  std::vector<std::string> known;
  for (const Named& type : kTypes) {
    const bool mix = std::string_view(type.name).ends_with("_s") || type.mixed;
    if (mix && !mixes) continue;
    if (lower(name) == type.name) return type;
    known.emplace_back(type.name);
  }
  fail(ErrorCode::kInvalidArgument, "[{}] expected a type of {}; got '{}'", where,
       fmt::join(known, ", "), printable(name));
}

bool ends_with(const std::string& name, const char* ending) { return name.ends_with(ending); }

// Anchored, as the names that these flags stand for are.
constexpr const char* kHead = "^output\\.weight$";
constexpr const char* kEmbedding = "^token_embd\\.weight$";

}  // namespace

std::vector<std::string> quantize_types() {
  std::vector<std::string> names;
  for (const Named& type : kTypes) names.emplace_back(type.name);
  return names;
}

QuantizePlan::QuantizePlan(const Config& config, const QuantizeOptions& options)
    : config_(config),
      pure_(options.pure),
      leave_head_(options.leave_head),
      name_(lower(options.type)) {
  if (!options.type.empty()) {
    const Named& named = type_named(options.type, "quantize", true);
    type_ = named.dtype;
    mixed_ = named.mixed;
  }
  if (!options.embedding_type.empty()) {
    add_rule("--token-embedding-type", kEmbedding, options.embedding_type);
  }
  if (!options.head_type.empty()) {
    add_rule("--output-tensor-type", config.tie_embeddings ? kEmbedding : kHead, options.head_type);
  }
  for (const auto& [pattern, to] : options.tensor_types) add_rule("--tensor-type", pattern, to);
}

void QuantizePlan::add_rule(const char* flag, const std::string& pattern, const std::string& type) {
  const DType dtype = type_named(type, flag, false).dtype;
  try {
    rules_.push_back({flag, pattern, Regex(pattern, flag), dtype});
  } catch (const Error& error) {  // no file is at fault here
    throw Error(ErrorCode::kInvalidArgument, error.what());
  }
}

// With the ending _m, the out_proj of the first and the last eighth of the layers and of every
// third between them has two bits more: what llama.cpp's mixes do to the matrices that add to the
// residual.
DType QuantizePlan::layer_type(const std::string& name) const {
  if (!mixed_ || !ends_with(name, ".ssm_out.weight")) return *type_;
  const int64_t layer = std::strtoll(name.c_str() + 4, nullptr, 10), n = config_.n_layer;
  const bool more = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
  return more ? DType::kQ6_K : *type_;
}

DType QuantizePlan::wanted(const ParamSpec& spec, const std::string& name, DType stored) const {
  for (auto rule = rules_.rbegin(); rule != rules_.rend(); ++rule) {
    if (rule->regex.find_all(name).empty()) continue;
    rule->used = true;
    return rule->dtype;
  }
  const DType kept = stored == DType::kF64 ? DType::kF32 : stored;
  if (!type_ ||
      (leave_head_ && name == (config_.tie_embeddings ? "token_embd.weight" : "output.weight"))) {
    return kept;
  }
  if (pure_ || !is_quantized(*type_)) return *type_;
  const DType type = matrix_type(config_, spec, *type_);
  return type == *type_ ? layer_type(name) : type;
}

QuantizePlan::Choice QuantizePlan::choose(const ParamSpec& spec, const std::string& name,
                                          DType stored) const {
  if (!spec.matrix) return {DType::kF32, ""};
  const DType type = wanted(spec, name, stored);
  const DType fits = fitting_blocks(type, spec.shape.back());
  if (fits == type) return {type, ""};
  return {fits, fmt::format("rows of {} are no multiple of the {} of a block of {}",
                            spec.shape.back(), block_elements(type), dtype_name(type))};
}

void QuantizePlan::expect_all_used() const {
  for (const Rule& rule : rules_) {
    if (rule.used) continue;
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected an expression that matches a matrix, such as blk\\.0\\.ssm_in, got '{}', "
         "which matches none or none that a later one leaves; correct it or leave it out",
         rule.flag, printable(rule.text));
  }
}

int64_t QuantizePlan::file_type(DType most) const {
  for (const Named& type : kTypes) {
    if (type_ ? name_ == type.name : most == type.dtype) return type.file_type;
  }
  return 0;
}

}  // namespace mamba
