// SPDX-License-Identifier: Apache-2.0
// Reading config.json: choosing the form, and the transformers form.
//
// transformers writes every key of its class, except (version 4) those that equal its base class.
// So an absent key is an error, but for these:
// clang-format off
//   key                                   absent means           because
//   tie_word_embeddings (not mamba2)      true                   version 4 omits its base's default
//   mixer_rms_eps (falcon_mamba)          1e-6                   in the code before the key existed
//   intermediate_size                     expand * hidden_size   mamba2 never writes it
//   expand                                not needed             if intermediate_size is there
//   bos, eos, pad_token_id                none                   null in older files
//   residual_in_fp32                      true                   always f32 on a CPU
//   chunk_size                            256                    speed only
//   initializer_range, time_step_{min,max,floor,scale,init_scheme}, rescale_prenorm_residual
//                                         as in Config; false    initial weights only
// clang-format on
// intermediate_size wins over expand (falcon-mamba-7b says expand 16 and means 8192 = 2 * 4096).
// Mamba-2 norms each of n_groups groups of d_inner (transformers 5.23; 5.17 and before took the
// whole).
#include "formats/hf_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include "base/check.h"
#include "formats/config_fields.h"
#include "formats/gguf_model.h"
#include "formats/mamba_c_file.h"
#include "formats/weight_files.h"

namespace mamba {
namespace detail {

constexpr int64_t kMaxSize = int64_t{1} << 32;

int64_t get_size(const Json& json, const char* key, const std::string& where) {
  return get_int(json, key, 1, kMaxSize, where);
}

void check_activation(const Json& json, const char* key, const std::string& where) {
  const std::string name = get_string(json, key, where);
  if (name == "silu" || name == "swish") return;
  fail(ErrorCode::kUnsupported,
       "[{}] expected \"{}\" to be silu or swish, got \"{}\", which this engine "
       "does not have",
       where, key, printable(name));
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

namespace {

// A token id or null (none); of a list the first counts.
int64_t parse_token(const Json& json, const char* key, const std::string& where,
                    std::vector<std::string>& warnings) {
  if (!has_member(json, key) || json[key].is_null()) return -1;
  if (!json[key].is_array()) return get_int(json, key, -1, kMaxSize, where);
  if (json[key].empty()) return -1;
  if (json[key].size() > 1) {
    warnings.push_back(fmt::format("[{}] \"{}\" lists {} ids; only the first is used", where, key,
                                   json[key].size()));
  }
  Json first = Json::object();
  first[key] = json[key][0];
  return get_int(first, key, 0, kMaxSize, where);
}

// A token id, null (none), or a list: the end tokens of instruction models.
void parse_eos(const Json& json, const std::string& where, Config& c) {
  constexpr const char* kKey = "eos_token_id";
  if (!has_member(json, kKey) || json[kKey].is_null()) return;
  if (!json[kKey].is_array()) {
    c.eos_token_id = get_int(json, kKey, -1, kMaxSize, where);
    return;
  }
  const std::vector<int64_t> ids = get_int_list(json, kKey, 0, kMaxSize, where);
  if (ids.empty()) return;
  c.eos_token_id = ids[0];
  c.more_eos_token_ids.assign(ids.begin() + 1, ids.end());
}

// The ids of special tokens, in config.json and in generation_config.json.
void parse_tokens(const Json& json, const std::string& where, Config& c,
                  std::vector<std::string>& warnings) {
  c.bos_token_id = parse_token(json, "bos_token_id", where, warnings);
  parse_eos(json, where, c);
  c.pad_token_id = parse_token(json, "pad_token_id", where, warnings);
}

// Keys of the transformers form that do not change what the model computes here.
constexpr const char* kHarmless[] = {"architectures",
                                     "transformers_version",
                                     "torch_dtype",
                                     "dtype",
                                     "use_cache",
                                     "use_mambapy",
                                     "use_falcon_mambapy",
                                     "use_associative_scan",
                                     "_name_or_path",
                                     "_attn_implementation",
                                     "return_dict",
                                     "output_hidden_states",
                                     "output_attentions",
                                     "problem_type",
                                     "id2label",
                                     "label2id",
                                     "chunk_size_feed_forward",
                                     "is_encoder_decoder",
                                     "fused_add_norm",
                                     "pad_vocab_size_multiple",
                                     "max_position_embeddings"};
// Keys that are read below, for every model type.
constexpr const char* kRead[] = {
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "layer_norm_epsilon",
    "state_size", "conv_kernel", "use_bias", "use_conv_bias", "hidden_act", "intermediate_size",
    "expand", "tie_word_embeddings", "residual_in_fp32", "initializer_range",
    "rescale_prenorm_residual", "time_step_min", "time_step_max", "time_step_floor", "bos_token_id",
    "eos_token_id", "pad_token_id", "mamba_cpp", "rms_norm", "ssm_cfg", "d_model", "d_inner",
    "n_layer", "quantization_config", "norm_before_gate",
    // Mamba-1 reads these; Mamba-2 files have them without a meaning.
    "time_step_rank", "time_step_scale", "time_step_init_scheme"};
constexpr const char* kReadMamba2[] = {"num_heads", "head_dim", "n_groups", "time_step_limit",
                                       "chunk_size"};

template <class List>
bool contains(const List& list, const std::string& key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

int64_t parse_inner_size(const Json& json, int64_t hidden, const std::string& where) {
  if (has_member(json, "intermediate_size") || !has_member(json, "expand")) {
    return get_size(json, "intermediate_size", where);
  }
  const double inner =
      get_number(json, "expand", 1e-6, 1 << 20, where) * static_cast<double>(hidden);
  if (inner != std::floor(inner)) {
    fail(ErrorCode::kBadFile,
         "[{}] expected expand * hidden_size to be whole, got {}; correct \"expand\"", where,
         inner);
  }
  return static_cast<int64_t>(inner);
}

void parse_mamba1(const Json& json, const std::string& where, Config& c) {
  c.mixer = "mamba1";
  if (get_member(json, "time_step_rank", where) == "auto") {
    c.dt_rank = round_up(c.d_model, 16) / 16;
  } else {
    c.dt_rank = get_size(json, "time_step_rank", where);
  }
  if (has_member(json, "time_step_scale")) {
    c.dt_scale = get_number(json, "time_step_scale", 0, 1e6, where);
  }
  if (has_member(json, "time_step_init_scheme")) {
    const std::string scheme = get_string(json, "time_step_init_scheme", where);
    if (scheme != "random" && scheme != "constant") {
      fail(ErrorCode::kBadFile,
           "[{}] expected \"time_step_init_scheme\" to be random or constant, got "
           "\"{}\"; correct the file",
           where, printable(scheme));
    }
    c.dt_init_random = scheme == "random";
  }
  if (c.model_type == "falcon_mamba") {
    c.bcdt_rms = true;
    if (has_member(json, "mixer_rms_eps")) {
      c.bcdt_rms_eps = get_number(json, "mixer_rms_eps", 0, 1, where);
    }
  }
}

void parse_mamba2(const Json& json, const std::string& where, Config& c) {
  c.mixer = "mamba2";
  c.d_ssm = c.d_inner;
  c.headdim = get_size(json, "head_dim", where);
  c.n_groups = get_size(json, "n_groups", where);
  c.norm_groups = c.n_groups;
  c.chunk_size = has_member(json, "chunk_size") ? get_size(json, "chunk_size", where) : 256;
  const Json& limit = get_member(json, "time_step_limit", where);
  if (!limit.is_array() || limit.size() != 2) {
    fail(ErrorCode::kBadFile,
         "[{}] expected \"time_step_limit\" as [low, high], got {}; correct the file", where,
         printable_json(limit));
  }
  c.dt_limit_min = json_number(limit[0], "\"time_step_limit\"", where);
  c.dt_limit_max = json_number(limit[1], "\"time_step_limit\"", where);
}

// Keys that say what this form cannot mean, and keys that nobody here knows.
void check_other_keys(const Json& json, const std::string& where, const Config& c,
                      std::vector<std::string>& warnings) {
  if (has_member(json, "quantization_config") && !json["quantization_config"].is_null()) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected weights without \"quantization_config\", got {}; use the "
         "unquantised model",
         where, printable_json(json["quantization_config"]));
  }
  if (has_member(json, "rms_norm") && json["rms_norm"] != true) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected \"rms_norm\" true as transformers computes it, got {}; use "
         "the state-spaces form for such a model",
         where, printable_json(json["rms_norm"]));
  }
  // Left in converted files by the state-spaces form; transformers reads only the second of each.
  const std::pair<const char*, int64_t> doubles[] = {
      {"d_model", c.d_model}, {"d_inner", c.d_inner}, {"n_layer", c.n_layer}};
  for (const auto& [key, value] : doubles) {
    if (!has_member(json, key) || json[key] == value) continue;
    fail(ErrorCode::kBadFile,
         "[{}] expected \"{}\" to agree with its other name, which says {}, got {}; "
         "remove the wrong one",
         where, key, value, printable_json(json[key]));
  }
  for (const auto& [key, value] : json.items()) {
    const bool empty_ssm = key == "ssm_cfg" && value.is_object() && value.empty();
    const bool gate_first = key == "norm_before_gate" && value == false;
    const bool known = contains(kRead, key) ||
                       (c.mixer == "mamba2" && contains(kReadMamba2, key)) ||
                       (c.model_type == "falcon_mamba" && key == "mixer_rms_eps");
    if (contains(kHarmless, key) || empty_ssm || gate_first) continue;
    if (known && key != "ssm_cfg" && key != "norm_before_gate") continue;
    warnings.push_back(fmt::format("[{}] \"{}\": {} is ignored, as transformers does", where,
                                   printable(key), printable_json(value)));
  }
}

void apply_extension(const Json& json, const std::string& where, Config& c) {
  if (!has_member(json, "mamba_cpp")) return;
  const Json& extension = json["mamba_cpp"];
  if (!extension.is_object()) {
    fail(ErrorCode::kBadFile,
         "[{}] expected \"mamba_cpp\" to be an object, got {}; correct the file", where,
         printable_json(extension));
  }
  for (const auto& [key, value] : extension.items()) {
    const ConfigField* field = find_config_field(key);
    if (field == nullptr) {
      fail(ErrorCode::kUnsupported,
           "[{}] expected fields of a config under \"mamba_cpp\", got \"{}\"; was "
           "this file written by a newer version?",
           where, printable(key));
    }
    field_from_json(*field, value, c, where + ": mamba_cpp");
  }
}

}  // namespace

Config parse_transformers(const Json& json, const std::string& where,
                          std::vector<std::string>& warnings) {
  Config c;
  c.model_type = get_string(json, "model_type", where);
  if (c.model_type != "mamba" && c.model_type != "mamba2" && c.model_type != "falcon_mamba") {
    fail(ErrorCode::kUnsupported,
         "[{}] expected model_type mamba, mamba2 or falcon_mamba, got \"{}\", which this engine "
         "does not "
         "have",
         where, printable(c.model_type));
  }
  c.vocab_size = get_size(json, "vocab_size", where);
  c.d_model = get_size(json, "hidden_size", where);
  c.n_layer = get_size(json, "num_hidden_layers", where);
  c.norm_eps = get_number(json, "layer_norm_epsilon", 0, 1, where);
  c.d_inner = parse_inner_size(json, c.d_model, where);
  c.d_state = get_size(json, "state_size", where);
  c.d_conv = get_size(json, "conv_kernel", where);
  c.use_bias = get_bool(json, "use_bias", where);
  c.conv_bias = get_bool(json, "use_conv_bias", where);
  check_activation(json, "hidden_act", where);
  const bool may_lack_tie = c.model_type != "mamba2" && !has_member(json, "tie_word_embeddings");
  c.tie_embeddings = may_lack_tie || get_bool(json, "tie_word_embeddings", where);
  if (has_member(json, "residual_in_fp32")) {
    c.residual_in_fp32 = get_bool(json, "residual_in_fp32", where);
  }
  c.rescale_prenorm_residual = has_member(json, "rescale_prenorm_residual") &&
                               get_bool(json, "rescale_prenorm_residual", where);
  const std::pair<const char*, double Config::*> reals[] = {
      {"initializer_range", &Config::embedding_std},
      {"time_step_min", &Config::dt_min},
      {"time_step_max", &Config::dt_max},
      {"time_step_floor", &Config::dt_init_floor}};
  for (const auto& [key, member] : reals) {
    if (has_member(json, key)) c.*member = get_number(json, key, 0, 1e3, where);
  }
  parse_tokens(json, where, c, warnings);
  if (c.model_type == "mamba2") {
    parse_mamba2(json, where, c);
  } else {
    parse_mamba1(json, where, c);
  }
  check_other_keys(json, where, c, warnings);
  apply_extension(json, where, c);
  if (c.mixer == "mamba2") {
    const int64_t heads = get_size(json, "num_heads", where);
    if (heads > kMaxSize / c.headdim || heads * c.headdim != c.d_ssm) {
      fail(ErrorCode::kBadFile,
           "[{}] expected num_heads * head_dim to be {} (intermediate_size, or expand * "
           "hidden_size), got "
           "{} * {}; correct the file",
           where, c.d_ssm, heads, c.headdim);
    }
  }
  if (has_member(json, "mamba_cpp")) check_extension(json, where, c);
  return c;
}

void read_special_tokens(const Json& json, const std::string& where, Config& c,
                         std::vector<std::string>& warnings) {
  parse_tokens(json, where, c, warnings);
  try {
    check_config(c, ConfigForm::kFields);
  } catch (const Error& error) {  // here the file is at fault, not the caller
    throw Error(ErrorCode::kBadFile, fmt::format("[{}] {}", where, error.what()));
  }
}

}  // namespace detail

namespace {

bool is_state_spaces(const Json& json) {
  return !has_member(json, "model_type") &&
         (has_member(json, "d_model") || has_member(json, "n_layer"));
}

Config parse_form(const Json& json, const std::string& where, std::vector<std::string>& notes) {
  Config config;
  ConfigForm form = ConfigForm::kTransformers;
  if (has_member(json, "model_type")) {
    config = detail::parse_transformers(json, where, notes);
  } else if (is_state_spaces(json)) {
    config = detail::parse_state_spaces(json, where);
    form = ConfigForm::kStateSpaces;
  } else {
    fail(ErrorCode::kBadFile,
         "[{}] expected a config with \"model_type\" (transformers) or \"d_model\" and \"n_layer\" "
         "(state-spaces), got {}; is this a model's config.json?",
         where, printable_json(json));
  }
  try {
    check_config(config, form);
  } catch (const Error& error) {  // here the file is at fault, not the caller
    throw Error(ErrorCode::kBadFile, fmt::format("[{}] {}", where, error.what()));
  }
  return config;
}

// What the state-spaces form leaves to other files of its folder: the ids of special tokens, and
// whether the rows of the vocabulary are padded, which is for the weights to say.
void complete_from_folder(const Json& json, const std::string& folder, Config& c,
                          std::vector<std::string>& notes) {
  const int64_t rows = json["vocab_size"].get<int64_t>();
  if (rows != c.vocab_size && has_weights(folder)) {
    const WeightFiles weights(folder);
    const TensorInfo* embedding = weights.find("backbone.embeddings.weight");
    if (embedding != nullptr && !embedding->shape.empty() && embedding->shape[0] == rows) {
      c.vocab_size = rows;
    }
  }
  const std::string path = (std::filesystem::path(folder) / "generation_config.json").string();
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return;
  detail::read_special_tokens(read_json_file(path), path, c, notes);
}

}  // namespace

Config parse_config(std::string_view text, const std::string& where,
                    std::vector<std::string>* warnings) {
  std::vector<std::string> notes;
  const Config config = parse_form(parse_json(text, where), where, notes);
  if (warnings != nullptr) warnings->insert(warnings->end(), notes.begin(), notes.end());
  return config;
}

Config read_config(const std::string& path, std::vector<std::string>* warnings) {
  namespace fs = std::filesystem;
  if (is_gguf_file(path)) return read_gguf_config(GgufFile(path));
  if (is_mamba_c_file(path)) return MambaCFile(path).config();
  std::error_code ignored;
  const bool is_folder = fs::is_directory(path, ignored);
  if (!is_folder && !fs::exists(path, ignored)) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a model folder or a model file, found neither a folder nor a file; check "
         "the "
         "path",
         path);
  }
  const std::string file = is_folder ? (fs::path(path) / "config.json").string() : path;
  const Json json = read_json_file(file);
  std::vector<std::string> notes;
  Config config = parse_form(json, file, notes);
  if (is_folder && is_state_spaces(json)) complete_from_folder(json, path, config, notes);
  if (warnings != nullptr) warnings->insert(warnings->end(), notes.begin(), notes.end());
  return config;
}

bool is_state_spaces_config(const std::string& path) {
  return !is_mamba_c_file(path) && is_state_spaces(read_json_file(path));
}

Config load_config(const std::string& path_or_preset, std::vector<std::string>* warnings) {
  std::error_code ignored;
  if (std::filesystem::exists(path_or_preset, ignored))
    return read_config(path_or_preset, warnings);
  return preset_config(path_or_preset);
}

}  // namespace mamba
