// SPDX-License-Identifier: Apache-2.0
// generation_config.json: what is read, and what is refused.
#include <gtest/gtest.h>

#include <fstream>

#include "mamba/sampling.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::fails_with;

GenerationDefaults defaults_of(const std::string& text) {
  const test::ScratchFolder folder;
  std::ofstream(folder / "generation_config.json") << text;
  return load_generation_defaults(folder.path());
}

TEST(GenerationDefaults, AreReadWhereTheyStand) {
  const GenerationDefaults d = defaults_of(
      R"({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05,
          "typical_p": 0.8, "eos_token_id": [2, 7], "pad_token_id": 0,
          "transformers_version": "5"})");
  EXPECT_EQ(d.temperature, 0.6);
  EXPECT_EQ(d.top_k, 20);
  EXPECT_EQ(d.top_p, 0.9);
  EXPECT_EQ(d.min_p, 0.05);
  EXPECT_EQ(d.typical_p, 0.8);
  EXPECT_EQ(d.eos_ids, (std::vector<int32_t>{2, 7}));
}

TEST(GenerationDefaults, LeaveOpenWhatTheFileDoes) {
  for (const char* text : {"{}", R"({"temperature": null, "eos_token_id": null})"}) {
    const GenerationDefaults d = defaults_of(text);
    EXPECT_FALSE(d.temperature || d.top_k || d.top_p || d.min_p || d.typical_p);
    EXPECT_TRUE(d.eos_ids.empty());
  }
  const test::ScratchFolder folder;
  EXPECT_FALSE(load_generation_defaults(folder.path()).temperature);
  EXPECT_EQ(defaults_of(R"({"eos_token_id": 5})").eos_ids, std::vector<int32_t>{5});
}

TEST(GenerationDefaults, NoSamplingIsGreedy) {
  EXPECT_EQ(defaults_of(R"({"do_sample": false, "temperature": 0.7})").temperature, 0);
}

TEST(GenerationDefaults, RefuseWhatIsWrong) {
  const auto refuses = [](const char* text, std::initializer_list<std::string> parts) {
    return fails_with(ErrorCode::kBadFile, parts, [&] { defaults_of(text); });
  };
  EXPECT_TRUE(refuses(R"({"temperature": -1})", {"generation_config.json", "temperature", "-1"}));
  EXPECT_TRUE(refuses(R"({"top_k": 1.5})", {"top_k", "1.5"}));
  EXPECT_TRUE(refuses(R"({"top_p": "high"})", {"top_p", "high"}));
  EXPECT_TRUE(refuses(R"({"eos_token_id": [1, "two"]})", {"eos_token_id", "two"}));
  EXPECT_TRUE(refuses(R"({"eos_token_id": -1})", {"eos_token_id", "-1"}));
  EXPECT_TRUE(refuses(R"({"do_sample": 1})", {"do_sample", "true or false"}));
  EXPECT_TRUE(refuses("[]", {"object", "[]"}));
  EXPECT_TRUE(refuses("{", {"generation_config.json"}));
}

}  // namespace
}  // namespace mamba
