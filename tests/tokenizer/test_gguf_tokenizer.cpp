// SPDX-License-Identifier: Apache-2.0
// Tokenizers in GGUF files: those of llama.cpp give the ids that llama.cpp says, ours come back.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/gguf_writer.h"
#include "support/expect_error.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/gguf_tokenizer.h"

namespace mamba {
namespace {

using test::fails_with;
using test::ScratchFolder;

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string data_folder() {
  const char* root = std::getenv("MAMBA_TEST_DATA");
  return root == nullptr ? "" : std::string(root) + "/tokenizers/llama.cpp-vocab/";
}

TEST(gguf_tokenizer, gives_the_ids_of_llama_cpp) {
  if (data_folder().empty()) GTEST_SKIP() << "needs MAMBA_TEST_DATA";
  for (const char* name : {"falcon", "gpt-2"}) {
    const std::string path = data_folder() + "ggml-vocab-" + name + ".gguf";
    const auto tokenizer = load_tokenizer(path);
    std::istringstream ids(content(path + ".out"));
    const std::string texts = content(path + ".inp"), border = "\n__ggml_vocab_test__\n";
    std::string line;
    int count = 0;
    for (size_t at = 0; std::getline(ids, line); ++count) {
      const size_t end = std::min(texts.find(border, at), texts.size());
      std::istringstream numbers(line);
      const std::vector<int32_t> expected{std::istream_iterator<int32_t>(numbers), {}};
      EXPECT_EQ(tokenizer->encode(texts.substr(at, end - at)), expected)
          << name << " " << texts.substr(at, end - at);
      at = std::min(end + border.size(), texts.size());
    }
    EXPECT_GT(count, 40) << name;
  }
}

TEST(gguf_tokenizer, padding_is_no_token) {
  if (data_folder().empty()) GTEST_SKIP() << "needs MAMBA_TEST_DATA";
  const auto tokenizer = load_tokenizer(data_folder() + "ggml-vocab-gpt-neox.gguf");
  EXPECT_EQ(tokenizer->vocab_size(), 50277);
  EXPECT_EQ(tokenizer->eos_id(), 0);
}

// A tokenizer.json with everything that a plain GGUF would lose.
std::string trained_json() {
  BpeTrainer trainer({300, 1, {"<|end|>", "<|turn|>"}});
  for (int i = 0; i < 50; ++i) trainer.add("the cat and the other cat sat there, then they ate. ");
  trainer.end_text();
  Json json = Json::parse(trainer.train(nullptr));
  json["normalizer"] = {{"type", "NFC"}};
  const int64_t id = static_cast<int64_t>(json["model"]["vocab"].size());
  json["added_tokens"].push_back({{"id", id},
                                  {"content", "  "},
                                  {"special", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"single_word", false},
                                  {"normalized", true}});
  return json.dump();
}

TEST(gguf_tokenizer, ours_come_back) {
  const ScratchFolder folder;
  write_file_atomic(folder / "tokenizer.json", trained_json());
  write_file_atomic(folder / "tokenizer_config.json",
                    R"({"eos_token": "<|end|>", "chat_template": "{{ messages }}"})");
  const auto original = load_tokenizer(folder.path());
  Config config;
  config.vocab_size = 320;
  config.eos_token_id = 0;
  GgufMetadata metadata;
  add_tokenizer_metadata(folder.path(), config, &metadata);
  EXPECT_EQ(metadata["tokenizer.ggml.tokens"].texts.size(), 320u);
  EXPECT_EQ(metadata["tokenizer.ggml.tokens"].texts[319], "[PAD319]");
  EXPECT_EQ(metadata["tokenizer.ggml.pre"].text, "gpt-2");
  EXPECT_EQ(metadata["tokenizer.ggml.token_type"].integers[0], 3);
  const std::string path = folder / "t.gguf";
  write_gguf(path, metadata, {});
  const auto back = load_tokenizer(path);
  EXPECT_EQ(back->vocab_size(), original->vocab_size());
  EXPECT_EQ(back->fingerprint(), original->fingerprint());
  EXPECT_EQ(back->eos_id(), 0);
  for (const char* text : {"the cat<|end|>  sat", "cafe\xcc\x81 there", "", "<|turn|>\n\n"}) {
    EXPECT_EQ(back->encode(text), original->encode(text)) << text;
  }
  const GgufFile file(path);
  EXPECT_EQ(tokenizer_config_of(file)["chat_template"], "{{ messages }}");
  EXPECT_EQ(tokenizer_config_of(file)["eos_token"], "<|end|>");
  // Without what only this program reads, all but the normaliser is there.
  metadata.erase("mamba_cpp.tokenizer_json");
  write_gguf(path, metadata, {});
  EXPECT_EQ(load_tokenizer(path)->encode("the cat<|end|>  sat"),
            original->encode("the cat<|end|>  sat"));
}

TEST(gguf_tokenizer, bytes_come_back) {
  const ScratchFolder folder;
  GgufMetadata metadata;
  Config config;
  config.vocab_size = 264;
  add_tokenizer_metadata("bytes", config, &metadata);
  const std::string path = folder / "t.gguf";
  write_gguf(path, metadata, {});
  EXPECT_EQ(load_tokenizer(path)->name(), "bytes");
}

TEST(gguf_tokenizer, refuses_what_it_would_get_wrong) {
  const auto load = [](const GgufMetadata& m) {
    const std::string bytes = gguf_bytes(m, {});
    load_gguf_tokenizer(GgufFile(bytes.data(), bytes.size(), "t.gguf"));
  };
  GgufMetadata m;
  m["tokenizer.ggml.model"] = GgufValue::string("llama");
  m["tokenizer.ggml.tokens"] = GgufValue::strings({"a", "b", "ab"});
  EXPECT_TRUE(fails_with(ErrorCode::kUnsupported, {"gpt2", "llama"}, [&] { load(m); }));
  m["tokenizer.ggml.model"] = GgufValue::string("gpt2");
  m["tokenizer.ggml.merges"] = GgufValue::strings({"a b"});
  m["tokenizer.ggml.pre"] = GgufValue::string("tekken");
  EXPECT_TRUE(fails_with(ErrorCode::kUnsupported, {"tokenizer.ggml.pre", "tekken", "qwen2"},
                         [&] { load(m); }));
  m["tokenizer.ggml.pre"] = GgufValue::string("gpt-2");
  load(m);
  const auto refuses = [&](const char* key, const GgufValue& value,
                           std::initializer_list<std::string> parts) {
    GgufMetadata wrong = m;
    wrong[key] = value;
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, parts, [&] { load(wrong); })) << key;
  };
  refuses("tokenizer.ggml.merges", GgufValue::strings({"a c"}), {"merge 0", "'c'"});
  refuses("tokenizer.ggml.merges", GgufValue::u32(1), {"array of strings"});
  GgufMetadata unmerged = m;
  unmerged.erase("tokenizer.ggml.merges");
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"expected the key \"tokenizer.ggml.merges\"", "ab"},
                         [&] { load(unmerged); }));
  unmerged["tokenizer.ggml.tokens"] = GgufValue::strings({"a", "b"});
  load(unmerged);  // single bytes need none
  refuses("tokenizer.ggml.tokens", GgufValue::strings({"a", "b", "a"}), {"\"a\" again"});
  refuses("tokenizer.ggml.tokens", GgufValue::strings({"a", "b", "\xff"}), {"UTF-8"});
  refuses("tokenizer.ggml.token_type", GgufValue::i32_list({1}), {"3 types", "got 1"});
  refuses("tokenizer.ggml.eos_token_id", GgufValue::u32(3), {"eos_token_id", "0..2"});
}

}  // namespace
}  // namespace mamba
