// SPDX-License-Identifier: Apache-2.0
// A trie of the contents, and the rules of Hugging Face tokenizers around a match.
#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <map>

#include "tokenizer/char_class.h"

namespace mamba {
namespace {

size_t pair_index(std::string_view text, size_t at) {
  return static_cast<size_t>(static_cast<unsigned char>(text[at])) << 8 |
         static_cast<unsigned char>(text[at + 1]);
}

bool begins_with(std::string_view text, CharClass kind) {
  uint32_t length;
  return !text.empty() && (CharTable::get().at(text.data(), &length) & kind) != 0;
}

// The start of the last character.
size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

bool ends_with(std::string_view text, CharClass kind) {
  return !text.empty() && begins_with(text.substr(last_character(text)), kind);
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens,
                                     const std::vector<std::string>& contents)
    : tokens_(tokens) {
  // A trie with children in maps, laid out flat afterwards.
  struct Growing {
    std::map<uint8_t, uint32_t> next;
    int32_t token = -1;
  };
  std::vector<Growing> trie(1);
  for (size_t i = 0; i < contents.size(); ++i) {
    const std::string& content = contents[i];
    if (content.empty()) continue;
    uint32_t node = 0;
    for (const char c : content) {
      const auto [edge, is_new] =
          trie[node].next.try_emplace(static_cast<uint8_t>(c), static_cast<uint32_t>(trie.size()));
      node = edge->second;
      if (is_new) trie.emplace_back();
    }
    if (trie[node].token < 0) trie[node].token = static_cast<int32_t>(i);
    longest_ = std::max(longest_, content.size());
    first_[static_cast<unsigned char>(content[0])] = true;
    if (content.size() == 1) {
      for (size_t b = 0; b < 256; ++b) {
        first_two_.set(static_cast<size_t>(static_cast<unsigned char>(content[0])) << 8 | b);
      }
    } else {
      first_two_.set(pair_index(content, 0));
    }
  }
  nodes_.resize(trie.size());
  for (size_t i = 0; i < trie.size(); ++i) {
    nodes_[i] = {static_cast<uint32_t>(edges_.size()), static_cast<uint32_t>(trie[i].next.size()),
                 trie[i].token};
    for (const auto& [byte, node] : trie[i].next) edges_.push_back({byte, node});
  }
}

bool AddedTokenMatcher::may_start(std::string_view text, size_t at) const {
  if (at + 1 < text.size()) return first_two_[pair_index(text, at)];
  return first_[static_cast<unsigned char>(text[at])];
}

AddedTokenMatcher::Hit AddedTokenMatcher::longest_at(std::string_view text, size_t at) const {
  Hit hit{0, -1};
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const Edge* begin = edges_.data() + nodes_[node].first_edge;
    const Edge* end = begin + nodes_[node].edge_count;
    const auto byte = static_cast<uint8_t>(text[i]);
    const Edge* edge =
        std::lower_bound(begin, end, byte, [](const Edge& e, uint8_t b) { return e.byte < b; });
    if (edge == end || edge->byte != byte) break;
    node = edge->node;
    if (nodes_[node].token >= 0) hit = {i + 1 - at, nodes_[node].token};
  }
  return hit;
}

void AddedTokenMatcher::split(std::string_view text, bool parse_special,
                              std::vector<TextPart>* parts) const {
  parts->clear();
  size_t taken = 0;  // everything before is in `parts`
  for (size_t at = 0; !empty() && at < text.size();) {
    if (!may_start(text, at)) {
      ++at;
      continue;
    }
    const Hit hit = longest_at(text, at);
    if (hit.token < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(hit.token)];
    size_t begin = at, end = at + hit.length;
    at = end;  // a match that does not count is passed over as well
    if (token.special && !parse_special) continue;
    if (token.single_word &&
        (ends_with(text.substr(0, begin), kWord) || begins_with(text.substr(end), kWord))) {
      continue;
    }
    if (token.lstrip) {
      while (begin > taken && ends_with(text.substr(taken, begin - taken), kSpace)) {
        begin = taken + last_character(text.substr(taken, begin - taken));
      }
      begin = std::max(begin, taken);
    }
    while (token.rstrip && begins_with(text.substr(end), kSpace)) {
      end += decode_utf8(text.data() + end).length;
    }
    if (begin > taken) parts->push_back({taken, begin, -1});
    parts->push_back({begin, end, token.id});
    // Where an rstrip before took white space that holds this token, the rest of it comes again, as
    // it does in Hugging Face tokenizers.
    taken = end;
  }
  if (taken < text.size()) parts->push_back({taken, text.size(), -1});
}

}  // namespace mamba
