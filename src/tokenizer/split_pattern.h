// SPDX-License-Identifier: Apache-2.0
// The well-known patterns that cut text into words before BPE, matched by hand: several times the
// speed of PCRE2 and with the character classes of the current Unicode. tests/tokenizer checks
// them against PCRE2.
#pragma once

#include <cstddef>
#include <string_view>

#include "tokenizer/char_class.h"

namespace mamba {

enum class SplitPattern {
  kOther,   // any regular expression: base on PCRE2
  kGpt2,    // GPT-2, GPT-NeoX, Falcon: ByteLevel's own
  kLlama3,  // cl100k and Llama 3: case-insensitive contractions, numbers of up to 3 digits
  kQwen2,   // the same with single digits
};

// The text of a pattern, as files have it; "" for kOther.
std::string_view pattern_text(SplitPattern pattern);
// kOther for a text that is none of those.
SplitPattern pattern_of(std::string_view text);

// The end of the piece that starts at `at` < text.size(). `text` is valid UTF-8.
size_t gpt2_piece_end(const CharTable& table, std::string_view text, size_t at);
// max_digits: 3 or 1.
size_t llama3_piece_end(const CharTable& table, std::string_view text, size_t at, int max_digits);

inline size_t piece_end(SplitPattern pattern, const CharTable& table, std::string_view text,
                        size_t at) {
  if (pattern == SplitPattern::kGpt2) return gpt2_piece_end(table, text, at);
  return llama3_piece_end(table, text, at, pattern == SplitPattern::kLlama3 ? 3 : 1);
}

}  // namespace mamba
