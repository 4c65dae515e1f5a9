// SPDX-License-Identifier: Apache-2.0
// The table behind config_fields(). The ranges are far beyond any model that fits a machine and
// small enough that every product of two of them fits into 64 bits.
#include "formats/config_fields.h"

#include <limits>
#include <string_view>
#include <type_traits>

#include "base/check.h"

namespace mamba {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr FieldUse kBoth = FieldUse::kBoth, kMamba1 = FieldUse::kMamba1,
                   kMamba2 = FieldUse::kMamba2;
constexpr FieldEffect kFunction = FieldEffect::kFunction, kTraining = FieldEffect::kTraining;
constexpr double kMaxVocab = 1 << 24, kMaxWidth = 1 << 20;

const ConfigField kFields[] = {
    {"mixer", &Config::mixer},
    {"model_type", &Config::model_type},
    {"vocab_size", &Config::vocab_size, kBoth, kFunction, 1, kMaxVocab},
    {"d_model", &Config::d_model, kBoth, kFunction, 1, 1 << 17},
    {"n_layer", &Config::n_layer, kBoth, kFunction, 1, 4096},
    {"d_intermediate", &Config::d_intermediate, kBoth, kFunction, 0, kMaxWidth},
    {"norm", &Config::norm},
    {"norm_eps", &Config::norm_eps, kBoth, kFunction, 1e-30, 1},
    {"residual_in_fp32", &Config::residual_in_fp32},
    {"tie_embeddings", &Config::tie_embeddings},
    {"d_inner", &Config::d_inner, kBoth, kFunction, 1, kMaxWidth},
    {"d_state", &Config::d_state, kBoth, kFunction, 1, 4096},
    {"d_conv", &Config::d_conv, kBoth, kFunction, 1, 256},
    {"conv_bias", &Config::conv_bias},
    {"conv_silu", &Config::conv_silu},
    {"conv_init", &Config::conv_init, kBoth, kTraining, 0, 1e3},
    {"use_bias", &Config::use_bias},
    {"dt_min", &Config::dt_min, kBoth, kTraining, 1e-12, 1e3},
    {"dt_max", &Config::dt_max, kBoth, kTraining, 1e-12, 1e3},
    {"dt_init_floor", &Config::dt_init_floor, kBoth, kTraining, 0, 1e3},
    {"dt_rank", &Config::dt_rank, kMamba1, kFunction, 1, 1 << 17},
    {"dt_init_random", &Config::dt_init_random, kMamba1, kTraining},
    {"dt_scale", &Config::dt_scale, kMamba1, kTraining, 0, 1e6},
    {"bcdt_rms", &Config::bcdt_rms, kMamba1},
    {"bcdt_rms_eps", &Config::bcdt_rms_eps, kMamba1, kFunction, 1e-30, 1},
    {"headdim", &Config::headdim, kMamba2, kFunction, 1, 1 << 16},
    {"n_groups", &Config::n_groups, kMamba2, kFunction, 1, 1 << 16},
    {"d_ssm", &Config::d_ssm, kMamba2, kFunction, 0, kMaxWidth},
    {"chunk_size", &Config::chunk_size, kMamba2, kTraining, 1, 1 << 16},
    {"D_has_hdim", &Config::D_has_hdim, kMamba2},
    {"gated_norm", &Config::gated_norm, kMamba2},
    {"norm_before_gate", &Config::norm_before_gate, kMamba2},
    {"norm_groups", &Config::norm_groups, kMamba2, kFunction, 1, 1 << 16},
    {"A_init_min", &Config::A_init_min, kMamba2, kTraining, 1e-6, 1e6},
    {"A_init_max", &Config::A_init_max, kMamba2, kTraining, 1e-6, 1e6},
    {"dt_limit_min", &Config::dt_limit_min, kMamba2, kFunction, 0, 1e6},
    {"dt_limit_max", &Config::dt_limit_max, kMamba2, kFunction, 0, kInf},
    {"learnable_init_states", &Config::learnable_init_states, kMamba2},
    {"embedding_std", &Config::embedding_std, kBoth, kTraining, 0, 1e3},
    {"rescale_prenorm_residual", &Config::rescale_prenorm_residual, kBoth, kTraining},
    {"bos_token_id", &Config::bos_token_id, kBoth, kTraining, -1, kMaxVocab - 1},
    {"eos_token_id", &Config::eos_token_id, kBoth, kTraining, -1, kMaxVocab - 1},
    {"pad_token_id", &Config::pad_token_id, kBoth, kTraining, -1, kMaxVocab - 1},
    {"more_eos_token_ids", &Config::more_eos_token_ids, kBoth, kTraining, 0, kMaxVocab - 1},
};

// Names in the files where they differ from ours; null: the same, or none.
struct FileKeys {
  const char* field;
  const char* transformers;
  const char* state_spaces;
};
constexpr FileKeys kFileKeys[] = {
    {"d_model", "hidden_size", nullptr},
    {"n_layer", "num_hidden_layers", nullptr},
    {"norm", nullptr, "rms_norm"},
    {"norm_eps", "layer_norm_epsilon", nullptr},
    {"tie_embeddings", "tie_word_embeddings", nullptr},
    {"d_inner", "intermediate_size", "expand * d_model"},
    {"d_state", "state_size", nullptr},
    {"d_conv", "conv_kernel", nullptr},
    {"conv_bias", "use_conv_bias", nullptr},
    {"conv_silu", "hidden_act", "activation"},
    {"use_bias", nullptr, "bias"},
    {"dt_min", "time_step_min", nullptr},
    {"dt_max", "time_step_max", nullptr},
    {"dt_init_floor", "time_step_floor", nullptr},
    {"dt_rank", "time_step_rank", nullptr},
    {"dt_init_random", "time_step_init_scheme", "dt_init"},
    {"dt_scale", "time_step_scale", nullptr},
    {"bcdt_rms_eps", "mixer_rms_eps", nullptr},
    {"headdim", "head_dim", nullptr},
    {"n_groups", nullptr, "ngroups"},
    {"norm_groups", nullptr, "ngroups"},
    {"gated_norm", nullptr, "rmsnorm"},
    {"A_init_min", nullptr, "A_init_range[0]"},
    {"A_init_max", nullptr, "A_init_range[1]"},
    {"dt_limit_min", "time_step_limit[0]", "dt_limit[0]"},
    {"dt_limit_max", "time_step_limit[1]", "dt_limit[1]"},
    {"embedding_std", "initializer_range", nullptr},
};

// Behind "mamba." or "mamba2."; a field may be the quotient of two keys.
struct GgufKey {
  const char* field;
  const char* key;
  const char* divisor = nullptr;
};
constexpr GgufKey kGgufKeys[] = {
    {"d_model", "embedding_length"},
    {"n_layer", "block_count"},
    {"d_inner", "ssm.inner_size"},
    {"d_ssm", "ssm.inner_size"},
    {"d_state", "ssm.state_size"},
    {"d_conv", "ssm.conv_kernel"},
    {"dt_rank", "ssm.time_step_rank"},
    {"headdim", "ssm.inner_size", "ssm.time_step_rank"},
    {"n_groups", "ssm.group_count"},
    {"norm_groups", "ssm.group_count"},
    {"norm_eps", "attention.layer_norm_rms_epsilon"},
    {"bcdt_rms", "ssm.dt_b_c_rms"},
};

std::string gguf_key(const std::string& architecture, const std::string& field) {
  for (const GgufKey& entry : kGgufKeys) {
    if (field != entry.field) continue;
    const std::string key = architecture + "." + entry.key;
    return entry.divisor == nullptr ? key : key + " / " + architecture + "." + entry.divisor;
  }
  return field;
}

void check_choice(const std::string& name, const std::string& value,
                  std::initializer_list<std::string_view> allowed) {
  std::string list;
  for (const std::string_view choice : allowed) {
    if (value == choice) return;
    list += (list.empty() ? "\"" : ", \"") + std::string(choice) + "\"";
  }
  fail(ErrorCode::kInvalidArgument,
       "[config] expected {} to be one of {}, got \"{}\"; choose one of them", name, list,
       printable(value));
}

template <class T>
void check_range(const ConfigField& field, const std::string& name, T value) {
  const double v = static_cast<double>(value);
  if (v >= field.low && v <= field.high) return;  // NaN fails both
  if constexpr (std::is_integral_v<T>) {
    fail(ErrorCode::kInvalidArgument, "[config] expected {} from {} to {}, got {}; correct it",
         name, static_cast<int64_t>(field.low), static_cast<int64_t>(field.high), value);
  } else {
    fail(ErrorCode::kInvalidArgument, "[config] expected {} from {} to {}, got {}; correct it",
         name, field.low, field.high, value);
  }
}

}  // namespace

std::span<const ConfigField> config_fields() { return kFields; }

const ConfigField* find_config_field(const std::string& name) {
  for (const ConfigField& field : kFields) {
    if (name == field.name) return &field;
  }
  return nullptr;
}

bool is_read(const ConfigField& field, const Config& config) {
  return field.use == kBoth || (field.use == kMamba1) == (config.mixer == "mamba1");
}

std::string config_key(ConfigForm form, const std::string& field_name) {
  if (form == ConfigForm::kGgufMamba) return gguf_key("mamba", field_name);
  if (form == ConfigForm::kGgufMamba2) return gguf_key("mamba2", field_name);
  for (const FileKeys& keys : kFileKeys) {
    if (field_name != keys.field || form == ConfigForm::kFields) continue;
    const char* key = form == ConfigForm::kTransformers ? keys.transformers : keys.state_spaces;
    return key == nullptr ? field_name : key;
  }
  return field_name;
}

void check_field(const ConfigField& field, const Config& config, ConfigForm form) {
  const std::string name = config_key(form, field.name);
  if (field.member == ConfigField::Member(&Config::mixer)) {
    check_choice(name, config.mixer, {"mamba1", "mamba2"});
  } else if (field.member == ConfigField::Member(&Config::model_type)) {
    check_choice(name, config.model_type, {"mamba", "mamba2", "falcon_mamba"});
  } else if (const auto* integer = std::get_if<int64_t Config::*>(&field.member)) {
    check_range(field, name, config.*(*integer));
  } else if (const auto* real = std::get_if<double Config::*>(&field.member)) {
    check_range(field, name, config.*(*real));
  } else if (const auto* list = std::get_if<std::vector<int64_t> Config::*>(&field.member)) {
    for (const int64_t value : config.*(*list)) check_range(field, name, value);
  }
}

Json field_to_json(const ConfigField& field, const Config& config) {
  return std::visit(
      [&](auto member) -> Json {
        const auto& value = config.*member;
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, NormKind>) {
          return value == NormKind::kRms ? "rms" : "layer";
        } else if constexpr (std::is_same_v<T, double>) {
          return json_of_number(value);
        } else {
          return value;
        }
      },
      field.member);
}

void field_from_json(const ConfigField& field, const Json& value, Config& config,
                     const std::string& where) {
  Json holder = Json::object();
  holder[field.name] = value;
  std::visit(
      [&](auto member) {
        auto& target = config.*member;
        using T = std::decay_t<decltype(target)>;
        if constexpr (std::is_same_v<T, NormKind>) {
          const std::string text = get_string(holder, field.name, where);
          if (text != "rms" && text != "layer") {
            fail(ErrorCode::kBadFile,
                 "[{}] expected \"{}\" to be \"rms\" or \"layer\", got \"{}\"; correct "
                 "the file",
                 where, field.name, printable(text));
          }
          target = text == "rms" ? NormKind::kRms : NormKind::kLayer;
        } else if constexpr (std::is_same_v<T, double>) {
          target = get_number(holder, field.name, field.low, field.high, where);
        } else if constexpr (std::is_same_v<T, bool>) {
          target = get_bool(holder, field.name, where);
        } else if constexpr (std::is_same_v<T, int64_t>) {
          target = get_int(holder, field.name, static_cast<int64_t>(field.low),
                           static_cast<int64_t>(field.high), where);
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
          target = get_int_list(holder, field.name, static_cast<int64_t>(field.low),
                                static_cast<int64_t>(field.high), where);
        } else {
          target = get_string(holder, field.name, where);
        }
      },
      field.member);
}

}  // namespace mamba
