// SPDX-License-Identifier: Apache-2.0
// The well-known patterns by hand. Each function tries the alternatives of its pattern in order.
#include "tokenizer/split_pattern.h"

namespace mamba {
namespace {

constexpr std::string_view kGpt2Text =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Text =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Text =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr uint8_t kKind = kLetter | kNumber | kSpace;

// The end of the run of characters whose kind is `kind` (0: none of letter, number, space).
size_t run_end(const CharTable& table, std::string_view text, size_t at, uint8_t kind) {
  uint32_t length;
  while (at < text.size() && (table.at(text.data() + at, &length) & kKind) == kind) at += length;
  return at;
}

bool is_newline(char c) { return c == '\r' || c == '\n'; }

// \s+(?!\S)|\s+ : all of a run at the end of the text, else all but its last character.
size_t space_end(const CharTable& table, std::string_view text, size_t at) {
  size_t end = at, last = at;
  uint32_t length;
  while (end < text.size() && (table.at(text.data() + end, &length) & kSpace) != 0) {
    last = end;
    end += length;
  }
  return end == text.size() || last == at ? end : last;
}

// The length of 's, 't, 're, 've, 'm, 'll or 'd at `at`, or 0.
size_t contraction(std::string_view text, size_t at) {
  if (at + 1 >= text.size()) return 0;
  const char a = text[at + 1];
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (at + 2 >= text.size()) return 0;
  const char b = text[at + 2];
  if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return 3;
  return 0;
}

// The same in any case. U+017F is an s in another case.
size_t contraction_any_case(std::string_view text, size_t at) {
  std::string_view rest = text.substr(at, 3);
  if (rest.substr(1) == "\xc5\xbf") return 3;
  char lower[3] = {'\'', 0, 0};
  for (size_t i = 1; i < rest.size(); ++i) {
    const char c = rest[i];
    lower[i] = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return contraction({lower, rest.size()}, 0);
}

}  // namespace

std::string_view pattern_text(SplitPattern pattern) {
  switch (pattern) {
    case SplitPattern::kGpt2:
      return kGpt2Text;
    case SplitPattern::kLlama3:
      return kLlama3Text;
    case SplitPattern::kQwen2:
      return kQwen2Text;
    case SplitPattern::kOther:
      return "";
  }
  return "";
}

SplitPattern pattern_of(std::string_view text) {
  for (const SplitPattern p : {SplitPattern::kGpt2, SplitPattern::kLlama3, SplitPattern::kQwen2}) {
    if (text == pattern_text(p)) return p;
  }
  return SplitPattern::kOther;
}

size_t gpt2_piece_end(const CharTable& table, std::string_view text, size_t at) {
  const char first = text[at];
  if (first == '\'') {
    const size_t length = contraction(text, at);
    if (length > 0) return at + length;
  }
  const size_t start = at + (first == ' ' && at + 1 < text.size() ? 1 : 0);
  uint32_t length;
  const uint8_t kind = table.at(text.data() + start, &length) & kKind;
  if (kind == kSpace) return space_end(table, text, at);
  return run_end(table, text, start + length, kind);
}

size_t llama3_piece_end(const CharTable& table, std::string_view text, size_t at, int max_digits) {
  const char first = text[at];
  if (first == '\'') {
    const size_t length = contraction_any_case(text, at);
    if (length > 0) return at + length;
  }
  uint32_t length, next_length;
  const uint8_t kind = table.at(text.data() + at, &length) & kKind;
  if (kind == kLetter) return run_end(table, text, at + length, kLetter);
  if (kind == kNumber) {
    at += length;
    for (int digits = 1; digits < max_digits && at < text.size(); ++digits) {
      if ((table.at(text.data() + at, &length) & kKind) != kNumber) break;
      at += length;
    }
    return at;
  }
  const size_t next = at + length;
  const uint8_t next_kind =
      next < text.size() ? table.at(text.data() + next, &next_length) & kKind : kSpace;
  if (!is_newline(first) && next_kind == kLetter) {
    return run_end(table, text, next + next_length, kLetter);
  }
  if (kind == 0 || (first == ' ' && next_kind == 0)) {
    size_t end = run_end(table, text, next, 0);
    while (end < text.size() && is_newline(text[end])) ++end;
    return end;
  }
  const size_t end = run_end(table, text, at, kSpace);
  for (size_t i = end; i > at; --i) {
    if (is_newline(text[i - 1])) return i;
  }
  return space_end(table, text, at);
}

}  // namespace mamba
