// SPDX-License-Identifier: Apache-2.0
// Special tokens of templates, and ordinary text between them.
#include "tokenizer/chat_text.h"

#include <algorithm>
#include <string_view>

namespace mamba {

SpecialNames special_names(const Tokenizer& tokenizer) {
  SpecialNames names;
  for (int64_t i = 0; i < tokenizer.vocab_size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (tokenizer.is_special(id)) names.emplace_back(tokenizer.token_bytes(id), id);
  }
  std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) {
    return a.first.size() != b.first.size() ? a.first.size() > b.first.size() : a < b;
  });
  return names;
}

ChatText::ChatText(const jinja::Text& written, const SpecialNames& names) : text(written.bytes()) {
  const auto is_own = [&](size_t begin, size_t end) {
    while (begin < end && written.from_template(begin)) ++begin;
    return begin == end;
  };
  for (size_t at = 0; at < text.size();) {
    size_t next = at + 1;
    const bool possible = written.from_template(at);
    for (size_t i = 0; possible && i < names.size(); ++i) {
      const auto& [name, id] = names[i];
      if (name.empty() || text.compare(at, name.size(), name) != 0) continue;
      if (!is_own(at, at + name.size())) continue;
      next = at + name.size();
      specials.push_back({at, next, id});
      break;
    }
    at = next;
  }
}

std::vector<int32_t> ChatText::encode(const Tokenizer& tokenizer, size_t begin, size_t end) const {
  std::vector<int32_t> ids;
  const auto ordinary = [&](size_t to) {
    if (to <= begin) return;
    EncodeOptions options;
    options.parse_special = false;
    const auto part =
        tokenizer.encode_with(std::string_view(text).substr(begin, to - begin), options);
    ids.insert(ids.end(), part.begin(), part.end());
  };
  for (const Special& special : specials) {
    if (special.begin < begin || special.end > end) continue;
    ordinary(special.begin);
    ids.push_back(special.id);
    begin = special.end;
  }
  ordinary(end);
  return ids;
}

}  // namespace mamba
