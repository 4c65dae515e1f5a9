// SPDX-License-Identifier: Apache-2.0
// JSONL of strangers -> documents: one JSON object a line, and in each a text, a prompt with its
// response, or a conversation. No tokens here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mamba/chat_template.h"

namespace mamba {

// A run of text of a document; not scored: read, but without a loss on its tokens.
struct TextPiece {
  std::string text;
  bool scored = true;
};

// Text in pieces, or a conversation; nothing of either for a blank line.
struct JsonlDocument {
  std::vector<TextPiece> pieces;
  std::vector<ChatMessage> messages;
};

// Lines longer than this are refused.
inline constexpr size_t kMaxJsonlLine = size_t{64} << 20;

// The document of a line: {"text": ...}, {"prompt": ...} with "response" or "completion", which
// alone is scored, or {"messages": ...} (tokenizer/conversation.h); other keys are ignored. Throws
// bad_file with `where` (file and line).
JsonlDocument parse_jsonl_line(std::string_view line, const std::string& where);

// Whole lines of a file, for one thread.
struct LineBlock {
  std::string_view text;
  int64_t first_line;  // counted from 1
};

// Cuts a file into blocks of about `bytes`, each at the end of a line; a byte order mark at the
// start is left out.
std::vector<LineBlock> cut_lines(std::string_view text, size_t bytes);

// Takes the first line off `text`, without its end ("\n" or "\r\n").
std::string_view next_line(std::string_view* text);

}  // namespace mamba
