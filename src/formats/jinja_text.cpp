// SPDX-License-Identifier: Apache-2.0
// Python's operations on strings, by character, with origins kept.
#include "formats/jinja_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace mamba::jinja {
namespace {

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool is_printable(uint32_t c) {
  if (c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0xad) return false;
  if (c != ' ' && is_space(c)) return false;
  const bool format = (c >= 0x200b && c <= 0x200f) || (c >= 0x202a && c <= 0x202e) ||
                      (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
  const bool no_character = (c >= 0xd800 && c <= 0xf8ff) || c >= 0xe0000;
  return !format && !no_character;
}

// Words between runs of whitespace, from the left.
std::vector<Text> split_words(const Text& text, int64_t limit) {
  std::vector<Text> parts;
  const std::string_view s = text.bytes();
  size_t at = 0;
  const auto skip = [&](bool space) {
    while (at < s.size() && is_space(code_point(s.substr(at))) == space) {
      at += char_size(s.substr(at));
    }
  };
  for (skip(true); at < s.size(); skip(true)) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(text.substr(at));
      return parts;
    }
    const size_t begin = at;
    skip(false);
    parts.push_back(text.substr(begin, at - begin));
  }
  return parts;
}

// The same from the right.
std::vector<Text> split_words_right(const Text& text, int64_t limit) {
  std::vector<Text> words = split_words(text, -1);
  if (limit < 0 || static_cast<int64_t>(words.size()) <= limit) return words;
  Text rest = strip(text, nullptr, kRight);
  std::vector<Text> parts;
  for (int64_t i = 0; i < limit; ++i) {
    const Text& word = words[words.size() - 1 - static_cast<size_t>(i)];
    parts.insert(parts.begin(), word);
    rest = strip(rest.substr(0, rest.size() - word.size()), nullptr, kRight);
  }
  parts.insert(parts.begin(), rest);
  return parts;
}

}  // namespace

Text Text::with_bytes(std::string bytes) const {
  MAMBA_CHECK(bytes.size() == bytes_.size());
  Text out = *this;
  out.bytes_ = std::move(bytes);
  return out;
}

size_t char_size(std::string_view s) {
  const unsigned char lead = static_cast<unsigned char>(s[0]);
  const size_t size = lead < 0xc2 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 1;
  if (size > s.size()) return 1;
  for (size_t i = 1; i < size; ++i) {
    if (!is_continuation(s[i])) return 1;
  }
  return size;
}

uint32_t code_point(std::string_view s) {
  const size_t size = char_size(s);
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(s[i]));
  };
  if (size == 1) return byte(0) < 0x80 ? byte(0) : 0xdc00 + byte(0);  // as Python's surrogateescape
  uint32_t value = byte(0) & (0x7fu >> size);
  for (size_t i = 1; i < size; ++i) value = value << 6 | (byte(i) & 0x3f);
  return value;
}

size_t count_chars(std::string_view s) {
  size_t count = 0;
  for (size_t at = 0; at < s.size(); at += char_size(s.substr(at))) ++count;
  return count;
}

std::vector<size_t> char_offsets(std::string_view s) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < s.size(); at += char_size(s.substr(at))) offsets.push_back(at);
  offsets.push_back(s.size());
  return offsets;
}

std::string utf8_of(uint32_t c) {
  std::string out;
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | c >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xf0 | c >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
  return out;
}

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

Text strip(const Text& text, const std::string* chars, Sides sides) {
  const std::string_view s = text.bytes();
  const auto goes = [&](std::string_view c) {
    if (chars == nullptr) return is_space(code_point(c));
    for (size_t at = 0; at < chars->size();) {
      const std::string_view rest = std::string_view(*chars).substr(at);
      const size_t size = char_size(rest);
      if (rest.substr(0, size) == c) return true;
      at += size;
    }
    return false;
  };
  size_t begin = 0, end = s.size();
  while ((sides & kLeft) && begin < end) {
    const size_t size = char_size(s.substr(begin));
    if (!goes(s.substr(begin, size))) break;
    begin += size;
  }
  while ((sides & kRight) && begin < end) {
    size_t at = end - 1;
    while (at > begin && end - at < 4 && is_continuation(s[at])) --at;
    if (at + char_size(s.substr(at, end - at)) != end) at = end - 1;  // a byte that is no UTF-8
    if (!goes(s.substr(at, end - at))) break;
    end = at;
  }
  return text.substr(begin, end - begin);
}

std::vector<Text> split(const Text& text, const std::string* separator, int64_t limit,
                        bool from_right) {
  if (separator == nullptr) {
    return from_right ? split_words_right(text, limit) : split_words(text, limit);
  }
  const std::string& s = text.bytes();
  std::vector<Text> parts;
  if (!from_right) {
    size_t begin = 0;
    while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
      const size_t at = s.find(*separator, begin);
      if (at == std::string::npos) break;
      parts.push_back(text.substr(begin, at - begin));
      begin = at + separator->size();
    }
    parts.push_back(text.substr(begin));
    return parts;
  }
  size_t end = s.size();
  while (end >= separator->size() && (limit < 0 || static_cast<int64_t>(parts.size()) < limit)) {
    const size_t at = s.rfind(*separator, end - separator->size());
    if (at == std::string::npos) break;
    parts.push_back(text.substr(at + separator->size(), end - at - separator->size()));
    end = at;
  }
  parts.push_back(text.substr(0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Text replace(const Text& text, const std::string& old, const Text& by, int64_t limit) {
  const std::string& s = text.bytes();
  Text out;
  size_t begin = 0;
  int64_t done = 0;
  if (old.empty()) {  // between all characters
    while (limit < 0 || done < limit) {
      out.append(by);
      ++done;
      if (begin >= s.size()) return out;
      const size_t size = char_size(std::string_view(s).substr(begin));
      out.append(text, begin, size);
      begin += size;
    }
  } else {
    while (limit < 0 || done < limit) {
      const size_t at = s.find(old, begin);
      if (at == std::string::npos) break;
      out.append(text, begin, at - begin);
      out.append(by);
      begin = at + old.size();
      ++done;
    }
  }
  out.append(text, begin, std::string::npos);
  return out;
}

bool is_ascii(std::string_view s) {
  return std::all_of(s.begin(), s.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 128; });
}

Text change_case(const Text& text, Case how) {
  std::string bytes = text.bytes();
  bool in_word = false;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const bool first = how == Case::kTitle ? !in_word : how == Case::kCapitalize && i == 0;
    in_word = is_letter(bytes[i]);
    bytes[i] = how == Case::kUpper || first ? upper(bytes[i]) : lower(bytes[i]);
  }
  return text.with_bytes(std::move(bytes));
}

std::string repr_of(std::string_view s) {
  const bool single =
      s.find('\'') == std::string_view::npos || s.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  while (!s.empty()) {
    const size_t size = char_size(s);
    const uint32_t c = code_point(s);
    if (c == static_cast<uint32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += s.substr(0, size);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += c < 0x10000 ? fmt::format("\\u{:04x}", c) : fmt::format("\\U{:08x}", c);
    }
    s.remove_prefix(size);
  }
  return out + quote;
}

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::string out = fmt::format("{}", value);
  if (out.find_first_of(".e") == std::string::npos) out += ".0";
  return out;
}

}  // namespace mamba::jinja
