// SPDX-License-Identifier: Apache-2.0
// Reading the config.json of the state-spaces package. There an absent key does mean the default of
// the package (its files leave them out), and an unknown key is an error.
#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string_view>

#include "base/check.h"
#include "formats/hf_config.h"

namespace mamba::detail {
namespace {

void refuse_unknown(const Json& object, const std::string& where, const char* what,
                    std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    fail(ErrorCode::kUnsupported,
         "[{}] expected only known keys in {}, got \"{}\": {}; remove it if the "
         "model does not depend on it",
         where, what, printable(key), printable_json(value));
  }
}

// Present and not null, which Python code uses for "default".
bool is_given(const Json& object, const char* key) {
  return has_member(object, key) && !object[key].is_null();
}
int64_t size_or(const Json& object, const char* key, int64_t absent, const std::string& where) {
  return is_given(object, key) ? get_size(object, key, where) : absent;
}
bool bool_or(const Json& object, const char* key, bool absent, const std::string& where) {
  return is_given(object, key) ? get_bool(object, key, where) : absent;
}
double number_or(const Json& object, const char* key, double absent, const std::string& where) {
  return is_given(object, key)
             ? get_number(object, key, 0, std::numeric_limits<double>::infinity(), where)
             : absent;
}

// Two numbers, such as dt_limit.
void parse_pair(const Json& object, const char* key, double& low, double& high,
                const std::string& where) {
  if (!is_given(object, key)) return;
  const Json& pair = object[key];
  if (!pair.is_array() || pair.size() != 2) {
    fail(ErrorCode::kBadFile, "[{}] expected \"{}\" as [low, high], got {}; correct the file",
         where, key, printable_json(pair));
  }
  const std::string what = std::string("\"") + key + "\"";
  low = json_number(pair[0], what, where);
  high = json_number(pair[1], what, where);
}

void parse_common_ssm(const Json& ssm, const std::string& where, Config& c) {
  const int64_t expand = size_or(ssm, "expand", 2, where);
  if (expand > 1024) {
    fail(ErrorCode::kBadFile, "[{}] expected \"expand\" from 1 to 1024, got {}; correct the file",
         where, expand);
  }
  c.d_inner = expand * c.d_model;
  c.d_conv = size_or(ssm, "d_conv", 4, where);
  c.conv_bias = bool_or(ssm, "conv_bias", true, where);
  c.use_bias = bool_or(ssm, "bias", false, where);
  c.dt_min = number_or(ssm, "dt_min", 1e-3, where);
  c.dt_max = number_or(ssm, "dt_max", 1e-1, where);
  c.dt_init_floor = number_or(ssm, "dt_init_floor", 1e-4, where);
  if (is_given(ssm, "activation")) check_activation(ssm, "activation", where);
}

void parse_mamba1(const Json& ssm, const std::string& where, Config& c) {
  refuse_unknown(ssm, where, "ssm_cfg of a Mamba1 model",
                 {"layer", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init",
                  "dt_scale", "dt_init_floor", "conv_bias", "bias", "activation", "use_fast_path"});
  c.mixer = "mamba1";
  c.model_type = "mamba";
  c.d_state = size_or(ssm, "d_state", 16, where);
  const bool automatic = !is_given(ssm, "dt_rank") || ssm["dt_rank"] == "auto";
  c.dt_rank = automatic ? round_up(c.d_model, 16) / 16 : get_size(ssm, "dt_rank", where);
  c.dt_scale = number_or(ssm, "dt_scale", 1, where);
  if (!is_given(ssm, "dt_init")) return;
  const std::string scheme = get_string(ssm, "dt_init", where);
  if (scheme != "random" && scheme != "constant") {
    fail(ErrorCode::kBadFile,
         "[{}] expected \"dt_init\" to be random or constant, got \"{}\"; correct the "
         "file",
         where, printable(scheme));
  }
  c.dt_init_random = scheme == "random";
}

void parse_mamba2(const Json& ssm, const std::string& where, Config& c) {
  refuse_unknown(ssm, where, "ssm_cfg of a Mamba2 model",
                 {"layer",
                  "d_state",
                  "d_conv",
                  "conv_init",
                  "expand",
                  "headdim",
                  "d_ssm",
                  "ngroups",
                  "A_init_range",
                  "D_has_hdim",
                  "rmsnorm",
                  "norm_before_gate",
                  "dt_min",
                  "dt_max",
                  "dt_init_floor",
                  "dt_limit",
                  "bias",
                  "conv_bias",
                  "chunk_size",
                  "use_mem_eff_path",
                  "process_group",
                  "sequence_parallel",
                  "learnable_init_states",
                  "activation"});
  c.mixer = "mamba2";
  c.model_type = "mamba2";
  c.d_state = size_or(ssm, "d_state", 128, where);
  c.headdim = size_or(ssm, "headdim", 64, where);
  c.n_groups = size_or(ssm, "ngroups", 1, where);
  c.norm_groups = c.n_groups;
  c.d_ssm = size_or(ssm, "d_ssm", c.d_inner, where);
  c.chunk_size = size_or(ssm, "chunk_size", 256, where);
  c.conv_init = number_or(ssm, "conv_init", 0, where);
  c.D_has_hdim = bool_or(ssm, "D_has_hdim", false, where);
  c.gated_norm = bool_or(ssm, "rmsnorm", true, where);
  c.norm_before_gate = bool_or(ssm, "norm_before_gate", false, where);
  c.learnable_init_states = bool_or(ssm, "learnable_init_states", false, where);
  parse_pair(ssm, "A_init_range", c.A_init_min, c.A_init_max, where);
  parse_pair(ssm, "dt_limit", c.dt_limit_min, c.dt_limit_max, where);
}

}  // namespace

Config parse_state_spaces(const Json& json, const std::string& where) {
  refuse_unknown(json, where, "a state-spaces config",
                 {"d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx",
                  "attn_cfg", "rms_norm", "residual_in_fp32", "fused_add_norm",
                  "pad_vocab_size_multiple", "tie_embeddings"});
  Config c;
  c.d_model = get_size(json, "d_model", where);
  c.n_layer = get_size(json, "n_layer", where);
  const int64_t multiple = size_or(json, "pad_vocab_size_multiple", 8, where);
  c.vocab_size = round_up(get_size(json, "vocab_size", where), multiple);
  const int64_t hidden =
      is_given(json, "d_intermediate") ? get_int(json, "d_intermediate", 0, 1 << 30, where) : 0;
  c.d_intermediate = round_up(hidden, 128);
  c.norm = bool_or(json, "rms_norm", true, where) ? NormKind::kRms : NormKind::kLayer;
  c.residual_in_fp32 = bool_or(json, "residual_in_fp32", true, where);
  c.tie_embeddings = bool_or(json, "tie_embeddings", true, where);
  if (is_given(json, "attn_layer_idx") && json["attn_layer_idx"] != Json::array()) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected \"attn_layer_idx\" to be empty, got {}; attention layers are not supported",
         where, printable_json(json["attn_layer_idx"]));
  }
  const Json ssm = is_given(json, "ssm_cfg") ? json["ssm_cfg"] : Json::object();
  if (!ssm.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected \"ssm_cfg\" to be an object, got {}; correct the file",
         where, printable_json(ssm));
  }
  const std::string layer = is_given(ssm, "layer") ? get_string(ssm, "layer", where) : "Mamba1";
  parse_common_ssm(ssm, where, c);
  if (layer == "Mamba1") {
    parse_mamba1(ssm, where, c);
  } else if (layer == "Mamba2") {
    parse_mamba2(ssm, where, c);
  } else {
    fail(ErrorCode::kUnsupported,
         "[{}] expected ssm_cfg.layer Mamba1 or Mamba2, got \"{}\", which this "
         "engine does not have",
         where, printable(layer));
  }
  return c;
}

}  // namespace mamba::detail
