// SPDX-License-Identifier: Apache-2.0
// The hand-written matchers against PCRE2 with the same patterns, on random text, and the classes
// of characters against PCRE2's for every code point.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tokenizer/regex.h"
#include "tokenizer/split_pattern.h"

namespace mamba {
namespace {

bool is_surrogate(uint32_t c) { return c >= 0xd800 && c < 0xe000; }

// Every code point as text, and where each begins.
struct AllCharacters {
  std::string text;
  std::vector<uint32_t> code_at;  // by byte, at first bytes
  AllCharacters() {
    for (uint32_t c = 0; c < 0x110000; ++c) {
      if (is_surrogate(c)) continue;
      const size_t before = text.size();
      append_utf8(c, &text);
      code_at.resize(text.size());
      code_at[before] = c;
    }
  }
  std::vector<bool> members(const std::string& pattern) const {
    std::vector<bool> found(0x110000);
    for (const RegexMatch& match : Regex(pattern, "test").find_all(text)) {
      found[code_at[match.begin]] = true;
    }
    return found;
  }
};

// Where PCRE2 (Unicode 14) and the table (asked of Hugging Face tokenizers) agree.
std::vector<bool> same_classes() {
  const AllCharacters all;
  std::vector<bool> same(0x110000, true);
  const std::pair<const char*, CharClass> kClasses[] = {
      {R"(\p{L})", kLetter}, {R"(\p{N})", kNumber}, {R"(\s)", kSpace}};
  for (const auto& [pattern, kind] : kClasses) {
    const std::vector<bool> members = all.members(pattern);
    for (uint32_t c = 0; c < 0x110000; ++c) {
      if (members[c] != ((CharTable::get().of(c) & kind) != 0)) same[c] = false;
    }
  }
  return same;
}

TEST(CharTable, DiffersFromPcre2OnlyWhereUnicode14AssignsNothing) {
  const std::vector<bool> same = same_classes();
  const std::vector<bool> unassigned = AllCharacters().members(R"(\p{Cn})");
  int newer = 0;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (is_surrogate(c) || same[c]) continue;
    EXPECT_TRUE(unassigned[c] || c == 0x180e) << std::hex << c;
    ++newer;
  }
  EXPECT_GT(newer, 100);  // a table that PCRE2 itself had filled would say nothing
}

class SplitPatterns : public testing::TestWithParam<SplitPattern> {};

TEST_P(SplitPatterns, CutTextAsPcre2Does) {
  const SplitPattern pattern = GetParam();
  const Regex regex(std::string(pattern_text(pattern)), "test");
  const std::vector<bool> same = same_classes();
  const CharTable& table = CharTable::get();
  const char* const kPieces[] = {
      "'s", "'S", "'re",  "'LL",  "'ll", "'d",       "'\xc5\xbf",    "'",
      " ",  "  ", "\n",   "\r\n", "\t",  "\xc2\xa0", "\xe3\x80\x80", "ab",
      "Z",  "7",  "1234", "!",    "?!",  "\xc3\xa9", "\xcc\x81",     "\xd9\xa3"};
  std::mt19937 rng(7);
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const int pieces = static_cast<int>(rng() % 12) + 1;
    for (int i = 0; i < pieces; ++i) {
      const uint32_t code = rng() % (rng() % 4 == 0 ? 0x20000 : 0x3000);
      if (rng() % 4 != 0) {
        text += kPieces[rng() % std::size(kPieces)];
      } else if (!is_surrogate(code) && same[code]) {
        append_utf8(code, &text);
      }
    }
    std::vector<size_t> expected, found;
    for (const RegexMatch& match : regex.find_all(text)) expected.push_back(match.end);
    for (size_t at = 0; at < text.size();) {
      at = piece_end(pattern, table, text, at);
      found.push_back(at);
    }
    ASSERT_EQ(found, expected) << "round " << round << ": '" << text << "'";
  }
}

INSTANTIATE_TEST_SUITE_P(All, SplitPatterns,
                         testing::Values(SplitPattern::kGpt2, SplitPattern::kLlama3,
                                         SplitPattern::kQwen2));

}  // namespace
}  // namespace mamba
