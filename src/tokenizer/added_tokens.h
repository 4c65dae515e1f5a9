// SPDX-License-Identifier: Apache-2.0
// Tokens that are cut out of the text by their content before anything else looks at it.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // left out of text for readers; not looked for without parse_special
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool single_word = false;  // not within a word
  bool normalized = true;    // looked for after normalisation, which its content undergoes as well
};

// A part of a text: an added token, or (id -1) text.
struct TextPart {
  size_t begin, end;
  int32_t id;
};

// Looks for many contents at once: at each place the longest, from left to right.
class AddedTokenMatcher {
 public:
  // `contents` are the forms to look for, one for each token; empty ones are never found.
  AddedTokenMatcher(const std::vector<AddedToken>& tokens,
                    const std::vector<std::string>& contents);

  bool empty() const { return nodes_.size() == 1; }
  // The longest content, in bytes.
  size_t longest() const { return longest_; }
  // Replaces `parts` by those of `text`, in order, none empty.
  void split(std::string_view text, bool parse_special, std::vector<TextPart>* parts) const;

 private:
  struct Node {
    uint32_t first_edge = 0, edge_count = 0;  // into edges_, sorted by byte
    int32_t token = -1;                       // index of the token that ends here
  };
  struct Edge {
    uint8_t byte;
    uint32_t node;
  };
  struct Hit {
    size_t length;
    int32_t token;
  };

  Hit longest_at(std::string_view text, size_t at) const;
  bool may_start(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{1};
  std::vector<Edge> edges_;
  size_t longest_ = 0;
  std::array<bool, 256> first_{};   // bytes that begin a content
  std::bitset<1 << 16> first_two_;  // pairs of bytes that begin one
};

}  // namespace mamba
