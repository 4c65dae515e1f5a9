// SPDX-License-Identifier: Apache-2.0
// Token files: ids as raw little-endian numbers of 2 or 4 bytes, one behind the other, and beside
// NAME.bin a NAME.json that says what they are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"
#include "mamba/tokenizer.h"

namespace mamba {

// What NAME.json says.
struct TokenFileInfo {
  int bytes_per_token = 2;   // "dtype": "uint16" or "uint32"
  int64_t count = 0;         // "count": tokens
  int64_t vocab_size = 0;    // "vocab_size": every id is below
  std::string tokenizer;     // "tokenizer": its name
  uint64_t fingerprint = 0;  // "tokenizer_hash": its fingerprint(), as 16 hexadecimal digits
  int64_t text_bytes = 0;    // "text_bytes": of the text that the ids stand for
  int64_t documents = 0;     // "documents": texts in it
};

// The path of the description of a token file: data.bin -> data.json, data -> data.json.
std::string token_file_info_path(const std::string& path);
// Throws bad_file if there is none, or one that contradicts itself or the size of the file.
TokenFileInfo read_token_file_info(const std::string& path);

// Bytes for an id of this vocabulary: 2 if they do, else 4.
int bytes_per_token(int64_t vocab_size);

// Writes both files; nothing is visible before finish().
// Throws invalid_argument, naming the flag, where a token file at `path` or its description would
// replace `input` ("" for none) or anything but a token file with its description.
void expect_token_file_place(const std::string& flag, const std::string& path,
                             const std::string& input);

class TokenFileWriter {
 public:
  // bytes_per_token: 2 or 4, enough for the vocabulary (else invalid_argument).
  TokenFileWriter(const std::string& path, const Tokenizer& tokenizer, int bytes_per_token);
  void append(const std::vector<int32_t>& ids);
  void finish(int64_t text_bytes, int64_t documents);

 private:
  AtomicFile file_;
  TokenFileInfo info_;
  std::string buffer_;
};

}  // namespace mamba
