// SPDX-License-Identifier: Apache-2.0
// The text of a conversation as a template wrote it, and its ids: where chat and training data get
// the same ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "formats/jinja_text.h"
#include "mamba/tokenizer.h"

namespace mamba {

// Special tokens by their names, longest first.
using SpecialNames = std::vector<std::pair<std::string, int32_t>>;
SpecialNames special_names(const Tokenizer& tokenizer);

// Bytes, with the special tokens among them that the template itself wrote.
struct ChatText {
  struct Special {
    size_t begin, end;
    int32_t id;
  };
  ChatText(const jinja::Text& written, const SpecialNames& names);
  // The ids of bytes [begin, end). Special tokens are those of the template that lie within; all
  // else, also where it reads like one, is ordinary text.
  std::vector<int32_t> encode(const Tokenizer& tokenizer, size_t begin, size_t end) const;

  std::string text;
  std::vector<Special> specials;  // in order
};

}  // namespace mamba
