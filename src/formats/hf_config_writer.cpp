// SPDX-License-Identifier: Apache-2.0
// Writing config.json as transformers 5 writes it: all keys of its class, sorted, two spaces deep.
#include "base/check.h"
#include "formats/config_fields.h"
#include "formats/hf_config.h"

namespace mamba {
namespace {

Json token(int64_t id) { return id < 0 ? Json(nullptr) : Json(id); }

// One id as a number, several as a list.
Json eos_tokens(const Config& c) {
  if (c.more_eos_token_ids.empty()) return token(c.eos_token_id);
  return c.all_eos_token_ids();
}

Json transformers_keys(const Config& c) {
  // transformers wants a whole "expand"; Mamba-1 prefers intermediate_size, Mamba-2 knows only
  // expand.
  const bool whole = c.d_inner % c.d_model == 0;
  Json json = {{"model_type", c.model_type},
               {"vocab_size", c.vocab_size},
               {"hidden_size", c.d_model},
               {"num_hidden_layers", c.n_layer},
               {"layer_norm_epsilon", c.norm_eps},
               {"expand", whole ? c.d_inner / c.d_model : 2},
               {"state_size", c.d_state},
               {"conv_kernel", c.d_conv},
               {"use_bias", c.use_bias},
               {"use_conv_bias", c.conv_bias},
               {"hidden_act", "silu"},
               {"tie_word_embeddings", c.tie_embeddings},
               {"residual_in_fp32", c.residual_in_fp32},
               // true would make transformers divide the out_proj weights that it has just loaded.
               {"rescale_prenorm_residual", false},
               {"initializer_range", c.embedding_std},
               {"time_step_min", c.dt_min},
               {"time_step_max", c.dt_max},
               {"time_step_floor", c.dt_init_floor},
               {"bos_token_id", token(c.bos_token_id)},
               {"eos_token_id", eos_tokens(c)},
               {"pad_token_id", token(c.pad_token_id)},
               {"use_cache", true}};
  if (c.mixer == "mamba2") {
    if (!whole) json["intermediate_size"] = c.d_inner;
    json["num_heads"] = c.n_heads();
    json["head_dim"] = c.headdim;
    json["n_groups"] = c.n_groups;
    json["chunk_size"] = c.chunk_size;
    json["time_step_limit"] =
        Json::array({json_of_number(c.dt_limit_min), json_of_number(c.dt_limit_max)});
    json["time_step_rank"] =
        detail::round_up(c.d_model, 16) / 16;  // transformers has it and ignores it
    return json;
  }
  json["intermediate_size"] = c.d_inner;
  json["time_step_rank"] = c.dt_rank;
  json["time_step_scale"] = c.dt_scale;
  json["time_step_init_scheme"] = c.dt_init_random ? "random" : "constant";
  if (c.model_type == "falcon_mamba") json["mixer_rms_eps"] = c.bcdt_rms_eps;
  return json;
}

// What a reader of the transformers keys alone would take `c` for: what it cannot express is at the
// value that transformers computes with, or at the default if it is not read.
Config without_extension(const Config& c) {
  Config base;
  base.mixer = c.mixer;
  base.model_type = c.model_type;
  base.rescale_prenorm_residual = false;
  const auto copy = [&](auto... members) { ((base.*members = c.*members), ...); };
  copy(&Config::vocab_size, &Config::d_model, &Config::n_layer, &Config::norm_eps, &Config::d_inner,
       &Config::d_state, &Config::d_conv, &Config::use_bias, &Config::conv_bias,
       &Config::tie_embeddings, &Config::residual_in_fp32, &Config::embedding_std, &Config::dt_min,
       &Config::dt_max, &Config::dt_init_floor, &Config::bos_token_id, &Config::eos_token_id,
       &Config::pad_token_id, &Config::more_eos_token_ids);
  if (c.mixer == "mamba2") {
    copy(&Config::headdim, &Config::n_groups, &Config::chunk_size, &Config::dt_limit_min,
         &Config::dt_limit_max);
    base.d_ssm = c.d_inner;
    base.norm_groups = c.n_groups;
  } else {
    copy(&Config::dt_rank, &Config::dt_scale, &Config::dt_init_random);
    base.bcdt_rms = c.model_type == "falcon_mamba";
    if (base.bcdt_rms) base.bcdt_rms_eps = c.bcdt_rms_eps;
  }
  return base;
}

bool differs(const ConfigField& field, const Config& a, const Config& b) {
  return std::visit([&](auto member) { return a.*member != b.*member; }, field.member);
}

}  // namespace

void detail::check_extension(const Json& json, const std::string& where, const Config& c) {
  const Json meant = transformers_keys(c);
  for (const auto& [key, value] : meant.items()) {
    // What only transformers reads, or what readers may take from another key.
    if (key == "rescale_prenorm_residual" || key == "expand" || key == "use_cache" ||
        key == "hidden_act" || key == "time_step_rank" || !has_member(json, key.c_str()) ||
        json[key] == value || json[key].is_null() || json[key].is_array()) {
      continue;
    }
    fail(
        ErrorCode::kBadFile,
        "[{}] expected \"mamba_cpp\" to hold only what the other keys cannot say, got a value that "
        "makes \"{}\" {} where the file says {}; correct one of the two",
        where, key, printable_json(value), printable_json(json[key]));
  }
}

std::string beyond_transformers(const Config& config) {
  const Config base = without_extension(config);
  for (const ConfigField& field : config_fields()) {
    // An epsilon of a norm that is not there decides nothing.
    if (field.member == ConfigField::Member(&Config::bcdt_rms_eps) && !config.bcdt_rms) continue;
    if (field.effect == FieldEffect::kFunction && is_read(field, config) &&
        differs(field, config, base)) {
      return fmt::format("{} ({})", field.name, printable_json(field_to_json(field, config)));
    }
  }
  if (config.mixer == "mamba2" && config.d_inner % config.d_model != 0) {
    return fmt::format("d_inner ({}, no multiple of d_model {})", config.d_inner, config.d_model);
  }
  return "";
}

bool is_transformers_model(const Config& config) { return beyond_transformers(config).empty(); }

std::string write_config(const Config& config) {
  config.validate();
  Json json = transformers_keys(config);
  const Config base = without_extension(config);
  Json extension = Json::object();
  for (const ConfigField& field : config_fields()) {
    if (differs(field, config, base)) extension[field.name] = field_to_json(field, config);
  }
  if (!extension.empty()) json["mamba_cpp"] = extension;
  if (is_transformers_model(config)) {
    const char* name = config.model_type == "mamba"    ? "MambaForCausalLM"
                       : config.model_type == "mamba2" ? "Mamba2ForCausalLM"
                                                       : "FalconMambaForCausalLM";
    json["architectures"] = Json::array({name});
  }
  return json.dump(2) + "\n";
}

}  // namespace mamba
