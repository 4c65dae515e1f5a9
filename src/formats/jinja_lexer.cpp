// SPDX-License-Identifier: Apache-2.0
// The lexer. Line by line it follows what the Jinja documentation says on whitespace control.
#include "formats/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/json.h"
#include "formats/jinja_value.h"

namespace mamba::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name(char c) { return is_name_start(c) || is_digit(c); }

// \r\n and \r become \n, and one newline at the end goes.
std::string normalized(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else if (i + 1 >= source.size() || source[i + 1] != '\n') {
      out += '\n';
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalized(source)), s_(source_) {}

  std::vector<Token> run() {
    while (at_ < s_.size()) {
      const size_t tag = find_tag();
      if (tag == std::string::npos) {
        add(Token::kData, std::string(s_.substr(at_)), 0);
        advance(s_.size());
        break;
      }
      const char kind = s_[tag + 1];
      const char sign = tag + 2 < s_.size() ? s_[tag + 2] : '\0';
      const bool signed_tag = sign == '-' || sign == '+';
      take_data(tag, kind, sign);
      advance(tag + (signed_tag ? 3 : 2));
      if (kind == '#') {
        comment();
      } else if (kind == '%' && starts_raw()) {
        raw();
      } else {
        tag_body(kind == '%');
      }
    }
    add(Token::kEnd, "", 0);
    return std::move(tokens_);
  }

 private:
  Site site() const { return {line_, nullptr}; }

  void add(Token::Kind kind, std::string text, size_t length) {
    if (kind != Token::kData || !text.empty()) tokens_.push_back({kind, line_, std::move(text)});
    advance(at_ + length);
  }
  void advance(size_t to) {
    line_ += static_cast<int>(std::count(s_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         s_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }
  bool here(std::string_view text) const { return s_.substr(at_, text.size()) == text; }
  size_t skip_space(size_t i) const {
    while (i < s_.size() && is_space(code_point(s_.substr(i)))) i += char_size(s_.substr(i));
    return i;
  }

  size_t find_tag() const {
    for (size_t i = s_.find('{', at_); i != std::string::npos; i = s_.find('{', i + 1)) {
      if (i + 1 < s_.size() && std::string_view("%{#").find(s_[i + 1]) != std::string::npos)
        return i;
    }
    return std::string::npos;
  }

  // The text before a tag: "-" strips it, and lstrip_blocks takes the spaces from the start of a
  // line to a block or comment.
  void take_data(size_t tag, char kind, char sign) {
    Text data(s_.substr(at_, tag - at_), true);
    if (sign == '-') {
      data = strip(data, nullptr, kRight);
    } else if (sign != '+' && kind != '{') {
      const size_t newline = data.bytes().rfind('\n');
      const size_t start = newline == std::string::npos ? 0 : newline + 1;
      const bool starts_line = start > 0 || at_ == 0 || s_[at_ - 1] == '\n';
      const Text rest = data.substr(start);
      if (starts_line && strip(rest, nullptr, kBoth).size() == 0) data = data.substr(0, start);
    }
    add(Token::kData, data.bytes(), 0);
  }

  // Behind "%}" and "#}": the first newline goes (trim_blocks), or all whitespace.
  void end_tag(char sign) {
    if (sign == '-') {
      advance(skip_space(at_));
    } else if (sign != '+' && at_ < s_.size() && s_[at_] == '\n') {
      advance(at_ + 1);
    }
  }

  void comment() {
    const size_t end = s_.find("#}", at_);
    if (end == std::string::npos) site().bad("expected '#}}' at the end of a comment, got none");
    const char sign = end > at_ ? s_[end - 1] : '\0';
    advance(end + 2);
    end_tag(sign);
  }

  // "raw %}" or "raw -%}" behind "{%".
  bool starts_raw() const {
    size_t i = skip_space(at_);
    if (s_.substr(i, 3) != "raw") return false;
    i = skip_space(i + 3);
    return s_.substr(i, 2) == "%}" || s_.substr(i, 3) == "-%}";
  }

  void raw() {
    const size_t open = s_.find("%}", at_);
    const bool stripped = s_[open - 1] == '-';
    advance(open + 2);
    if (stripped) advance(skip_space(at_));
    for (size_t i = s_.find("{%", at_); i != std::string::npos; i = s_.find("{%", i + 1)) {
      const char sign = i + 2 < s_.size() ? s_[i + 2] : '\0';
      size_t j = skip_space(i + (sign == '-' || sign == '+' ? 3 : 2));
      if (s_.substr(j, 6) != "endraw") continue;
      j = skip_space(j + 6);
      const char end_sign = j < s_.size() && (s_[j] == '-' || s_[j] == '+') ? s_[j] : '\0';
      if (end_sign != '\0') ++j;
      if (s_.substr(j, 2) != "%}") continue;
      take_data(i, '%', sign);
      advance(j + 2);
      end_tag(end_sign);
      return;
    }
    site().bad("expected '{{% endraw %}}', got none");
  }

  // Names, numbers, strings and operators up to the end of a tag.
  void tag_body(bool block) {
    add(block ? Token::kBlockBegin : Token::kPrintBegin, "", 0);
    const std::string_view end = block ? "%}" : "}}";
    std::string open;  // brackets: within them "}}" closes two of them
    for (;;) {
      if (at_ >= s_.size()) site().bad("expected '{}' at the end of a tag, got none", end);
      const bool sign = s_[at_] == '-' || (block && s_[at_] == '+');
      if (open.empty() && s_.substr(at_ + (sign ? 1 : 0), 2) == end) {
        const char which = sign ? s_[at_] : '\0';
        add(block ? Token::kBlockEnd : Token::kPrintEnd, "", sign ? 3 : 2);
        if (block || which == '-') end_tag(which);
        return;
      }
      const size_t space = skip_space(at_);
      if (space > at_) {
        advance(space);
        continue;
      }
      token(&open);
    }
  }

  void token(std::string* open) {
    const char c = s_[at_];
    if (is_name_start(c)) {
      size_t end = at_;
      while (end < s_.size() && is_name(s_[end])) ++end;
      add(Token::kName, std::string(s_.substr(at_, end - at_)), end - at_);
    } else if (is_digit(c)) {
      number();
    } else if (c == '"' || c == '\'') {
      string();
    } else {
      operation(open);
    }
  }

  void number() {
    size_t end = at_;
    const auto digits = [&] {
      while (end < s_.size() && (is_digit(s_[end]) || (s_[end] == '_' && end > at_))) ++end;
    };
    digits();
    bool real = false;
    if (end + 1 < s_.size() && s_[end] == '.' && is_digit(s_[end + 1])) {
      real = true;
      ++end;
      digits();
    }
    if (end < s_.size() && (s_[end] == 'e' || s_[end] == 'E')) {
      const size_t sign = end + 1 < s_.size() && (s_[end + 1] == '-' || s_[end + 1] == '+') ? 2 : 1;
      if (end + sign < s_.size() && is_digit(s_[end + sign])) {
        real = true;
        end += sign;
        digits();
      }
    }
    if (end < s_.size() && is_name_start(s_[end])) {
      site().unsupported("the number '{}'", printable(s_.substr(at_, end + 1 - at_), 20));
    }
    std::string text(s_.substr(at_, end - at_));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    if (!real && text.size() > 1 && text[0] == '0') {
      if (text.find_first_not_of('0') != std::string::npos) {
        site().bad("expected a number, got '{}'", printable(text, 20));
      }
      text = "0";
    }
    add(real ? Token::kFloat : Token::kInteger, text, end - at_);
  }

  void string() {
    const char quote = s_[at_];
    std::string text;
    size_t i = at_ + 1;
    while (i < s_.size() && s_[i] != quote) {
      if (s_[i] == '\\') {
        i = escape(i + 1, &text);
      } else {
        text += s_[i++];
      }
    }
    if (i >= s_.size()) site().bad("expected the end of a string, got none");
    add(Token::kString, text, i + 1 - at_);
  }

  // Appends what the escape whose letter is at `i` stands for; returns the index behind it.
  size_t escape(size_t i, std::string* text) {
    static constexpr std::string_view kShort = "n\nt\tr\r\\\\''\"\"a\ab\bf\fv\v";
    if (i >= s_.size()) site().bad("expected the end of a string, got none");
    const char c = s_[i];
    for (size_t k = 0; k < kShort.size(); k += 2) {
      if (kShort[k] != c) continue;
      *text += kShort[k + 1];
      return i + 1;
    }
    if (c == '\n') return i + 1;
    if (c == 'x' || c == 'u' || c == 'U') {
      return code_escape(i + 1, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, text);
    }
    if (c >= '0' && c <= '7') {
      size_t digits = 1;
      while (digits < 3 && i + digits < s_.size() && s_[i + digits] >= '0' &&
             s_[i + digits] <= '7') {
        ++digits;
      }
      return code_escape(i, digits, 8, text);
    }
    if (c == 'N') site().unsupported("the escape '\\N'");
    *text += '\\';  // Python keeps what it does not know
    return i;
  }

  size_t code_escape(size_t i, size_t digits, uint32_t base, std::string* text) {
    uint32_t value = 0;
    for (size_t k = 0; k < digits; ++k) {
      const char c = i + k < s_.size() ? s_[i + k] : '\0';
      const uint32_t digit = is_digit(c)              ? static_cast<uint32_t>(c - '0')
                             : (c >= 'a' && c <= 'f') ? static_cast<uint32_t>(c - 'a' + 10)
                             : (c >= 'A' && c <= 'F') ? static_cast<uint32_t>(c - 'A' + 10)
                                                      : base;
      if (digit >= base) site().bad("expected {} digits in an escape, got fewer", digits);
      value = value * base + digit;
    }
    if (value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) {
      site().bad("expected an escape of a character, got {:#x}", value);
    }
    *text += utf8_of(value);
    return i + digits;
  }

  void operation(std::string* open) {
    static constexpr std::array<std::string_view, 25> kOperators = {
        "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "(",
        ")",  "[",  "]",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","};
    const auto found = std::find_if(kOperators.begin(), kOperators.end(),
                                    [&](std::string_view op) { return here(op); });
    if (found == kOperators.end()) {
      site().bad("expected an expression, got '{}'", printable(s_.substr(at_, 1)));
    }
    const char c = (*found)[0];
    static constexpr std::string_view kOpen = "([{", kClose = ")]}";
    if (kOpen.find(c) != std::string::npos) {
      *open += kClose[kOpen.find(c)];
    } else if (kClose.find(c) != std::string::npos) {
      if (open->empty() || open->back() != c) {
        site().bad("expected {}, got '{}'",
                   open->empty() ? "no bracket to close" : fmt::format("'{}'", open->back()), c);
      }
      open->pop_back();
    }
    add(Token::kOperator, std::string(*found), found->size());
  }

  const std::string source_;
  const std::string_view s_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace mamba::jinja
