// SPDX-License-Identifier: Apache-2.0
// generation_config.json, as transformers writes it beside config.json.
#include <filesystem>

#include "base/check.h"
#include "base/json.h"
#include "mamba/sampling.h"

namespace mamba {
namespace {

constexpr int64_t kMaxId = (int64_t{1} << 24) - 1;

bool has_value(const Json& json, const char* key) {
  return has_member(json, key) && !json[key].is_null();
}

void read_number(const Json& json, const char* key, double low, double high,
                 const std::string& where, std::optional<double>* out) {
  if (has_value(json, key)) *out = get_number(json, key, low, high, where);
}

// An id, a list of ids, or null.
std::vector<int32_t> read_eos(const Json& json, const std::string& where) {
  constexpr const char* kKey = "eos_token_id";
  if (!has_value(json, kKey)) return {};
  if (!json[kKey].is_array()) {
    return {static_cast<int32_t>(get_int(json, kKey, 0, kMaxId, where))};
  }
  const std::vector<int64_t> ids = get_int_list(json, kKey, 0, kMaxId, where);
  return std::vector<int32_t>(ids.begin(), ids.end());
}

}  // namespace

GenerationDefaults load_generation_defaults(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / "generation_config.json").string();
  std::error_code ignored;
  GenerationDefaults defaults;
  if (!std::filesystem::exists(path, ignored)) return defaults;
  const Json json = read_json_file(path);
  if (!json.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected an object, got {}; correct or remove the file", path,
         printable_json(json));
  }
  read_number(json, "temperature", 0, 1000, path, &defaults.temperature);
  if (has_value(json, "top_k")) defaults.top_k = get_int(json, "top_k", 0, INT32_MAX, path);
  read_number(json, "top_p", 1e-9, 1, path, &defaults.top_p);
  read_number(json, "min_p", 0, 1, path, &defaults.min_p);
  read_number(json, "typical_p", 1e-9, 1, path, &defaults.typical_p);
  if (has_value(json, "do_sample") && !get_bool(json, "do_sample", path)) defaults.temperature = 0;
  defaults.eos_ids = read_eos(json, path);
  return defaults;
}

}  // namespace mamba
