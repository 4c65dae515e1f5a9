// SPDX-License-Identifier: Apache-2.0
// config.json of public checkpoints in both forms, where MAMBA_TEST_DATA has them.
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "formats/hf_config.h"
#include "mamba/model.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::fails_with;

class PublicConfigs : public testing::Test {
 protected:
  void SetUp() override {
    const char* data = std::getenv("MAMBA_TEST_DATA");
    folder_ = data == nullptr ? "" : std::string(data) + "/configs";
    if (!std::filesystem::is_directory(folder_)) {
      GTEST_SKIP() << "needs the folder configs/ of MAMBA_TEST_DATA, which is "
                   << (data == nullptr ? "not set" : data);
    }
  }
  std::string checkpoint(const std::string& name) const { return folder_ + "/" + name; }
  std::string folder_;
};

TEST_F(PublicConfigs, published_checkpoints_have_their_published_sizes) {
  const std::pair<const char*, int64_t> published[] = {
      {"state-spaces--mamba-130m", 129135360},   {"state-spaces--mamba-130m-hf", 129135360},
      {"state-spaces--mamba-2.8b", 2768345600},  {"state-spaces--mamba-2.8b-hf", 2768345600},
      {"state-spaces--mamba2-130m", 128989632},  {"AntonV--mamba2-130m-hf", 128989632},
      {"state-spaces--mamba2-2.7b", 2702599680}, {"mistralai--Mamba-Codestral-7B-v0.1", 7285403648},
      {"tiiuae--falcon-mamba-7b", 7272665088},   {"nvidia--mamba2-8b-3t-4k", 8236999680}};
  for (const auto& [name, count] : published) {
    EXPECT_EQ(parameter_count(read_config(checkpoint(name))), count) << name;
  }
}

TEST_F(PublicConfigs, both_forms_of_one_checkpoint_agree) {
  for (const auto& [a, b] : {std::pair{"state-spaces--mamba-130m", "state-spaces--mamba-130m-hf"},
                             std::pair{"state-spaces--mamba2-130m", "AntonV--mamba2-130m-hf"}}) {
    Config left = read_config(checkpoint(a));
    const Config right = read_config(checkpoint(b));
    EXPECT_EQ(right.embedding_std, 0.1);
    left.embedding_std = right.embedding_std;  // the forms differ in what only initialisation reads
    left.rescale_prenorm_residual = right.rescale_prenorm_residual;
    left.bos_token_id = left.eos_token_id = left.pad_token_id = 0;
    EXPECT_EQ(left, right);
  }
}

TEST_F(PublicConfigs, published_details_are_kept) {
  const Config falcon = read_config(checkpoint("tiiuae--falcon-mamba-7b"));
  EXPECT_EQ(falcon.d_inner, 8192);  // not expand * hidden_size
  EXPECT_TRUE(falcon.bcdt_rms);
  EXPECT_EQ(falcon.bcdt_rms_eps, 1e-6);
  EXPECT_FALSE(falcon.tie_embeddings);
  EXPECT_EQ(falcon.eos_token_id, 11);
  std::vector<std::string> warnings;
  const Config codestral = read_config(checkpoint("mistralai--Mamba-Codestral-7B-v0.1"), &warnings);
  EXPECT_EQ(codestral.n_groups, 8);
  EXPECT_EQ(codestral.norm_groups, 8);
  EXPECT_FALSE(codestral.norm_before_gate);
  EXPECT_EQ(codestral.dt_limit_max, std::numeric_limits<double>::infinity());
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("\"norm_before_gate\": true is ignored"), std::string::npos);
  EXPECT_TRUE(read_config(checkpoint("state-spaces--mamba-130m-hf")).tie_embeddings);
  const Config nvidia = read_config(checkpoint("nvidia--mamba2-8b-3t-4k"));
  EXPECT_EQ(nvidia.norm_groups, 8);
  EXPECT_EQ(nvidia.chunk_size, 128);
  EXPECT_FALSE(nvidia.residual_in_fp32);
}

TEST_F(PublicConfigs, other_architectures_are_refused_by_name) {
  const auto refuse = [this](const char* name, const std::string& part) {
    EXPECT_TRUE(
        fails_with(ErrorCode::kUnsupported, {name, part}, [&] { read_config(checkpoint(name)); }));
  };
  refuse("state-spaces--mamba2attn-2.7b", "\"attn_layer_idx\" to be empty, got [9,18");
  refuse("state-spaces--mamba3-siso-1.5b", "got \"Mamba3\"");
  refuse("Zyphra--Zamba2-7B", "model_type mamba, mamba2 or falcon_mamba, got \"zamba2\"");
  refuse("EleutherAI--pythia-160m", "got \"gpt_neox\"");
}

}  // namespace
}  // namespace mamba
