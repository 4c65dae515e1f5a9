// SPDX-License-Identifier: Apache-2.0
// The forms of a JSONL line.
#include "train/data_jsonl.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/check.h"
#include "base/json.h"
#include "tokenizer/conversation.h"

namespace mamba {
namespace {

constexpr const char* kForms =
    "{\"text\": ...}, {\"prompt\": ..., \"response\" or \"completion\": ...} or {\"messages\": "
    "[...]}";

// Our keys among those of a line.
std::vector<std::string> known_keys(const Json& object) {
  std::vector<std::string> keys;
  for (const char* key : {"text", "prompt", "response", "completion", "messages"}) {
    if (has_member(object, key)) keys.emplace_back(key);
  }
  return keys;
}

[[noreturn]] void fail_form(const std::string& where, const Json& object,
                            const std::vector<std::string>& known) {
  std::string got = fmt::format("the keys {}", fmt::join(known, ", "));
  if (known.empty()) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : object.items()) {
      if (keys.size() < 5) keys.push_back(printable(key, 20));
    }
    got = keys.empty() ? "no key" : fmt::format("the keys {}", fmt::join(keys, ", "));
  }
  fail(ErrorCode::kBadFile, "[{}] expected {}, got {}; use one form a line", where, kForms, got);
}

}  // namespace

JsonlDocument parse_jsonl_line(std::string_view line, const std::string& where) {
  if (line.find_first_not_of(" \t\r") == std::string_view::npos) return {};
  if (line.size() > kMaxJsonlLine) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a line of at most {} MiB, got {} bytes; cut it, or give the text as a file "
         "of its own",
         where, kMaxJsonlLine >> 20, line.size());
  }
  const Json object = parse_json(line, where, {kMaxJsonlLine, 64});
  if (!object.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected one JSON object a line, like {}; got {}", where,
         kForms, printable_json(object));
  }
  const std::vector<std::string> known = known_keys(object);
  if (known == std::vector<std::string>{"text"}) {
    return {{{get_string(object, "text", where), true}}, {}};
  }
  if (known == std::vector<std::string>{"messages"}) {
    return {{}, parse_messages(object["messages"], where)};
  }
  if (known.size() != 2 || known[0] != "prompt" || known[1] == "messages") {
    fail_form(where, object, known);
  }
  return {{{get_string(object, "prompt", where), false},
           {get_string(object, known[1].c_str(), where), true}},
          {}};
}

std::vector<LineBlock> cut_lines(std::string_view text, size_t bytes) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  std::vector<LineBlock> blocks;
  int64_t line = 1;
  while (!text.empty()) {
    size_t end = bytes < text.size() ? text.find('\n', bytes) : std::string_view::npos;
    end = end == std::string_view::npos ? text.size() : end + 1;
    blocks.push_back({text.substr(0, end), line});
    line += std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), '\n');
    text.remove_prefix(end);
  }
  return blocks;
}

std::string_view next_line(std::string_view* text) {
  const size_t end = std::min(text->find('\n'), text->size());
  std::string_view line = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

}  // namespace mamba
