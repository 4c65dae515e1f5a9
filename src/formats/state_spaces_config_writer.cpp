// SPDX-License-Identifier: Apache-2.0
// Writing the config.json of the state-spaces package. Its constructor takes these keys and no
// others; what differs from its defaults goes into ssm_cfg.
#include "base/check.h"
#include "formats/config_fields.h"
#include "formats/hf_config.h"

namespace mamba {
namespace {

using OrderedJson = nlohmann::ordered_json;

// The constructor's arguments of the mixer, but those at their defaults.
class SsmConfig {
 public:
  OrderedJson json = OrderedJson::object();
  template <class T>
  void add(const char* key, const T& value, const T& absent) {
    if (value != absent) json[key] = value;
  }
  // The package's files hold the bare Infinity that Python writes; this form is what both read.
  void add_pair(const char* key, double low, double high, double absent_low, double absent_high) {
    if (low == absent_low && high == absent_high) return;
    json[key] = OrderedJson::array({low, high});
  }
};

OrderedJson ssm_config(const Config& c) {
  const Config absent;
  SsmConfig ssm;
  const bool mamba2 = c.mixer == "mamba2";
  ssm.json["layer"] = mamba2 ? "Mamba2" : "Mamba1";
  ssm.add<int64_t>("d_state", c.d_state, mamba2 ? 128 : 16);
  ssm.add<int64_t>("d_conv", c.d_conv, 4);
  ssm.add<int64_t>("expand", c.d_inner / c.d_model, 2);
  ssm.add("conv_bias", c.conv_bias, true);
  ssm.add("bias", c.use_bias, false);
  ssm.add("dt_min", c.dt_min, absent.dt_min);
  ssm.add("dt_max", c.dt_max, absent.dt_max);
  ssm.add("dt_init_floor", c.dt_init_floor, absent.dt_init_floor);
  if (!mamba2) {
    ssm.add<int64_t>("dt_rank", c.dt_rank, detail::round_up(c.d_model, 16) / 16);
    ssm.add("dt_scale", c.dt_scale, 1.0);
    ssm.add<std::string>("dt_init", c.dt_init_random ? "random" : "constant", "random");
    return ssm.json;
  }
  ssm.add<int64_t>("headdim", c.headdim, 64);
  ssm.add<int64_t>("ngroups", c.n_groups, 1);
  ssm.add("d_ssm", c.d_ssm, c.d_inner);
  ssm.add<int64_t>("chunk_size", c.chunk_size, 256);
  ssm.add("conv_init", c.conv_init, 0.0);
  ssm.add("D_has_hdim", c.D_has_hdim, false);
  ssm.add("rmsnorm", c.gated_norm, true);
  ssm.add("norm_before_gate", c.norm_before_gate, false);
  ssm.add_pair("A_init_range", c.A_init_min, c.A_init_max, absent.A_init_min, absent.A_init_max);
  ssm.add_pair("dt_limit", c.dt_limit_min, c.dt_limit_max, absent.dt_limit_min,
               absent.dt_limit_max);
  return ssm.json;
}

bool differs(const ConfigField& field, const Config& a, const Config& b) {
  return std::visit([&](auto member) { return a.*member != b.*member; }, field.member);
}

// The text for Python's json module, which reads and writes infinity as a bare word.
std::string python_text(OrderedJson json, double dt_limit_max) {
  constexpr const char* kMark = "@infinity@";
  const bool infinite = json["ssm_cfg"].contains("dt_limit") && !(dt_limit_max < 1e300);
  if (infinite) json["ssm_cfg"]["dt_limit"][1] = kMark;
  std::string text = json.dump(4) + "\n";
  if (infinite) {
    const std::string quoted = std::string("\"") + kMark + "\"";
    text.replace(text.find(quoted), quoted.size(), "Infinity");
  }
  return text;
}

}  // namespace

std::string write_state_spaces_config(const Config& config) {
  config.validate();
  const int64_t multiple = config.mixer == "mamba2" ? 16 : 8;  // of the published files
  OrderedJson json = {
      {"d_model", config.d_model},
      {"d_intermediate", config.d_intermediate},
      {"n_layer", config.n_layer},
      {"vocab_size", config.vocab_size},
      {"ssm_cfg", ssm_config(config)},
      {"attn_layer_idx", OrderedJson::array()},
      {"attn_cfg", OrderedJson::object()},
      {"rms_norm", config.norm == NormKind::kRms},
      {"residual_in_fp32", config.residual_in_fp32},
      {"fused_add_norm", true},
      {"pad_vocab_size_multiple", config.vocab_size % multiple == 0 ? multiple : 1},
      {"tie_embeddings", config.tie_embeddings},
  };
  const std::string text = python_text(json, config.dt_limit_max);
  // Whatever a reader would take otherwise is what this form cannot say.
  const Config back = detail::parse_state_spaces(parse_json(text, "config.json"), "config.json");
  for (const ConfigField& field : config_fields()) {
    if (field.member == ConfigField::Member(&Config::bcdt_rms_eps) && !config.bcdt_rms) continue;
    if (field.member == ConfigField::Member(&Config::norm_groups) && !config.gated_norm) continue;
    const bool simple_only =  // an argument of Mamba2Simple, which no layer can be
        field.member == ConfigField::Member(&Config::learnable_init_states) &&
        config.mixer == "mamba2" && config.learnable_init_states;
    if (!simple_only && (field.effect != FieldEffect::kFunction || !is_read(field, config) ||
                         !differs(field, config, back))) {
      continue;
    }
    const std::string key = config_key(ConfigForm::kTransformers, field.name);
    fail(ErrorCode::kUnsupported,
         "[convert] expected a model that the state-spaces form can express, got {} {}{}; keep the "
         "transformers form",
         key, printable_json(field_to_json(field, config)),
         simple_only ? ""
                     : fmt::format(", where that form would mean {}",
                                   printable_json(field_to_json(field, back))));
  }
  return text;
}

}  // namespace mamba
