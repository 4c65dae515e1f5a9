// SPDX-License-Identifier: Apache-2.0
// What a tokenizer.json may say and what is refused; streams; words of any length; threads.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "support/expect_error.h"
#include "support/learned_tokenizer.h"
#include "tokenizer/bpe_tokenizer.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/byte_chars.h"
#include "tokenizer/tokenizer_file.h"

namespace mamba {
namespace {

using Ids = std::vector<int32_t>;

// A learned vocabulary as JSON, to be changed.
nlohmann::json learned() {
  static const std::string text = test::learned_tokenizer_json();
  return nlohmann::json::parse(text);
}

BpeTokenizer made(const nlohmann::json& json) {
  return BpeTokenizer(parse_tokenizer_json(json.dump(), "test"));
}

nlohmann::json added(int id, const std::string& content) {
  return {{"id", id}, {"content", content}, {"special", false}, {"normalized", false}};
}

TEST(BpeTokenizer, GivesBackEveryByte) {
  const BpeTokenizer tokenizer = made(learned());
  std::string all;
  for (int b = 0; b < 128; ++b) all += static_cast<char>(b);
  all += "the cat \xc3\xa9 \xf0\x9f\x98\x80";
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(all)), all);
  EXPECT_EQ(tokenizer.vocab_size(), static_cast<int64_t>(learned()["model"]["vocab"].size()));
  EXPECT_EQ(tokenizer.token_bytes(tokenizer.id_of(" the")), " the");
  EXPECT_EQ(tokenizer.id_of("no such token"), -1);
}

TEST(BpeTokenizer, ReadsWhatIsNoUtf8AsReplacementCharacters) {
  const BpeTokenizer tokenizer = made(learned());
  EXPECT_EQ(tokenizer.encode("a\xff\xe2\x82z"), tokenizer.encode("a\xef\xbf\xbd\xef\xbf\xbdz"));
}

TEST(BpeTokenizer, TakesSpecialTokensAsTextWhereAsked) {
  const BpeTokenizer tokenizer = made(learned());
  EXPECT_EQ(tokenizer.encode("<end>"), Ids{0});
  EXPECT_TRUE(tokenizer.is_special(0));
  const Ids plain = tokenizer.encode_with("<end>", {.parse_special = false});
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(tokenizer.decode(plain), "<end>");
  EXPECT_EQ(tokenizer.decode_text({0, plain[0]}, true), "<");
}

TEST(BpeTokenizer, PutsTemplateIdsAround) {
  nlohmann::json json = learned();
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<end>"}, {"type_id", 0}}}},
        {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", nlohmann::json::array()},
      {"special_tokens", {{"<end>", {{"id", "<end>"}, {"ids", {0}}, {"tokens", {"<end>"}}}}}}};
  const BpeTokenizer tokenizer = made(json);
  Ids expected = tokenizer.encode("cat");
  expected.insert(expected.begin(), 0);
  EXPECT_EQ(tokenizer.encode_with("cat", {.add_special = true}), expected);
  StreamEncoder stream(tokenizer, {.add_special = true});
  Ids ids;
  stream.push("ca", &ids);
  stream.push("t", &ids);
  stream.finish(&ids);
  EXPECT_EQ(ids, expected);
  json["post_processor"]["special_tokens"]["<end>"]["ids"] = {5000};
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"5000"}, [&] { made(json); }));
}

TEST(BpeTokenizer, TreatsSpaceAroundAddedTokensAsTheySay) {
  nlohmann::json json = learned();
  json["added_tokens"].push_back(added(300, "<l>"));
  json["added_tokens"].back()["lstrip"] = true;
  json["added_tokens"].push_back(added(301, "<r>"));
  json["added_tokens"].back()["rstrip"] = true;
  json["added_tokens"].push_back(added(302, "word"));
  json["added_tokens"].back()["single_word"] = true;
  const BpeTokenizer tokenizer = made(json);
  const auto around = [&](const std::string& before, int32_t id, const std::string& after) {
    Ids ids = tokenizer.encode(before);
    ids.push_back(id);
    const Ids rest = tokenizer.encode(after);
    ids.insert(ids.end(), rest.begin(), rest.end());
    return ids;
  };
  EXPECT_EQ(tokenizer.encode("cat \n<l> hat"), around("cat", 300, " hat"));
  EXPECT_EQ(tokenizer.encode("cat <r> \n hat"), around("cat ", 301, "hat"));
  EXPECT_EQ(tokenizer.encode("a word, b"), around("a ", 302, ", b"));
  const Ids inside = tokenizer.encode("sword words");
  EXPECT_EQ(std::count(inside.begin(), inside.end(), 302), 0);
}

TEST(BpeTokenizer, TakesTheLongestOfAddedTokens) {
  nlohmann::json json = learned();
  json["added_tokens"].push_back(added(300, "  "));
  json["added_tokens"].push_back(added(301, "   "));
  const BpeTokenizer tokenizer = made(json);
  EXPECT_EQ(tokenizer.encode("     "), (Ids{301, 300}));
}

TEST(BpeTokenizer, MergesALongRunAsAShortOne) {
  const BpeTokenizer tokenizer = made(learned());
  const Ids ids = tokenizer.encode(std::string(4'000'000, 'a'));
  const std::string back = tokenizer.decode(ids);
  EXPECT_EQ(back, std::string(4'000'000, 'a'));
  EXPECT_LT(ids.size(), 2'000'000u);
  // The heap of long words and the scan of short ones agree: random words, of which the long ones
  // begin with the short ones' merges.
  std::mt19937 rng(5);
  nlohmann::json one_by_one = learned();
  for (int round = 0; round < 300; ++round) {
    std::string word;
    const size_t length = 30 + rng() % 80;
    while (word.size() < length) word += "thecadon"[rng() % 8];
    const Ids whole = tokenizer.encode(word);
    Ids naive;
    for (const char c : word) naive.push_back(tokenizer.id_of({&c, 1}));
    const auto merges = one_by_one["model"]["merges"];
    for (const nlohmann::json& merge : merges) {
      const std::string line = merge;
      const size_t space = line.find(' ');
      const int32_t left = tokenizer.id_of(*from_byte_chars(line.substr(0, space)));
      const int32_t right = tokenizer.id_of(*from_byte_chars(line.substr(space + 1)));
      const int32_t both =
          tokenizer.id_of(*from_byte_chars(line.substr(0, space) + line.substr(space + 1)));
      Ids next;
      for (size_t i = 0; i < naive.size(); ++i) {
        const bool merged = i + 1 < naive.size() && naive[i] == left && naive[i + 1] == right;
        next.push_back(merged ? both : naive[i]);
        i += merged ? 1 : 0;
      }
      naive = next;
    }
    ASSERT_EQ(whole, naive) << word;
  }
}

TEST(BpeTokenizer, IsUsedByManyThreads) {
  const BpeTokenizer tokenizer = made(learned());
  const std::string text = "the cat and the hat and don't 1234 the end";
  const Ids expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> same(4);
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) same[t] += tokenizer.encode(text) == expected ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(same, (std::vector<int>{200, 200, 200, 200}));
}

TEST(BpeTokenizer, WithoutAMatchingByteUsesTheUnknownToken) {
  nlohmann::json json = learned();
  json["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}, {"?", 3}};
  json["model"]["merges"] = {"a b"};
  json["added_tokens"] = nlohmann::json::array();
  EXPECT_EQ(made(json).encode("abXXb"), (Ids{2, 1}));
  json["model"]["unk_token"] = "?";
  EXPECT_EQ(made(json).encode("abXXb"), (Ids{2, 3, 3, 1}));
  json["model"]["fuse_unk"] = true;
  EXPECT_EQ(made(json).encode("abXXb"), (Ids{2, 3, 1}));
  json["model"]["ignore_merges"] = true;
  json["model"]["vocab"]["bab"] = 4;
  EXPECT_EQ(made(json).encode("bab"), (Ids{4}));
}

TEST(BpeTokenizer, RefusesWhatItDoesNotHaveByName) {
  const auto refused = [](std::initializer_list<std::string> parts, const auto& change) {
    nlohmann::json json = learned();
    change(json);
    EXPECT_TRUE(test::fails_with(ErrorCode::kUnsupported, parts, [&] { made(json); }));
  };
  refused({"Unigram"}, [](auto& j) { j["model"]["type"] = "Unigram"; });
  refused({"Metaspace"}, [](auto& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; });
  refused({"BertNormalizer"}, [](auto& j) { j["normalizer"] = {{"type", "BertNormalizer"}}; });
  refused({"WordPiece"}, [](auto& j) { j["decoder"] = {{"type", "WordPiece"}}; });
  refused({"BertProcessing"}, [](auto& j) { j["post_processor"] = {{"type", "BertProcessing"}}; });
  refused({"dropout"}, [](auto& j) { j["model"]["dropout"] = 0.1; });
  refused({"end_of_word_suffix"}, [](auto& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
  refused({"ByteLevel"}, [](auto& j) { j["pre_tokenizer"] = nullptr; });
}

TEST(BpeTokenizer, RefusesFilesThatContradictThemselves) {
  const auto refused = [](std::initializer_list<std::string> parts, const auto& change) {
    nlohmann::json json = learned();
    change(json);
    EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, parts, [&] { made(json); }));
  };
  refused({"merge 0", "zz"}, [](auto& j) { j["model"]["merges"] = {"t zz"}; });
  refused({"merge 1", "a b c"}, [](auto& j) {
    j["model"]["merges"] = {j["model"]["merges"][0], "a b c"};
  });
  refused({"merge 0", "7"}, [](auto& j) { j["model"]["merges"] = {7}; });
  refused({"vocab"}, [](auto& j) { j["model"]["vocab"] = {1, 2}; });
  refused({"-1"}, [](auto& j) { j["model"]["vocab"]["x"] = -1; });
  refused({"3000000000"}, [](auto& j) { j["model"]["vocab"]["xyz"] = 3000000000; });
  refused({"differ", "5"}, [](auto& j) { j["model"]["vocab"]["xyz"] = 5; });
  refused({"id 7", "<x>"}, [](auto& j) { j["added_tokens"].push_back(added(7, "<x>")); });
  refused({"unk_token"}, [](auto& j) { j["model"]["unk_token"] = "nowhere"; });
  refused({"regular expression", "(ab"}, [](auto& j) {
    j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(ab"}}}};
  });
  refused({"behavior", "Sideways"}, [](auto& j) {
    j["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Sideways"}};
  });
  EXPECT_TRUE(
      test::fails_with(ErrorCode::kBadFile, {"model"}, [] { parse_tokenizer_json("{}", "test"); }));
  EXPECT_TRUE(
      test::fails_with(ErrorCode::kBadFile, {"JSON"}, [] { parse_tokenizer_json("{", "test"); }));
  const nlohmann::json json = learned();
  const BpeTokenizer tokenizer = made(json);
  const auto size = static_cast<int32_t>(tokenizer.vocab_size());
  for (const int32_t id : {-1, size}) {
    EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {fmt::format("0..{}", size - 1)},
                                 [&] { tokenizer.token_bytes(id); }));
  }
}

TEST(StreamEncoder, GivesTheIdsOfTheWholeForEveryPreTokenizer) {
  std::mt19937 rng(11);
  std::string text;
  const char* const kPieces[] = {"the",   " cat", "\n",  "\n\n",     "  ",        "12345",
                                 "don't", "!?",   ".\n", "\xc3\xa9", "e\xcc\x81", "<end>",
                                 "\xff",  "x",    " ",   "<l>"};
  while (text.size() < 400'000) text += kPieces[rng() % std::size(kPieces)];
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  nlohmann::json prefix = byte_level, no_regex = byte_level;
  prefix["add_prefix_space"] = true;
  no_regex["use_regex"] = false;
  const auto split = [](SplitPattern pattern) {
    return nlohmann::json{{"type", "Split"},
                          {"pattern", {{"Regex", pattern_text(pattern)}}},
                          {"behavior", "Isolated"}};
  };
  const auto sequence = [](std::vector<nlohmann::json> parts) {
    return nlohmann::json{{"type", "Sequence"}, {"pretokenizers", parts}};
  };
  const nlohmann::json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const nlohmann::json punctuation = {{"type", "Punctuation"}, {"behavior", "Contiguous"}};
  for (const nlohmann::json& pre :
       {byte_level, prefix, sequence({split(SplitPattern::kLlama3), no_regex}),
        sequence({split(SplitPattern::kQwen2), no_regex}), sequence({digits, byte_level}),
        sequence({punctuation, byte_level, digits})}) {
    nlohmann::json json = learned();
    json["pre_tokenizer"] = pre;
    json["normalizer"] = {{"type", "NFC"}};
    json["added_tokens"].push_back(added(300, "<l>"));
    json["added_tokens"].back()["lstrip"] = true;
    json["added_tokens"].push_back(added(301, "  "));
    json["added_tokens"].back()["normalized"] = true;
    const BpeTokenizer tokenizer = made(json);
    const Ids whole = tokenizer.encode(text);
    StreamEncoder stream(tokenizer);
    Ids ids;
    for (size_t at = 0; at < text.size();) {
      const size_t size = 1 + rng() % 60'000;
      stream.push(std::string_view(text).substr(at, size), &ids);
      at += size;
    }
    EXPECT_GT(stream.taken_bytes(), 0) << "no cut was found";
    stream.finish(&ids);
    EXPECT_EQ(ids, whole) << pre;
  }
}

TEST(BpeTrainer, RefusesSizesAndTokensThatCannotBe) {
  const auto refused = [](std::initializer_list<std::string> parts,
                          const BpeTrainOptions& options) {
    EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, parts, [&] { BpeTrainer{options}; }));
  };
  refused({"--vocab-size", "257", "256"}, {.vocab_size = 256, .special = {"<end>"}});
  refused({"--special"}, {.vocab_size = 300, .special = {"<end>", "<end>"}});
  refused({"--special"}, {.vocab_size = 300, .special = {""}});
  refused({"--special", "a"}, {.vocab_size = 300, .special = {"a"}});
  BpeTrainer nothing({.vocab_size = 300});
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"--data"}, [&] { nothing.train({}); }));
}

TEST(BpeTrainer, DependsOnCountsOfWordsAlone) {
  const auto learn = [](const std::vector<std::string>& texts) {
    BpeTrainer trainer({.vocab_size = 290, .special = {"<end>"}});
    for (const std::string& text : texts) {
      for (const char c : text) trainer.add({&c, 1});
      trainer.end_text();
    }
    return trainer.train({});
  };
  EXPECT_EQ(learn({" low low", " lower newest<end> widest"}),
            learn({" widest lower", " newest", " low<end> low"}));
}

}  // namespace
}  // namespace mamba
