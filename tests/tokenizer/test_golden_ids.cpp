// SPDX-License-Identifier: Apache-2.0
// The ids of hard strings, of published tokenizers: tokenizer-golden/golden.jsonl of the data that
// MAMBA_TEST_DATA names, made with Hugging Face tokenizers.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mamba/tokenizer.h"

namespace mamba {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

class GoldenIds : public testing::Test {
 protected:
  void SetUp() override {
    const char* data = std::getenv("MAMBA_TEST_DATA");
    if (data == nullptr) GTEST_SKIP() << "MAMBA_TEST_DATA is not set";
    folder_ = data;
    std::ifstream in(folder_ / "tokenizer-golden" / "golden.jsonl");
    for (std::string line; std::getline(in, line);) lines_.push_back(Json::parse(line));
    ASSERT_EQ(lines_.size(), 500u);
  }

  std::unique_ptr<Tokenizer> load(const std::string& name) {
    return load_tokenizer((folder_ / "tokenizers" / name).string());
  }

  static std::string input(const Json& line) {
    if (!line.contains("input_hex")) return line["text"];
    const std::string hex = line["input_hex"];
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    }
    return bytes;
  }

  // Lines whose ids, ids in pieces or text differ from the file's.
  int count_wrong(const Tokenizer& tokenizer, const std::string& key, bool has_nfc) {
    int wrong = 0;
    for (const Json& line : lines_) {
      const Ids expected = line[key].get<Ids>();
      const std::string text = input(line);
      const std::string no_special = key + "_nospecial", decoded = key + "_decoded";
      const Ids plain = line.contains(no_special) ? line[no_special].get<Ids>() : expected;
      const bool same = tokenizer.encode(text) == expected &&
                        tokenizer.encode_with(text, {.parse_special = false}) == plain;
      const std::string readable = has_nfc && line.contains(decoded) ? line[decoded] : line["text"];
      std::string streamed;
      StreamDecoder decoder(tokenizer);
      for (const int32_t id : expected) streamed += decoder.push(id);
      streamed += decoder.finish();
      if (same && tokenizer.decode_text(expected) == readable && streamed == readable) continue;
      ADD_FAILURE() << key << " line " << line["id"] << " (" << line["cat"] << ")";
      ++wrong;
    }
    return wrong;
  }

  std::filesystem::path folder_;
  std::vector<Json> lines_;
};

TEST_F(GoldenIds, AreThoseOfGptNeox) {
  EXPECT_EQ(count_wrong(*load("gpt-neox-20b"), "neox", true), 0);
}

TEST_F(GoldenIds, AreThoseOfGpt2FromTokenizerJson) {
  EXPECT_EQ(count_wrong(*load("gpt2/tokenizer.json"), "gpt2", false), 0);
}

TEST_F(GoldenIds, AreThoseOfGpt2FromVocabularyAndMerges) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / "gpt2_two_files";
  fs::create_directories(folder);
  for (const char* name : {"vocab.json", "merges.txt"}) {
    fs::copy_file(folder_ / "tokenizers" / "gpt2" / name, folder / name,
                  fs::copy_options::overwrite_existing);
    fs::permissions(folder / name, fs::perms::owner_write, fs::perm_options::add);
  }
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(folder.string());
  EXPECT_EQ(count_wrong(*tokenizer, "gpt2", false), 0);
  EXPECT_EQ(tokenizer->fingerprint(), load("gpt2")->fingerprint());
  EXPECT_NE(tokenizer->fingerprint(), load("gpt-neox-20b")->fingerprint());
  EXPECT_EQ(tokenizer->eos_id(), 50256);
}

TEST_F(GoldenIds, OfAStreamAreThoseOfTheWhole) {
  for (const char* name : {"gpt-neox-20b", "gpt2"}) {
    const std::unique_ptr<Tokenizer> tokenizer = load(name);
    std::string text;
    for (int round = 0; round < 12; ++round) {
      for (const Json& line : lines_) text += input(line);
    }
    const Ids whole = tokenizer->encode(text);
    for (const size_t size : {size_t{1} << 16, size_t{70001}, size_t{200003}}) {
      StreamEncoder encoder(*tokenizer);
      Ids pieces;
      int64_t most_held = 0;
      for (size_t at = 0; at < text.size(); at += size) {
        encoder.push(std::string_view(text).substr(at, size), &pieces);
        const auto seen = static_cast<int64_t>(std::min(text.size(), at + size));
        most_held = std::max(most_held, seen - encoder.taken_bytes());
      }
      encoder.finish(&pieces);
      EXPECT_EQ(pieces, whole) << name << " " << size;
      EXPECT_LT(most_held, static_cast<int64_t>(2 * size + (1 << 16))) << "held back too much";
    }
  }
}

}  // namespace
}  // namespace mamba
