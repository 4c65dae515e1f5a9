// SPDX-License-Identifier: Apache-2.0
// Metadata of GGUF files <-> Config.
#include <cstdlib>
#include <limits>

#include "base/check.h"
#include "base/json.h"
#include "formats/config_fields.h"
#include "formats/gguf_model.h"
#include "formats/hf_config.h"

namespace mamba {
namespace {

constexpr const char* kConfigKey = "mamba_cpp.config";
constexpr std::string_view kConfigWhere = "[config] ";  // where check_config() sees errors
constexpr int64_t kMaxSize = int64_t{1} << 40;
constexpr double kFalconEps = 1e-6;  // of Falcon-Mamba's norms on B, C and dt; no key has it

// A number that was rounded to f32, as the shortest decimal that rounds to it: 1e-5 again.
double shortest(double value) {
  return std::strtod(fmt::format("{}", static_cast<float>(value)).c_str(), nullptr);
}

void expect_architecture(const GgufFile& file, const std::string& architecture) {
  const std::string type = file.get_string("general.type", "model");
  if (type != "model") {
    fail(ErrorCode::kUnsupported, "[{}] expected a file of general.type \"model\", got \"{}\"",
         file.where(), printable(type));
  }
  if (architecture == "mamba" || architecture == "mamba2") return;
  fail(ErrorCode::kUnsupported,
       "[{}] expected general.architecture \"mamba\" or \"mamba2\", got \"{}\"; this program runs "
       "Mamba models alone",
       file.where(), printable(architecture));
}

void read_token_ids(const GgufFile& file, Config* c) {
  const int64_t most = c->vocab_size - 1;
  const auto id = [&](const char* name) {
    const std::string key = std::string("tokenizer.ggml.") + name;
    const GgufValue* value = file.find_value(key);
    // Some tools write -1, as a signed or an unsigned number, where there is none.
    if (value != nullptr && value->is_integer() &&
        (value->integer == -1 || value->integer == int64_t{0xffffffff})) {
      return int64_t{-1};
    }
    return file.get_int(key, 0, most, -1);
  };
  c->bos_token_id = id("bos_token_id");
  c->eos_token_id = id("eos_token_id");
  c->pad_token_id = id("padding_token_id");
  const int64_t turn = id("eot_token_id");
  if (turn >= 0 && c->eos_token_id >= 0 && turn != c->eos_token_id) {
    c->more_eos_token_ids = {turn};
  }
}

// What both say must agree, or a tool has changed one of the two.
void expect_same(const GgufFile& file, const Config& own, const Config& c) {
  const ConfigField::Member kBothSay[] = {
      &Config::mixer,   &Config::vocab_size, &Config::d_model, &Config::n_layer,
      &Config::d_inner, &Config::d_state,    &Config::d_conv,  &Config::tie_embeddings,
      &Config::dt_rank, &Config::n_groups,   &Config::headdim, &Config::bcdt_rms};
  for (const ConfigField& field : config_fields()) {
    for (const ConfigField::Member& member : kBothSay) {
      if (field.member != member || !is_read(field, c)) continue;
      const Json said = field_to_json(field, own), meant = field_to_json(field, c);
      if (said == meant) continue;
      fail(ErrorCode::kBadFile,
           "[{}] expected {} {} as the other metadata and the tensors say, got {} in \"{}\"; "
           "remove that key or convert the model again",
           file.where(), field.name, printable_json(meant), printable_json(said), kConfigKey);
    }
  }
}

Config from_keys(const GgufFile& file) {
  const std::string architecture = file.get_string("general.architecture");
  expect_architecture(file, architecture);
  const auto size = [&](const char* name) {
    return file.get_int(architecture + "." + name, 1, kMaxSize);
  };
  Config c;
  c.mixer = architecture == "mamba2" ? "mamba2" : "mamba1";
  c.model_type = architecture;
  const TensorInfo& embedding = file.get("token_embd.weight");
  c.d_model = size("embedding_length");
  if (embedding.shape.size() != 2 || embedding.shape[1] != c.d_model) {
    fail(ErrorCode::kBadFile,
         "[{}] expected tensor \"token_embd.weight\" of shape [vocabulary, {}], got {}; the file "
         "is damaged",
         file.where(), c.d_model, shape_text(embedding.shape));
  }
  c.vocab_size = embedding.shape[0];
  c.n_layer = size("block_count");
  c.d_inner = c.d_ssm = size("ssm.inner_size");
  c.d_state = size("ssm.state_size");
  c.d_conv = size("ssm.conv_kernel");
  c.norm_eps = shortest(file.get_number(architecture + ".attention.layer_norm_rms_epsilon", 0, 1));
  c.tie_embeddings = file.find("output.weight") == nullptr;
  c.conv_bias = file.find("blk.0.ssm_conv1d.bias") != nullptr;
  const int64_t rank = size("ssm.time_step_rank");
  if (c.mixer == "mamba2") {
    if (c.d_inner % rank != 0) {
      fail(ErrorCode::kBadFile,
           "[{}] expected mamba2.ssm.inner_size as a multiple of the {} heads "
           "(mamba2.ssm.time_step_rank), got {}; the file is damaged",
           file.where(), rank, c.d_inner);
    }
    c.headdim = c.d_inner / rank;
    c.n_groups = c.norm_groups = file.get_int("mamba2.ssm.group_count", 1, kMaxSize, 1);
  } else {
    c.dt_rank = rank;
    c.bcdt_rms = file.get_bool("mamba.ssm.dt_b_c_rms", false);
    if (c.bcdt_rms) c.model_type = "falcon_mamba", c.bcdt_rms_eps = kFalconEps;
  }
  read_token_ids(file, &c);
  return c;
}

}  // namespace

Config read_gguf_config(const GgufFile& file) {
  Config c = from_keys(file);
  try {
    check_config(c, c.mixer == "mamba2" ? ConfigForm::kGgufMamba2 : ConfigForm::kGgufMamba);
  } catch (const Error& error) {  // here the file is at fault, not the caller
    const std::string text = error.what();
    const size_t begin = text.starts_with(kConfigWhere) ? kConfigWhere.size() : 0;
    throw Error(ErrorCode::kBadFile, fmt::format("[{}] {}", file.where(), text.substr(begin)));
  }
  if (file.find_value(kConfigKey) == nullptr) return c;
  const Config own =
      parse_config(file.get_string(kConfigKey), file.where() + " " + kConfigKey, nullptr);
  expect_same(file, own, c);
  return own;
}

GgufMetadata gguf_config_metadata(const Config& config) {
  const auto refuse = [](const char* what) {
    fail(ErrorCode::kUnsupported,
         "[gguf] expected a model that GGUF's architectures mamba and mamba2 can express, got {}; "
         "keep the hf form",
         what);
  };
  const Config& c = config;
  const bool two = c.mixer == "mamba2";
  if (c.norm != NormKind::kRms) refuse("LayerNorm (norm)");
  if (c.d_intermediate > 0) refuse("a gated MLP in every block (d_intermediate)");
  if (c.use_bias) refuse("biases of in_proj and out_proj (use_bias)");
  if (!c.conv_silu) refuse("a convolution without SiLU (conv_silu)");
  if (two && c.d_ssm != c.d_inner) refuse("a gated MLP beside the state space part (d_ssm)");
  if (two && c.D_has_hdim) refuse("D per channel (D_has_hdim)");
  if (two && !c.gated_norm) refuse("a gate without a norm (rmsnorm)");
  if (two && c.norm_before_gate) refuse("a norm before the gate (norm_before_gate)");
  if (two && c.norm_groups != c.n_groups) refuse("a gated norm of other groups than B and C");
  if (two && c.learnable_init_states) refuse("learned initial states (learnable_init_states)");
  const bool limits =
      c.dt_limit_min > 0 || c.dt_limit_max < std::numeric_limits<double>::infinity();
  if (two && limits) refuse("limits of dt (time_step_limit)");

  const std::string architecture = two ? "mamba2" : "mamba";
  GgufMetadata m;
  m["general.architecture"] = GgufValue::string(architecture);
  m["general.type"] = GgufValue::string("model");
  const auto put = [&](const char* name, int64_t value) {
    m[architecture + "." + name] = GgufValue::u32(value);
  };
  put("context_length", int64_t{1} << 20);  // there is none; what llama.cpp's converter writes
  put("embedding_length", c.d_model);
  put("feed_forward_length", 0);
  put("attention.head_count", 0);
  put("block_count", c.n_layer);
  put("vocab_size", c.vocab_size);
  put("ssm.conv_kernel", c.d_conv);
  put("ssm.inner_size", c.d_inner);
  put("ssm.state_size", c.d_state);
  put("ssm.time_step_rank", two ? c.n_heads() : c.dt_rank);
  if (two) put("ssm.group_count", c.n_groups);
  if (!two) m["mamba.ssm.dt_b_c_rms"] = GgufValue::boolean(c.bcdt_rms);
  m[architecture + ".attention.layer_norm_rms_epsilon"] = GgufValue::f32(c.norm_eps);
  m[kConfigKey] = GgufValue::string(write_config(c));
  return m;
}

}  // namespace mamba
