// SPDX-License-Identifier: Apache-2.0
// Strings of templates: bytes that remember whether the template or its data wrote them, and what
// Python's str does with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mamba::jinja {

// Bytes, and for each of them its origin. Every operation on strings keeps the origin, so that a
// rendered text still tells the template's markers from what somebody typed.
class Text {
 public:
  Text() = default;
  Text(std::string_view bytes, bool from_template) { append(bytes, from_template); }

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool from_template(size_t i) const { return origin_[i] == '\1'; }
  bool marked(size_t i) const { return origin_[i] == '\2'; }
  // Makes all bytes such of the data that are found again by marked().
  void mark() { origin_.assign(origin_.size(), '\2'); }

  void append(std::string_view bytes, bool from_template) {
    bytes_ += bytes;
    origin_.append(bytes.size(), from_template ? '\1' : '\0');
  }
  void append(const Text& other) {
    bytes_ += other.bytes_;
    origin_ += other.origin_;
  }
  void append(const Text& other, size_t begin, size_t count) {
    bytes_.append(other.bytes_, begin, count);
    origin_.append(other.origin_, begin, count);
  }
  Text substr(size_t begin, size_t count = std::string::npos) const {
    Text out;
    out.append(*this, begin, count);
    return out;
  }
  // The same origins with other bytes; `bytes` has size() of them.
  Text with_bytes(std::string bytes) const;

 private:
  std::string bytes_;
  std::string origin_;  // of each byte: 1 the template, 0 the data, 2 marked data
};

// Bytes of the character at the start of `s` (not empty); a byte that is no UTF-8 counts as one.
size_t char_size(std::string_view s);
uint32_t code_point(std::string_view s);
size_t count_chars(std::string_view s);
// The byte offset of every character and of the end.
std::vector<size_t> char_offsets(std::string_view s);
std::string utf8_of(uint32_t code_point);
// As str.isspace() of one character.
bool is_space(uint32_t code_point);

enum Sides : unsigned { kLeft = 1, kRight = 2, kBoth = 3 };
// str.strip and its kin; whitespace where `chars` is null, else any character of it.
Text strip(const Text& text, const std::string* chars, Sides sides);
// str.split and str.rsplit: at whitespace where `separator` is null (it is not empty otherwise), at
// most `limit` times where that is not negative.
std::vector<Text> split(const Text& text, const std::string* separator, int64_t limit,
                        bool from_right);
// str.replace: at most `limit` times where that is not negative.
Text replace(const Text& text, const std::string& old, const Text& by, int64_t limit);

enum class Case { kUpper, kLower, kTitle, kCapitalize };
bool is_ascii(std::string_view s);
// Of ASCII text. kTitle begins words at every letter that follows none (str.title).
Text change_case(const Text& text, Case how);

// repr() of a string.
std::string repr_of(std::string_view s);
// repr() of a float.
std::string float_text(double value);

}  // namespace mamba::jinja
