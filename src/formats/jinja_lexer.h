// SPDX-License-Identifier: Apache-2.0
// Template text to tokens, with whitespace as Jinja has it under trim_blocks and lstrip_blocks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mamba::jinja {

struct Token {
  enum Kind : uint8_t {
    kData,        // text outside of tags
    kBlockBegin,  // {%
    kBlockEnd,
    kPrintBegin,  // {{
    kPrintEnd,
    kName,
    kString,   // text without quotes and escapes
    kInteger,  // text of digits
    kFloat,
    kOperator,
    kEnd
  } kind;
  int line;
  std::string text;

  bool is(Kind k, std::string_view t) const { return kind == k && text == t; }
};

// Throws bad_file or unsupported with the line. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace mamba::jinja
