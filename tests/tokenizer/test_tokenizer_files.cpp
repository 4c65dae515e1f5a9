// SPDX-License-Identifier: Apache-2.0
// Tokenizers that go into a model folder: whatever their files were called, the folder has the same
// ones.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "mamba/tokenizer.h"
#include "support/expect_error.h"
#include "support/learned_tokenizer.h"
#include "tokenizer/files.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

void write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

// The tokenizer of a folder into which that of `path` was copied.
std::unique_ptr<Tokenizer> copied(const std::string& path, const std::string& folder) {
  fs::create_directories(folder);
  copy_tokenizer_files(path, folder);
  return load_tokenizer(folder);
}

void expect_same(const Tokenizer& a, const Tokenizer& b) {
  EXPECT_EQ(a.fingerprint(), b.fingerprint());
  EXPECT_EQ(a.encode("the cat <end>"), b.encode("the cat <end>"));
  EXPECT_EQ(a.eos_id(), b.eos_id());
}

TEST(TokenizerFiles, ACopyOfAFileOfAnyNameIsATokenizerJson) {
  const test::ScratchFolder scratch;
  write(scratch / "in/words-300.json", test::learned_tokenizer_json());
  write(scratch / "in/tokenizer.json", test::learned_tokenizer_json({"<other>"}));
  write(scratch / "in/vocab.json", "{}");
  write(scratch / "in/tokenizer_config.json", R"({"eos_token": "<end>"})");
  const std::string path = scratch / "in/words-300.json";
  const auto copy = copied(path, scratch / "out");
  expect_same(*copy, *load_tokenizer(path));
  EXPECT_EQ(copy->eos_id(), 0);
  EXPECT_FALSE(fs::exists(scratch / "out/vocab.json"));
  EXPECT_FALSE(fs::exists(scratch / "out/words-300.json"));
}

TEST(TokenizerFiles, AFileOfTheFolderItselfNeedsNoFolderInItsName) {
  const test::ScratchFolder scratch;
  write(scratch / "in/words.json", test::learned_tokenizer_json());
  write(scratch / "in/chat_template.jinja", "{{ messages[0].content }}");
  const fs::path before = fs::current_path();
  fs::current_path(scratch / "in");
  const auto copy = copied("words.json", scratch / "out");
  fs::current_path(before);
  expect_same(*copy, *load_tokenizer(scratch / "in/words.json"));
  EXPECT_TRUE(fs::exists(scratch / "out/chat_template.jinja"));
}

TEST(TokenizerFiles, AFolderIsCopiedWhole) {
  const test::ScratchFolder scratch;
  write(scratch / "in/tokenizer.json", test::learned_tokenizer_json());
  write(scratch / "in/special_tokens_map.json", R"({"eos_token": "<end>"})");
  expect_same(*copied(scratch / "in", scratch / "out"), *load_tokenizer(scratch / "in"));
  // In place there is nothing to copy.
  copy_tokenizer_files(scratch / "in", scratch / "in");
  expect_same(*load_tokenizer(scratch / "in"), *load_tokenizer(scratch / "out"));
}

TEST(TokenizerFiles, TheTwoFilesOfGpt2AreAPair) {
  const test::ScratchFolder scratch;
  const auto json = nlohmann::json::parse(test::learned_tokenizer_json({"<|endoftext|>"}));
  std::string merges = "#version: 0.2\n";
  for (const auto& merge : json["model"]["merges"]) {
    merges += merge.is_string() ? merge.get<std::string>()
                                : merge[0].get<std::string>() + " " + merge[1].get<std::string>();
    merges += "\n";
  }
  write(scratch / "in/vocab.json", json["model"]["vocab"].dump());
  write(scratch / "in/merges.txt", merges);
  const auto copy = copied(scratch / "in", scratch / "out");
  expect_same(*copy, *load_tokenizer(scratch / "in"));
  EXPECT_GE(copy->eos_id(), 0);
  EXPECT_FALSE(fs::exists(scratch / "out/tokenizer.json"));
}

TEST(TokenizerFiles, BytesStayBytesBesideAChatTemplate) {
  const test::ScratchFolder scratch;
  EXPECT_EQ(copied("bytes", scratch / "a")->name(), "bytes");
  write(scratch / "a/chat_template.jinja", "{{ messages[0].content }}");
  EXPECT_EQ(copied(scratch / "a", scratch / "b")->name(), "bytes");
  EXPECT_TRUE(fs::exists(scratch / "b/chat_template.jinja"));
  EXPECT_TRUE(says_bytes(scratch / "b"));
  write(scratch / "b/tokenizer.json", test::learned_tokenizer_json());
  EXPECT_FALSE(says_bytes(scratch / "b"));
}

}  // namespace
}  // namespace mamba
