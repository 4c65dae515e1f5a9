// SPDX-License-Identifier: Apache-2.0
// Names, shapes and the tied head of stored tensors.
#include "model/check_tensors.h"

#include <cstring>
#include <string>
#include <unordered_set>

#include "base/check.h"
#include "base/json.h"
#include "model/parameter_table.h"

namespace mamba {
namespace {

constexpr const char* kEmbedding = "backbone.embeddings.weight";
constexpr const char* kHead = "lm_head.weight";

void check_tied_head(const TensorTable& table) {
  const TensorInfo* head = table.find(kHead);
  if (head == nullptr) return;
  const TensorInfo& embedding = table.get(kEmbedding);
  const bool equal =
      head->dtype == embedding.dtype && head->shape == embedding.shape &&
      (head->data == embedding.data ||
       std::memcmp(head->data, embedding.data, static_cast<size_t>(embedding.bytes)) == 0);
  if (equal) return;
  fail(
      ErrorCode::kBadFile,
      "[{}] expected \"{}\" to equal the embedding, as config.json ties them, got another; correct "
      "tie_word_embeddings (tie_embeddings) in config.json",
      table.where(), kHead);
}

}  // namespace

void check_tensors(const TensorTable& table, const Config& config) {
  std::unordered_set<std::string> known;
  const ParamTable parameters = parameter_table(config);
  for (const ParamSpec& spec : parameters.specs()) {
    const DType dtype = table.get(spec.name, spec.shape).dtype;
    if (dtype != DType::kF32 && dtype != DType::kF64 && dtype != DType::kBF16 &&
        dtype != DType::kF16 && !is_quantized(dtype)) {
      fail(ErrorCode::kUnsupported,
           "[{}] expected tensor \"{}\" as f32, bf16, f16 or f64, got {}; convert the model",
           table.where(), printable(table.name_in_file(spec.name), 200), dtype_name(dtype));
    }
    known.insert(spec.name);
  }
  if (config.tie_embeddings) known.insert(kHead);
  for (const TensorInfo& tensor : table.tensors()) {
    if (known.count(tensor.name) != 0) continue;
    const std::string stored = table.name_in_file(tensor.name);
    fail(ErrorCode::kBadFile,
         "[{}] expected the {} tensors of this configuration, got also '{}' {}; {} and weights do "
         "not belong together, or it is a variant that this version does not know",
         table.where(), known.size(), printable(stored, 200),
         shape_text(table.shape_in_file(tensor.name, tensor.shape)), table.config_name());
  }
  if (config.tie_embeddings) check_tied_head(table);
}

}  // namespace mamba
