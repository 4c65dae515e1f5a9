// SPDX-License-Identifier: Apache-2.0
// Settings from TOML, INI and JSON. CLI11's own reader takes a # within quotes for a comment,
// splits values at spaces and knows no lines, hence this one.
#include "cli/config_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/check.h"
#include "base/json.h"
#include "base/utf8.h"
#include "cli/args.h"

namespace mamba::cli {
namespace {

constexpr int64_t kMaxBytes = 1 << 20;
constexpr const char* kBlank = " \t\r";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";  // of editors on Windows

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

class TomlReader {
 public:
  TomlReader(const std::string& text, const std::string& path) : text_(text), path_(path) {}

  std::vector<Setting> read() && {
    while (at_ < text_.size()) read_line();
    return std::move(settings_);
  }

 private:
  std::string where() const { return fmt::format("{}:{}", printable(path_, 200), line_); }

  [[noreturn]] void refuse(const std::string& expected, const std::string& got) const {
    fail(ErrorCode::kBadFile, "[{}] expected {}, got '{}'; write name = value, or [command]",
         where(), expected, printable(got));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\n'; }
  void skip_blank() {
    while (at_ < text_.size() && std::string(kBlank).find(peek()) != std::string::npos) ++at_;
  }
  std::string rest_of_line() const {
    return text_.substr(at_, std::min(text_.find('\n', at_), text_.size()) - at_);
  }
  void next_line() {
    at_ = std::min(text_.find('\n', at_), text_.size());
    ++at_;
    ++line_;
  }

  void read_line() {
    skip_blank();
    const char first = peek();
    if (first == '[') {
      read_section();
    } else if (first != '\n' && first != '#' && first != ';') {
      read_setting();
    }
    skip_blank();
    if (peek() != '\n' && peek() != '#' && peek() != ';') {
      refuse("the end of the line", rest_of_line());
    }
    next_line();
  }

  void read_section() {
    const std::string line = rest_of_line();
    const size_t end = line.find(']');
    section_ = end == std::string::npos ? "" : trimmed(line.substr(1, end - 1));
    if (section_.empty() || section_[0] == '[') refuse("[command]", line);
    std::replace(section_.begin(), section_.end(), '.', ' ');
    std::erase(section_, '"');
    at_ += end + 1;
  }

  void read_setting() {
    const std::string line = rest_of_line();
    const size_t equals = line.find('=');
    if (equals == std::string::npos) refuse("'='", line);
    Setting setting;
    setting.section = section_;
    setting.key = trimmed(line.substr(0, equals));
    std::erase(setting.key, '"');
    setting.where = where();
    if (const size_t dot = setting.key.rfind('.'); dot != std::string::npos) {
      std::string inner = setting.key.substr(0, dot);
      std::replace(inner.begin(), inner.end(), '.', ' ');
      setting.section += (section_.empty() ? "" : " ") + inner;
      setting.key.erase(0, dot + 1);
    }
    if (setting.key.empty()) refuse("the name of a flag before '='", line);
    at_ += equals + 1;
    skip_blank();
    setting.is_list = peek() == '[';
    if (setting.is_list) {
      read_list(setting.values);
    } else {
      setting.values.push_back(read_value("#"));
    }
    settings_.push_back(std::move(setting));
  }

  void skip_to_item() {  // over blanks, ends of lines and comments within a list
    for (skip_blank(); at_ < text_.size() && (peek() == '\n' || peek() == '#'); skip_blank()) {
      next_line();
    }
    if (at_ >= text_.size()) refuse("']'", "the end of the file");
  }

  void read_list(std::vector<std::string>& values) {
    ++at_;
    for (skip_to_item(); peek() != ']'; skip_to_item()) {
      if (peek() == '[' || peek() == '{') refuse("a value in a list", rest_of_line());
      const bool quoted = peek() == '"' || peek() == '\'';
      values.push_back(read_value(",]#"));
      if (!quoted && values.back().find_first_of(" \t\"'") != std::string::npos) {
        refuse("',' or ']' behind a value", values.back());
      }
      skip_to_item();
      if (peek() == ',') {
        ++at_;
      } else if (peek() != ']') {
        refuse("',' or ']'", rest_of_line());
      }
    }
    ++at_;
  }

  // A string in quotes, or what stands before the line ends or one of `ends` comes.
  std::string read_value(const std::string& ends) {
    if (peek() == '"' || peek() == '\'') return read_quoted(peek());
    if (peek() == '{') refuse("a value", rest_of_line());
    const std::string line = rest_of_line();
    const size_t end = std::min(line.find_first_of(ends), line.size());
    const std::string value = trimmed(line.substr(0, end));
    if (value.empty()) refuse("a value", line);
    at_ += end;
    return value;
  }

  std::string read_quoted(char quote) {
    const std::string line = rest_of_line();
    if (line.starts_with(std::string(3, quote))) refuse("a string within one line", line);
    std::string value;
    for (++at_; peek() != quote; ++at_) {
      if (peek() == '\n') refuse(std::string("a closing ") + quote, line);
      value += peek() == '\\' && quote == '"' ? read_escape() : std::string(1, peek());
    }
    ++at_;
    return value;
  }

  std::string read_escape() {
    static constexpr const char* kNames = "\"\\/bfnrt";
    static constexpr const char* kBytes = "\"\\/\b\f\n\r\t";
    const char name = at_ + 1 < text_.size() ? text_[at_ + 1] : '\n';
    if (const char* found = std::char_traits<char>::find(kNames, 8, name); found != nullptr) {
      ++at_;
      return std::string(1, kBytes[found - kNames]);
    }
    const std::string hex = name == 'u' ? text_.substr(at_ + 2, 4) : "";
    if (hex.size() < 4 || hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
      refuse("one of the escapes \\\" \\\\ \\n \\r \\t \\b \\f \\uXXXX", rest_of_line());
    }
    at_ += 1 + hex.size();
    // The JSON parser knows how to write a code point as UTF-8, and refuses half a pair.
    return parse_json("\"\\u" + hex + "\"", where()).get<std::string>();
  }

  const std::string& text_;
  const std::string& path_;
  size_t at_ = 0;
  int64_t line_ = 1;
  std::string section_;
  std::vector<Setting> settings_;
};

std::string json_text(const Json& value, const std::string& where) {
  constexpr double kWhole = 9007199254740992;  // 2^53
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) {  // 1e3 may be meant for a flag of whole numbers
    const double number = value.get<double>();
    if (std::trunc(number) == number && std::fabs(number) <= kWhole) {
      return fmt::format("{}", static_cast<int64_t>(number));
    }
  }
  if (value.is_number() || value.is_boolean()) return value.dump();
  fail(ErrorCode::kBadFile, "[{}] expected text, a number, true, false or a list of them, got {}",
       where, printable_json(value));
}

void add_json(const Json& object, const std::string& section, const std::string& where,
              std::vector<Setting>* settings) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      add_json(value, section + (section.empty() ? "" : " ") + key, where, settings);
      continue;
    }
    const std::string path = section.empty() ? key : section + "." + key;
    Setting setting{section, key, {}, value.is_array(), where + ", '" + printable(path) + "'"};
    if (value.is_array()) {
      for (const Json& item : value) setting.values.push_back(json_text(item, setting.where));
    } else {
      setting.values.push_back(json_text(value, setting.where));
    }
    settings->push_back(std::move(setting));
  }
}

}  // namespace

std::vector<Setting> parse_config_toml(const std::string& text, const std::string& path) {
  std::string lines;  // that end as here, whichever system wrote them
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      lines += text[i];
    } else if (i + 1 >= text.size() || text[i + 1] != '\n') {
      lines += '\n';
    }
  }
  return TomlReader(lines, path).read();
}

std::vector<Setting> parse_config_json(const std::string& text, const std::string& path) {
  const std::string where = printable(path, 200);
  const Json json = parse_json(text, where);
  if (!json.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected an object of settings, got {}", where,
         printable_json(json));
  }
  std::vector<Setting> settings;
  add_json(json, "", where, &settings);
  return settings;
}

std::vector<Setting> read_config_file(const std::string& path) {
  std::string text = read_input(path, kMaxBytes, "--config");
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  return path.ends_with(".json") ? parse_config_json(text, path) : parse_config_toml(text, path);
}

}  // namespace mamba::cli
