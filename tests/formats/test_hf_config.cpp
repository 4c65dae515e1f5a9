// SPDX-License-Identifier: Apache-2.0
// config.json: the writer's round trip, presets and every refusal.
#include <limits>

#include "base/atomic_file.h"
#include "base/check.h"
#include "formats/hf_config.h"
#include "support/expect_error.h"
#include "support/random_config.h"

namespace mamba {
namespace {

using test::fails_with;
using test::ScratchFolder;

// Parameters of the model, from the shapes of its tensors.
int64_t parameters(const Config& c) {
  const int64_t D = c.d_model, E = c.d_inner, N = c.d_state, bias = c.use_bias ? 1 : 0;
  int64_t mixer = 0;
  if (c.mixer == "mamba1") {
    mixer = D * 2 * E + bias * (2 * E + D) + E * (c.d_conv + c.conv_bias) +
            E * (c.dt_rank + 2 * N) + c.dt_rank * E + E + E * N + E + E * D;
  } else {
    const int64_t H = c.n_heads(), conv = E + 2 * c.n_groups * N;
    mixer = D * (E + conv + H) + bias * (E + conv + H + D) + conv * (c.d_conv + c.conv_bias) +
            3 * H + E + E * D;
  }
  return c.vocab_size * D * (c.tie_embeddings ? 1 : 2) + c.n_layer * (mixer + D) + D;
}

Config reread(const Config& config, std::vector<std::string>* warnings = nullptr) {
  return parse_config(write_config(config), "round trip", warnings);
}

TEST(hf_config, writing_and_reading_gives_every_config_back) {
  test::Random random(3);
  for (int i = 0; i < 2000; ++i) {
    const Config config = test::random_config(random);
    std::vector<std::string> warnings;
    ASSERT_EQ(reread(config, &warnings), config) << write_config(config);
    EXPECT_TRUE(warnings.empty()) << warnings[0];
  }
  for (const std::string& name : list_presets()) {
    EXPECT_EQ(reread(preset_config(name)), preset_config(name));
  }
}

// transformers 5.23: Mamba2Config(vocab_size=64, hidden_size=32, num_heads=4, head_dim=16,
// n_groups=2, num_hidden_layers=3).save_pretrained, less "transformers_version".
TEST(hf_config, writes_the_text_that_transformers_writes) {
  const std::string text = R"({
  "bos_token_id": 0,
  "chunk_size": 256,
  "conv_kernel": 4,
  "eos_token_id": 2,
  "expand": 2,
  "head_dim": 16,
  "hidden_act": "silu",
  "hidden_size": 32,
  "initializer_range": 0.1,
  "layer_norm_epsilon": 1e-05,
  "model_type": "mamba2",
  "n_groups": 2,
  "num_heads": 4,
  "num_hidden_layers": 3,
  "pad_token_id": 1,
  "rescale_prenorm_residual": false,
  "residual_in_fp32": true,
  "state_size": 128,
  "tie_word_embeddings": false,
  "time_step_floor": 0.0001,
  "time_step_limit": [
    0.0,
    {
      "__float__": "Infinity"
    }
  ],
  "time_step_max": 0.1,
  "time_step_min": 0.001,
  "time_step_rank": 2,
  "use_bias": false,
  "use_cache": true,
  "use_conv_bias": true,
  "vocab_size": 64
}
)";
  const Config config = parse_config(text, "text");
  EXPECT_EQ(config.d_ssm, 64);
  EXPECT_EQ(config.norm_groups, 2);
  std::string with_name = text;
  with_name.replace(0, 1, "{\n  \"architectures\": [\n    \"Mamba2ForCausalLM\"\n  ],");
  EXPECT_EQ(write_config(config), with_name);
}

TEST(hf_config, only_what_transformers_computes_names_an_architecture) {
  const auto written = [](const Config& c) { return parse_json(write_config(c), "written"); };
  for (const std::string& name : list_presets()) {
    const Json json = written(preset_config(name));
    EXPECT_TRUE(is_transformers_model(preset_config(name))) << name;
    EXPECT_EQ(json["architectures"][0], name.find('2') != std::string::npos && name != "mamba-2.8b"
                                            ? "Mamba2ForCausalLM"
                                            : "MambaForCausalLM");
    // With true there, transformers would change the out_proj weights that it loads.
    EXPECT_EQ(json["rescale_prenorm_residual"], false);
    EXPECT_EQ(json["mamba_cpp"], Json::parse(R"({"rescale_prenorm_residual": true})")) << name;
  }
  const auto refuse = [&](const char* preset, auto change) {
    Config c = preset_config(preset);
    change(c);
    EXPECT_FALSE(is_transformers_model(c)) << write_config(c);
    EXPECT_FALSE(written(c).contains("architectures"));
  };
  for (const char* preset : {"tiny", "tiny2"}) {
    refuse(preset, [](Config& c) { c.norm = NormKind::kLayer; });
    refuse(preset, [](Config& c) { c.d_intermediate = 128; });
    refuse(preset, [](Config& c) { c.conv_silu = false; });
  }
  refuse("tiny", [](Config& c) { c.bcdt_rms = true; });
  refuse("tiny2", [](Config& c) { c.d_ssm = 128; });
  refuse("tiny2", [](Config& c) { c.D_has_hdim = true; });
  refuse("tiny2", [](Config& c) { c.gated_norm = false; });
  refuse("tiny2", [](Config& c) { c.norm_before_gate = true; });
  refuse("tiny2", [](Config& c) { c.norm_groups = 2; });
  refuse("tiny2", [](Config& c) { c.learnable_init_states = true; });
  refuse("tiny2", [](Config& c) { c.d_inner = c.d_ssm = 192; });  // "expand" must be whole there
  Config falcon = preset_config("tiny");
  falcon.model_type = "falcon_mamba";
  falcon.bcdt_rms = true;
  falcon.bcdt_rms_eps = 1e-5;
  falcon.d_inner = 192;
  falcon.conv_init = 0.5;  // initial weights only
  EXPECT_EQ(written(falcon)["architectures"][0], "FalconMambaForCausalLM");
  EXPECT_EQ(written(falcon)["intermediate_size"], 192);
  falcon.rescale_prenorm_residual = false;
  EXPECT_EQ(written(falcon)["mamba_cpp"], Json::parse(R"({"conv_init": 0.5})"));
}

// A transformers config of each kind with every key that must be there.
Json minimal(const std::string& type) {
  Json json = parse_json(R"({"vocab_size":64,"hidden_size":32,"num_hidden_layers":2,"state_size":8,
    "layer_norm_epsilon":1e-5,"conv_kernel":4,"use_bias":false,"use_conv_bias":true,
    "hidden_act":"silu",
    "expand":2})",
                         "minimal");
  json["model_type"] = type;
  if (type == "mamba2") {
    json.update(
        parse_json(R"({"num_heads":4,"head_dim":16,"n_groups":2,"time_step_limit":[0.0,Infinity],
      "tie_word_embeddings":true})",
                   "minimal"));
  } else {
    json["time_step_rank"] = 2;
  }
  return json;
}

TEST(hf_config, no_key_is_filled_from_a_class_default) {
  for (const char* type : {"mamba", "falcon_mamba", "mamba2"}) {
    const Json good = minimal(type);
    const Config config = parse_config(good.dump(), "good");
    EXPECT_EQ(config.d_inner, 64);
    EXPECT_TRUE(config.tie_embeddings);
    EXPECT_EQ(config.eos_token_id, -1);
    for (const auto& [key, value] : good.items()) {
      if (key == "model_type") continue;
      Json less = good;
      less.erase(key);
      const std::string missing = key == "expand" ? "intermediate_size" : key;
      EXPECT_TRUE(fails_with(ErrorCode::kBadFile,
                             {"[c.json]", "the key \"" + missing + "\"", "found none"},
                             [&] { parse_config(less.dump(), "c.json"); }))
          << type << " " << key;
    }
  }
  EXPECT_EQ(parse_config(minimal("falcon_mamba").dump(), "f").bcdt_rms_eps, 1e-6);
  EXPECT_EQ(parse_config(minimal("mamba2").dump(), "f").chunk_size, 256);
}

// Parses the minimal config of a type with one key set to `value` (JSON text).
Config with(const std::string& type, const std::string& key, const std::string& value,
            std::vector<std::string>* warnings = nullptr) {
  std::string text = minimal(type).dump();
  if (minimal(type).contains(key)) {
    Json json = minimal(type);
    json.erase(key);
    text = json.dump();
  }
  text.replace(0, 1, "{\"" + key + "\":" + value + ",");
  return parse_config(text, "c.json", warnings);
}

TEST(hf_config, values_are_checked) {
  const auto bad = [](const char* type, const char* key, const char* value,
                      std::initializer_list<std::string> parts,
                      ErrorCode code = ErrorCode::kBadFile) {
    EXPECT_TRUE(fails_with(code, parts, [&] { with(type, key, value); })) << key << " " << value;
  };
  constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
  bad("mamba", "vocab_size", "0", {"[c.json]", "\"vocab_size\"", "got 0"});
  bad("mamba", "vocab_size", "1000000000", {"[c.json]", "vocab_size from 1 to 16777216"});
  bad("mamba", "hidden_size", "\"x\"", {"\"hidden_size\" to be an integer", "\"x\""});
  bad("mamba", "hidden_size", "1e400", {"number overflow"});
  bad("mamba", "layer_norm_epsilon", "NaN",
      {"\"layer_norm_epsilon\"", "got {\"__float__\":\"NaN\"}"});
  bad("mamba", "layer_norm_epsilon", "0", {"layer_norm_epsilon from 1e-30"});
  bad("mamba", "use_bias", "1", {"\"use_bias\" to be true or false, got 1"});
  bad("mamba", "hidden_act", "\"gelu\"", {"\"hidden_act\" to be silu or swish, got \"gelu\""},
      kUnsupported);
  bad("mamba", "expand", "1.51", {"expand * hidden_size to be whole", "48.32"});
  bad("mamba", "time_step_rank", "\"many\"", {"\"time_step_rank\" to be an integer"});
  bad("mamba", "time_step_init_scheme", "\"zero\"", {"random or constant, got \"zero\""});
  bad("mamba", "time_step_min", "5", {"time_step_min at most time_step_max"});
  bad("mamba", "time_step_scale", "-1", {"\"time_step_scale\""});
  bad("mamba", "rms_norm", "false", {"\"rms_norm\" true", "got false"}, kUnsupported);
  bad("mamba", "quantization_config", "{\"bits\":4}", {"\"quantization_config\""}, kUnsupported);
  bad("mamba", "d_model", "33", {"\"d_model\" to agree", "says 32, got 33"});
  bad("mamba", "d_inner", "65", {"\"d_inner\" to agree", "says 64"});
  bad("mamba", "n_layer", "3", {"\"n_layer\" to agree", "says 2"});
  bad("mamba", "eos_token_id", "64", {"eos_token_id below vocab_size = 64"});
  bad("mamba", "eos_token_id", "[1.5]", {"\"eos_token_id\" to be an integer"});
  bad("mamba", "eos_token_id", "[1, -1]", {"\"eos_token_id\" to be an integer", "got -1"});
  bad("mamba", "eos_token_id", "[1, 64]", {"more_eos_token_ids below vocab_size = 64"});
  bad("mamba", "mamba_cpp", "[]", {"\"mamba_cpp\" to be an object, got []"});
  bad("mamba", "mamba_cpp", "{\"color\":1}", {"under \"mamba_cpp\", got \"color\"", "newer"},
      kUnsupported);
  bad("mamba", "mamba_cpp", "{\"norm\":\"batch\"}",
      {"c.json: mamba_cpp", "\"rms\" or \"layer\", got \"batch\""});
  bad("mamba", "mamba_cpp", "{\"d_model\":64}",
      {"only what the other keys cannot say", "\"hidden_size\" 64", "32"});
  bad("mamba", "mamba_cpp", "{\"d_ssm\":-1}", {"\"d_ssm\" to be an integer"});
  bad("mamba", "mamba_cpp", "{\"mixer\":\"mamba2\"}", {"num_heads"});
  bad("mamba2", "num_heads", "3", {"num_heads * head_dim to be 64", "got 3 * 16"});
  bad("mamba2", "num_heads", "4294967296", {"num_heads * head_dim to be 64"});
  bad("mamba2", "n_groups", "3", {"n_groups to divide the 4 heads"});
  bad("mamba2", "intermediate_size", "48", {"num_heads * head_dim to be 48"});
  bad("mamba2", "time_step_limit", "[0]", {"\"time_step_limit\" as [low, high], got [0]"});
  bad("mamba2", "time_step_limit", "[0, null]", {"\"time_step_limit\" to be a number, got null"});
  bad("mamba2", "time_step_limit", "[0, NaN]", {"time_step_limit[1] from 0 to inf, got nan"});
  bad("mamba2", "time_step_limit", "[1, 0.5]", {"time_step_limit[0] at most time_step_limit[1]"});
  bad("falcon_mamba", "mixer_rms_eps", "2", {"\"mixer_rms_eps\""});
}

TEST(hf_config, values_are_read) {
  EXPECT_EQ(with("mamba", "time_step_rank", "\"auto\"").dt_rank, 2);
  EXPECT_FALSE(with("mamba", "time_step_init_scheme", "\"constant\"").dt_init_random);
  EXPECT_EQ(with("mamba", "intermediate_size", "48").d_inner, 48);
  EXPECT_EQ(with("mamba", "expand", "1.5").d_inner, 48);
  EXPECT_EQ(with("mamba", "hidden_act", "\"swish\"").conv_silu, true);
  EXPECT_FALSE(with("mamba", "tie_word_embeddings", "false").tie_embeddings);
  EXPECT_EQ(with("mamba2", "time_step_limit", "[0.25, {\"__float__\": \"Infinity\"}]").dt_limit_min,
            0.25);
  EXPECT_EQ(with("falcon_mamba", "mixer_rms_eps", "0.5").bcdt_rms_eps, 0.5);
  std::vector<std::string> warnings;
  const Config several = with("mamba", "eos_token_id", "[5, 6, 2]", &warnings);
  EXPECT_EQ(several.eos_token_id, 5);
  EXPECT_EQ(several.more_eos_token_ids, (std::vector<int64_t>{6, 2}));
  EXPECT_EQ(several.all_eos_token_ids(), (std::vector<int64_t>{5, 6, 2}));
  const std::string written = write_config(several);
  EXPECT_EQ(parse_config(written, "again"), several);
  EXPECT_EQ(written.find("more_eos_token_ids"), std::string::npos);
  EXPECT_EQ(parse_json(written, "again")["eos_token_id"], Json({5, 6, 2}));
  EXPECT_TRUE(with("mamba", "eos_token_id", "[]", &warnings).all_eos_token_ids().empty());
  EXPECT_TRUE(warnings.empty());
  EXPECT_EQ(with("mamba", "bos_token_id", "[5, 6]", &warnings).bos_token_id, 5);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("[c.json] \"bos_token_id\" lists 2 ids"), std::string::npos);
}

TEST(hf_config, unknown_keys_give_warnings_and_harmless_ones_none) {
  std::vector<std::string> warnings;
  with("mamba", "sliding_window", "5", &warnings);
  with("mamba", "ssm_cfg", "{\"d_state\":4}", &warnings);
  with("mamba", "num_heads", "4", &warnings);
  with("mamba2", "norm_before_gate", "true", &warnings);
  ASSERT_EQ(warnings.size(), 4u);
  EXPECT_NE(warnings[0].find("\"sliding_window\": 5 is ignored"), std::string::npos);
  EXPECT_NE(warnings[1].find("\"ssm_cfg\""), std::string::npos);
  EXPECT_NE(warnings[2].find("\"num_heads\""), std::string::npos);
  EXPECT_NE(warnings[3].find("\"norm_before_gate\""), std::string::npos);
  warnings.clear();
  with("mamba", "ssm_cfg", "{}", &warnings);
  with("mamba", "dtype", "\"float32\"", &warnings);
  with("mamba2", "norm_before_gate", "false", &warnings);
  with("mamba2", "rms_norm", "true", &warnings);
  with("mamba2", "quantization_config", "null", &warnings);
  EXPECT_TRUE(warnings.empty());
}

TEST(state_spaces_config, options_are_read) {
  const Config c = parse_config(
      R"({"d_model":64,"n_layer":2,"vocab_size":100,"d_intermediate":130,"rms_norm":false,
      "tie_embeddings":false,"pad_vocab_size_multiple":16,"attn_layer_idx":[],"attn_cfg":{"x":1},
      "ssm_cfg":{"layer":"Mamba2","d_state":32,"d_conv":3,"conv_init":0.5,"expand":4,"headdim":16,
      "d_ssm":128,"ngroups":4,"A_init_range":[2,3],"D_has_hdim":true,"rmsnorm":true,
      "norm_before_gate":true,"dt_min":0.01,"dt_max":0.2,"dt_init_floor":0.005,
      "dt_limit":[0.1,Infinity],
      "bias":true,"conv_bias":false,"chunk_size":32,"use_mem_eff_path":true,"activation":"silu",
      "learnable_init_states":true,"process_group":null,"sequence_parallel":true}})",
      "s");
  Config want;
  want.mixer = want.model_type = "mamba2";
  want.d_model = 64, want.n_layer = 2, want.vocab_size = 112, want.d_intermediate = 256;
  want.norm = NormKind::kLayer, want.tie_embeddings = false;
  want.d_state = 32, want.d_conv = 3, want.conv_init = 0.5, want.d_inner = 256, want.headdim = 16;
  want.d_ssm = 128, want.n_groups = want.norm_groups = 4, want.A_init_min = 2, want.A_init_max = 3;
  want.D_has_hdim = want.norm_before_gate = want.use_bias = want.learnable_init_states = true;
  want.dt_min = 0.01, want.dt_max = 0.2, want.dt_init_floor = 0.005, want.dt_limit_min = 0.1;
  want.conv_bias = false, want.chunk_size = 32;
  EXPECT_EQ(c, want);
  const Config one = parse_config(
      R"({"d_model":40,"n_layer":2,"vocab_size":8,"ssm_cfg":{"layer":"Mamba1","dt_rank":"auto",
      "dt_init":"constant","dt_scale":2.0,"d_state":4,"use_fast_path":false,"bias":true}})",
      "s");
  EXPECT_EQ(one.dt_rank, 3);
  EXPECT_FALSE(one.dt_init_random);
  EXPECT_EQ(one.dt_scale, 2);
  EXPECT_TRUE(one.use_bias);
  EXPECT_EQ(one.vocab_size, 8);
}

TEST(state_spaces_config, wrong_files_are_refused) {
  const auto bad = [](const std::string& more, std::initializer_list<std::string> parts,
                      ErrorCode code = ErrorCode::kBadFile) {
    const std::string text = R"({"d_model":64,"n_layer":2,"vocab_size":100)" + more + "}";
    EXPECT_TRUE(fails_with(code, parts, [&] { parse_config(text, "s.json"); })) << more;
  };
  constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
  bad(",\"hidden\":1", {"[s.json]", "a state-spaces config, got \"hidden\": 1"}, kUnsupported);
  bad(",\"ssm_cfg\":{\"headdim\":8}", {"ssm_cfg of a Mamba1 model, got \"headdim\""}, kUnsupported);
  bad(",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"dt_rank\":8}", {"a Mamba2 model, got \"dt_rank\""},
      kUnsupported);
  bad(",\"ssm_cfg\":{\"layer\":\"Mamba9\"}", {"Mamba1 or Mamba2, got \"Mamba9\""}, kUnsupported);
  bad(",\"ssm_cfg\":{\"activation\":\"relu\"}", {"\"activation\" to be silu"}, kUnsupported);
  bad(",\"attn_layer_idx\":[1]", {"\"attn_layer_idx\" to be empty, got [1]"}, kUnsupported);
  bad(",\"ssm_cfg\":[1]", {"\"ssm_cfg\" to be an object, got [1]"});
  bad(",\"ssm_cfg\":{\"expand\":2000}", {"\"expand\" from 1 to 1024, got 2000"});
  bad(",\"ssm_cfg\":{\"dt_init\":\"x\"}", {"\"dt_init\" to be random or constant, got \"x\""});
  bad(",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"dt_limit\":3}", {"\"dt_limit\" as [low, high], got 3"});
  bad(",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"headdim\":48}",
      {"headdim to divide d_ssm = 128, got 48"});
  bad(",\"d_intermediate\":-1", {"\"d_intermediate\" to be an integer"});
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"the key \"vocab_size\""},
                         [] { parse_config(R"({"d_model":64,"n_layer":2})", "s.json"); }));
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"the key \"d_model\""},
                         [] { parse_config(R"({"n_layer":2,"vocab_size":9})", "s.json"); }));
}

TEST(hf_config, files_folders_and_presets) {
  for (const char* text : {"{}", "[]", "3", "{\"vocab_size\":3}"}) {
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile,
                           {"[x]", "\"model_type\" (transformers) or \"d_model\""},
                           [&] { parse_config(text, "x"); }));
  }
  const ScratchFolder folder;
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {folder / "config.json", "found nothing"},
                         [&] { read_config(folder.path()); }));
  const Config tiny = preset_config("tiny");
  write_file_atomic(folder / "config.json", write_config(tiny));
  EXPECT_EQ(read_config(folder.path()), tiny);
  EXPECT_EQ(load_config(folder / "config.json"), tiny);
  EXPECT_EQ(load_config("tiny"), tiny);
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"mamba-130m", "tiny2", "got \"huge\""},
                         [] { load_config("huge"); }));
  EXPECT_EQ(parameters(preset_config("mamba-130m")), 129135360);
  EXPECT_EQ(parameters(preset_config("mamba2-2.7b")), 2702599680);
  Config wrong = tiny;
  wrong.d_model = 0;
  EXPECT_TRUE(
      fails_with(ErrorCode::kInvalidArgument, {"expected d_model"}, [&] { write_config(wrong); }));
}

}  // namespace
}  // namespace mamba
