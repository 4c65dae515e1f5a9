// SPDX-License-Identifier: Apache-2.0
// Any bytes as a JSONL file: an error that names its line, or documents of valid UTF-8; and the
// same ones however the file is cut into blocks.
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/utf8.h"
#include "train/data_jsonl.h"

namespace {

using mamba::ErrorCode;

// All lines with their numbers as text, so that two ways of reading compare; ends at an error.
std::string read_all(std::string_view text, size_t block_bytes) {
  std::string all;
  size_t bytes = 0;
  for (const mamba::LineBlock& block : mamba::cut_lines(text, block_bytes)) {
    bytes += block.text.size();
    std::string_view rest = block.text;
    for (int64_t line = block.first_line; !rest.empty(); ++line) {
      const std::string where = "fuzz, line " + std::to_string(line);
      try {
        const mamba::JsonlDocument document =
            mamba::parse_jsonl_line(mamba::next_line(&rest), where);
        for (const mamba::TextPiece& piece : document.pieces) {
          MAMBA_CHECK(mamba::valid_utf8_prefix(piece.text) == piece.text.size());
          all += where + (piece.scored ? " + " : " - ") + piece.text + "\n";
        }
        for (const mamba::ChatMessage& message : document.messages) {
          MAMBA_CHECK(mamba::valid_utf8_prefix(message.content) == message.content.size());
          all += where + " " + message.role + ": " + message.content + "\n";
        }
      } catch (const mamba::Error& error) {
        const std::string message = error.what();
        MAMBA_CHECK(error.code() == ErrorCode::kBadFile || error.code() == ErrorCode::kUnsupported);
        MAMBA_CHECK(message.starts_with("[" + where));
        MAMBA_CHECK(std::all_of(message.begin(), message.end(),
                                [](char c) { return c >= 0x20 && c < 0x7f; }));
        return all + message;
      }
    }
  }
  const size_t mark = text.starts_with("\xef\xbb\xbf") ? 3 : 0;
  MAMBA_CHECK(bytes == text.size() - mark);
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), count);
  const std::string whole = read_all(text, count + 1);
  MAMBA_CHECK(read_all(text, 1) == whole);
  MAMBA_CHECK(read_all(text, 7) == whole);
  return 0;
}
