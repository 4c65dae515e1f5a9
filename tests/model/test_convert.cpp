// SPDX-License-Identifier: Apache-2.0
// Conversions: the round trip is equal by bytes, logits are equal, and what a form cannot say is
// refused by name.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "formats/torch_zip.h"
#include "formats/weight_files.h"
#include "mamba/convert.h"
#include "model/cases.h"
#include "model/model_card.h"
#include "support/expect_error.h"

namespace mamba::test {
namespace {

namespace fs = std::filesystem;

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class Convert : public testing::Test {
 protected:
  std::string golden(const std::string& name) const {
    return std::string(MAMBA_SOURCE_DIR) + "/tests/golden/" + name;
  }
  std::string to(ModelForm form, const std::string& in, const std::string& name,
                 std::optional<DType> dtype = std::nullopt, bool safetensors = false) {
    ConvertOptions options;
    options.form = form;
    options.dtype = dtype;
    options.safetensors = safetensors;
    convert_model(in, folder_ / name, options);
    return folder_ / name;
  }
  void expect_equal_logits(const std::string& a, const std::string& b) {
    const ModelComparison c = compare_models(a, b, {}, 40);
    EXPECT_EQ(c.max_error, 0);
    EXPECT_GT(c.max_logit, 0);
    EXPECT_EQ(c.same_greedy, 40);
  }
  void refuse(ErrorCode code, std::initializer_list<std::string> parts, const std::string& in,
              const std::string& out, const ConvertOptions& options) {
    EXPECT_TRUE(fails_with(code, parts, [&] { convert_model(in, out, options); }));
  }
  ScratchFolder folder_;
};

TEST_F(Convert, TheRoundTripIsEqualByBytes) {
  for (const char* name : {"mamba1", "mamba1_bias_untied", "mamba2", "mamba2_groups_bias_untied"}) {
    SCOPED_TRACE(name);
    const std::string in = golden(name), base = name;
    const std::string ssm = to(ModelForm::kStateSpaces, in, base + ".ssm");
    EXPECT_TRUE(WeightFiles(ssm).has_state_spaces_names());
    EXPECT_NE(WeightFiles(ssm).find("lm_head.weight"), nullptr);  // tied or not
    expect_equal_logits(in, ssm);
    const std::string back = to(ModelForm::kTransformers, ssm, base + ".hf");
    EXPECT_TRUE(content(back + "/model.safetensors") == content(in + "/model.safetensors"));
    const std::string again = to(ModelForm::kStateSpaces, back, base + ".ssm2");
    EXPECT_TRUE(content(again + "/pytorch_model.bin") == content(ssm + "/pytorch_model.bin"));
    EXPECT_EQ(content(again + "/config.json"), content(ssm + "/config.json"));
    const std::string safe = to(ModelForm::kStateSpaces, in, base + ".safe", std::nullopt, true);
    expect_equal_logits(in, safe);
    EXPECT_NE(SafetensorsFile(safe + "/model.safetensors").find("backbone.embedding.weight"),
              nullptr);
  }
}

TEST_F(Convert, TheConfigSurvivesButForWhatOnlyInitialisationReads) {
  const Config before = read_config(golden("mamba2_groups_bias_untied"));
  Config after = read_config(to(ModelForm::kStateSpaces, golden("mamba2_groups_bias_untied"), "s"));
  after.embedding_std = before.embedding_std;
  after.rescale_prenorm_residual = before.rescale_prenorm_residual;
  EXPECT_EQ(after, before);
}

TEST_F(Convert, SixteenBitsRoundMatricesAlone) {
  const std::string in = golden("mamba1");
  const WeightFiles wide(in);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const std::string out = to(ModelForm::kTransformers, in, dtype_name(dtype), dtype);
    const WeightFiles half(out);
    EXPECT_EQ(half.get("backbone.layers.0.mixer.in_proj.weight").dtype, dtype);
    EXPECT_EQ(half.get("backbone.layers.0.mixer.A_log").dtype, DType::kF32);
    EXPECT_EQ(half.get("backbone.layers.0.mixer.dt_proj.bias").dtype, DType::kF32);
    const TensorInfo& from = wide.get("backbone.embeddings.weight");
    const TensorInfo& to = half.get("backbone.embeddings.weight");
    std::vector<float> x(static_cast<size_t>(from.count())), y(x.size());
    read_to_f32(from, x.data());
    read_to_f32(to, y.data());
    // Half a unit of the 8th or 11th bit, and half the smallest f16 below its normal numbers.
    const double relative = dtype == DType::kBF16 ? 0x1p-9 : 0x1p-12, least = 0x1p-25;
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(y[i], x[i], relative * std::fabs(x[i]) * 2 + least);
    }
    // 16 bits that are there stay: through the other form and back to f32 nothing is lost.
    const std::string ssm =
        this->to(ModelForm::kStateSpaces, out, out.substr(out.rfind('/') + 1) + ".ssm");
    EXPECT_EQ(WeightFiles(ssm).get("backbone.embeddings.weight").dtype, dtype);
    expect_equal_logits(out, ssm);
    const std::string f32 = this->to(ModelForm::kTransformers, ssm,
                                     out.substr(out.rfind('/') + 1) + ".f32", DType::kF32);
    EXPECT_EQ(WeightFiles(f32).get("backbone.embeddings.weight").dtype, DType::kF32);
    expect_equal_logits(out, f32);
  }
}

TEST_F(Convert, SmallTensorsKeepTheirSixteenBits) {
  // A checkpoint in bf16 throughout, as many published ones are.
  const std::string in = folder_ / "all_bf16";
  fs::create_directories(in);
  fs::copy_file(golden("mamba1") + "/config.json", in + "/config.json");
  const WeightFiles wide(golden("mamba1"));
  std::vector<TensorData> tensors;
  for (const TensorInfo& t : wide.tensors()) {
    tensors.push_back(
        {t.name, DType::kBF16, t.shape, nullptr, [&t](int64_t begin, int64_t count, void* out) {
           std::vector<float> values(static_cast<size_t>(count));
           read_to_f32(t, begin, count, values.data());
           write_from_f32(values.data(), count, DType::kBF16, out);
         }});
  }
  write_safetensors(in + "/model.safetensors", tensors);
  const WeightFiles f16(to(ModelForm::kTransformers, in, "f16", DType::kF16));
  EXPECT_EQ(f16.get("backbone.layers.0.mixer.A_log").dtype, DType::kBF16);
  EXPECT_EQ(f16.get("backbone.layers.0.mixer.in_proj.weight").dtype, DType::kF16);
  const WeightFiles f32(to(ModelForm::kTransformers, in, "f32", DType::kF32));
  EXPECT_EQ(f32.get("backbone.layers.0.mixer.A_log").dtype, DType::kF32);
}

TEST_F(Convert, ValuesBeyondTheTypeAreRefusedWithTheirTensor) {
  const std::string in = folder_ / "large";
  Model model = Model::create(small_mamba1(), 1);
  model.save(in);
  const WeightFiles files(in);
  std::vector<TensorData> tensors;
  const std::vector<float> large(static_cast<size_t>(12 * 38), 65520.0f);
  for (const TensorInfo& t : files.tensors()) {
    const bool chosen = t.name == "backbone.layers.1.mixer.in_proj.weight";
    tensors.push_back({t.name, t.dtype, t.shape, chosen ? large.data() : t.data});
  }
  write_safetensors(folder_ / "tensors", tensors);
  fs::rename(folder_ / "tensors", in + "/model.safetensors");
  ConvertOptions options;
  options.dtype = DType::kF16;
  refuse(ErrorCode::kUnsupported, {"the range of f16", "layers.1.mixer.in_proj.weight"}, in,
         folder_ / "out", options);
  EXPECT_FALSE(fs::exists(folder_ / "out"));
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_.path())) {
    EXPECT_FALSE(is_temporary_name(entry.path().filename().string())) << entry.path();
  }
  options.dtype = DType::kBF16;
  convert_model(in, folder_ / "out", options);
}

TEST_F(Convert, WhatAFormCannotSayIsRefusedByName) {
  ConvertOptions options;
  options.form = ModelForm::kStateSpaces;
  refuse(ErrorCode::kUnsupported, {"falcon_mamba"}, golden("falcon_mamba"), folder_ / "o", options);
  const auto refused = [&](Config config, const std::string& key) {
    SCOPED_TRACE(key);
    const std::string in = folder_ / "in";
    Model::create(config, 1).save(in);
    refuse(ErrorCode::kUnsupported, {key}, in, folder_ / "o", options);
  };
  const auto whole = [](Config c) {
    c.d_inner = c.d_ssm = 2 * c.d_model;
    return c;
  };
  Config c = whole(small_mamba1());
  c.norm_eps = 1e-6;
  refused(c, "layer_norm_epsilon 1e-06, where that form would mean 1e-05");
  c = whole(small_mamba1());
  c.conv_silu = false;
  refused(c, "hidden_act");
  refused(small_mamba1(), "intermediate_size 19, where that form would mean 12");
  c = whole(small_mamba2());
  c.norm_groups = 1;
  refused(c, "norm_groups 1");
  c = whole(small_mamba2());
  c.learnable_init_states = true;
  refused(c, "learnable_init_states");
  c = whole(small_mamba1());
  c.d_intermediate = 10;
  refused(c, "d_intermediate 10, where that form would mean 128");
  // The other way: LayerNorm is in the state-spaces form and not in transformers'.
  c = whole(small_mamba1());
  c.norm = NormKind::kLayer;
  Model::create(c, 1).save(folder_ / "layer");
  const std::string ssm = to(ModelForm::kStateSpaces, folder_ / "layer", "layer.ssm");
  expect_equal_logits(folder_ / "layer", ssm);
  options.form = ModelForm::kTransformers;
  refuse(ErrorCode::kUnsupported, {"norm (\"layer\")", "transformers can express"}, ssm,
         folder_ / "o", options);
}

TEST_F(Convert, EveryOptionOfTheStateSpacesFormSurvives) {
  Config c = small_mamba2();
  c.d_inner = 4 * c.d_model;
  c.d_ssm = 36;
  c.n_groups = c.norm_groups = 3;
  c.d_intermediate = 128;
  c.norm = NormKind::kLayer;
  c.norm_before_gate = c.D_has_hdim = c.use_bias = true;
  c.conv_bias = c.tie_embeddings = c.residual_in_fp32 = false;
  c.conv_init = 0.25;
  c.dt_min = 0.002;
  c.A_init_max = 8;
  c.dt_rank = Config().dt_rank;  // Mamba-2 has none
  for (const double limit : {0.5, c.dt_limit_max}) {
    c.dt_limit_min = 0.01;
    c.dt_limit_max = limit;
    const std::string text = write_state_spaces_config(c);
    EXPECT_EQ(parse_config(text, "t"), c);
  }
}

TEST_F(Convert, FoldersAreWrittenWholeWithCardAndCompanions) {
  const std::string in = folder_ / "in";
  fs::copy(golden("mamba1"), in);
  write_file_atomic(in + "/tokenizer.json", "{}");
  write_file_atomic(in + "/README.md",
                    "---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- old\n---\ntext\n");
  const std::string ssm = to(ModelForm::kStateSpaces, in, "ssm");
  EXPECT_EQ(content(ssm + "/tokenizer.json"), "{}");
  const std::string card = content(ssm + "/README.md");
  EXPECT_EQ(card.rfind("---\nlicense: apache-2.0\nlanguage:\n- en\nlibrary_name: mamba-cpp\n", 0),
            0u)
      << card;
  EXPECT_NE(card.find("base_model: \"in\""), std::string::npos);
  EXPECT_NE(card.find("`pytorch_model.bin`"), std::string::npos);
  EXPECT_EQ(card.find("- old"), std::string::npos);
  ConvertOptions options;
  refuse(ErrorCode::kInvalidArgument, {"new or empty folder", "--force"}, in, ssm, options);
  refuse(ErrorCode::kInvalidArgument, {"another folder than the model's own"}, in, in, options);
  refuse(ErrorCode::kInvalidArgument, {"got a file"}, in, in + "/config.json", options);
  refuse(ErrorCode::kBadFile, {"nothing at"}, folder_ / "none", folder_ / "o", options);
  options.replace = true;
  convert_model(in, ssm, options);
  EXPECT_FALSE(fs::exists(ssm + "/pytorch_model.bin"));
  EXPECT_TRUE(fs::exists(ssm + "/model.safetensors"));
  EXPECT_EQ(card.find("base_model_relation"), std::string::npos) << "nothing was rounded";
  fs::create_directories(folder_ / "home/documents");
  refuse(ErrorCode::kInvalidArgument, {"files of a model alone", "got also documents"}, in,
         folder_ / "home", options);
  // A config.json of something else, and a model among other files.
  fs::create_directories(folder_ / "project");
  write_file_atomic(folder_ / "project/config.json", "{\"name\": \"site\"}");
  refuse(ErrorCode::kInvalidArgument, {"config.json of a model"}, in, folder_ / "project", options);
  write_file_atomic(ssm + "/thesis.tex", "years of work");
  refuse(ErrorCode::kInvalidArgument, {"got also thesis.tex"}, in, ssm, options);
  EXPECT_EQ(content(ssm + "/thesis.tex"), "years of work");
  EXPECT_TRUE(fs::exists(ssm + "/model.safetensors"));
  const fs::path here = fs::current_path();
  fs::create_directories(folder_ / "here");
  fs::current_path(folder_ / "here");
  refuse(ErrorCode::kInvalidArgument, {"than the current one"}, in, ".", options);
  fs::current_path(here);
  fs::create_directories(folder_ / "empty");
  options.replace = false;
  convert_model(in, folder_ / "empty", options);
}

TEST_F(Convert, ATiedHeadThatDiffersIsRefused) {
  const std::string in = folder_ / "in";
  Model::create(small_mamba1(), 1).save(in);
  const WeightFiles files(in);
  std::vector<TensorData> tensors;
  for (const TensorInfo& t : files.tensors()) tensors.push_back({t.name, t.dtype, t.shape, t.data});
  const std::vector<float> other(29 * 12, 0.5f);
  tensors.push_back({"lm_head.weight", DType::kF32, {29, 12}, other.data()});
  const std::string out = folder_ / "out";
  fs::create_directories(out);
  fs::copy_file(in + "/config.json", out + "/config.json");
  write_safetensors(out + "/model.safetensors", tensors);
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"\"lm_head.weight\" to equal the embedding"},
                         [&] { Model::load(out); }));
}

TEST_F(Convert, NothingIsInventedOnTheWayBack) {
  const std::string in = golden("mamba1");
  ASSERT_EQ(content(in + "/config.json").find("mamba_cpp"), std::string::npos);
  const std::string back =
      to(ModelForm::kTransformers, to(ModelForm::kStateSpaces, in, "ssm"), "back");
  const std::string config = content(back + "/config.json");
  EXPECT_EQ(config.find("mamba_cpp"), std::string::npos) << config;
  EXPECT_NE(config.find("\"rescale_prenorm_residual\": false"), std::string::npos);
}

TEST_F(Convert, DatasetsOfTheCardAreCarried) {
  const std::string in = folder_ / "in";
  fs::copy(golden("mamba1"), in);
  write_file_atomic(in + "/README.md", "---\ndatasets:\n- \"books\"\ntags:\n- old\n---\n");
  const std::string card = content(to(ModelForm::kStateSpaces, in, "ssm") + "/README.md");
  EXPECT_NE(card.find("\ndatasets:\n- \"books\"\n"), std::string::npos) << card;
}

TEST_F(Convert, ResultsOfTheCardAreCarriedWithTheWeights) {
  const std::string in = folder_ / "in";
  fs::copy(golden("mamba1"), in);
  // As an editor on Windows saves it.
  write_file_atomic(in + "/README.md",
                    "\xEF\xBB\xBF---\r\nlicense: mit\r\nmodel-index:\r\n- name: \"in\"\r\n"
                    "  results: []\r\ntags:\r\n- old\r\n---\r\ntext\r\n");
  const std::string ssm = to(ModelForm::kStateSpaces, in, "ssm");
  const std::string same = content(ssm + "/README.md");
  EXPECT_EQ(
      same.rfind("---\nlicense: mit\nmodel-index:\n- name: \"in\"\n  results: []\nlibrary", 0), 0u)
      << same;
  ConvertOptions options;
  options.dtype = DType::kBF16;
  convert_model(in, folder_ / "half", options);
  const std::string half = content(folder_ / "half/README.md");
  EXPECT_EQ(half.rfind("---\nlicense: mit\nlibrary_name", 0), 0u) << half;
  EXPECT_NE(half.find("base_model_relation: quantized"), std::string::npos);
  options.dtype = DType::kF32;
  convert_model(folder_ / "half", folder_ / "wide", options);
  const std::string wide = content(folder_ / "wide/README.md");
  EXPECT_NE(wide.find("license: mit"), std::string::npos);
  EXPECT_EQ(wide.find("base_model_relation"), std::string::npos) << wide;
  // The card of a single file is beside it.
  EXPECT_EQ(carried_facts(folder_ / "x.gguf", Descent::kTrained), "");
  write_file_atomic(folder_ / "x.md", "---\nlicense: mit\ndatasets: books\n---\n");
  EXPECT_EQ(carried_facts(folder_ / "x.gguf", Descent::kTrained), "license: mit\n");
  EXPECT_EQ(carried_facts(folder_ / "x.gguf", Descent::kSame), "license: mit\ndatasets: books\n");
}

TEST_F(Convert, KeysThatNothingReadsGoAlongOrAreNamed) {
  const std::string in = folder_ / "in";
  fs::copy(golden("mamba1"), in);
  Json config = parse_json(content(in + "/config.json"), "t");
  config["initializer_range"] = 0.1;
  config["max_position_embeddings"] = 2048;
  config["torch_dtype"] = "float32";
  write_file_atomic(in + "/config.json", config.dump(2));
  ConvertOptions options;
  options.dtype = DType::kBF16;
  convert_model(in, folder_ / "hf", options);
  const Json kept = parse_json(content(folder_ / "hf/config.json"), "t");
  EXPECT_EQ(kept["initializer_range"], 0.1);
  EXPECT_EQ(kept["max_position_embeddings"], 2048);
  EXPECT_EQ(kept["torch_dtype"], "bfloat16");
  EXPECT_EQ(read_config(folder_ / "hf"), read_config(in));
  options.form = ModelForm::kStateSpaces;
  const ConvertResult result = convert_model(in, folder_ / "ssm", options);
  ASSERT_EQ(result.notices.size(), 1u);
  EXPECT_NE(result.notices[0].find("initializer_range 0.1, max_position_embeddings 2048: a"),
            std::string::npos)
      << result.notices[0];
}

TEST_F(Convert, ComparisonsCountWhatIsNotFinite) {
  const std::string good = folder_ / "good", bad = folder_ / "bad";
  Model::create(small_mamba1(), 1).save(good);
  fs::copy(good, bad);
  const WeightFiles files(good);
  std::vector<TensorData> tensors;
  for (const TensorInfo& t : files.tensors()) tensors.push_back({t.name, t.dtype, t.shape, t.data});
  const std::vector<float> nan(12, std::nanf(""));
  for (TensorData& t : tensors) {
    if (t.name == "backbone.norm_f.weight") t.data = nan.data();
  }
  write_safetensors(bad + "/model.safetensors", tensors);
  const ModelComparison c = compare_models(good, bad, {}, 8);
  EXPECT_EQ(c.same_greedy, 0);
  EXPECT_EQ(c.not_finite, (std::array<int64_t, 2>{0, c.logits}));
  EXPECT_TRUE(std::isinf(c.max_error));
}

TEST_F(Convert, IntegerWeightsAreRefusedWithTheirFile) {
  const std::string in = folder_ / "in";
  Model::create(small_mamba1(), 1).save(in);
  const WeightFiles files(in);
  std::vector<TensorData> tensors;
  for (const TensorInfo& t : files.tensors()) {
    const bool changed = t.name == "backbone.norm_f.weight";
    tensors.push_back({t.name, changed ? DType::kI32 : t.dtype, t.shape, t.data});
  }
  write_safetensors(folder_ / "in/model.safetensors", tensors);
  EXPECT_TRUE(fails_with(ErrorCode::kUnsupported, {in, "backbone.norm_f.weight", "got i32"},
                         [&] { Model::load(in); }));
}

}  // namespace
}  // namespace mamba::test
