// SPDX-License-Identifier: Apache-2.0
// The files of a tokenizer, as they go from one folder into another.
#pragma once

#include <string>
#include <vector>

namespace mamba {

// The class that tokenizer_config.json names for a model that reads bytes.
inline constexpr const char* kByteTokenizerClass = "ByteTokenizer";

// The folder of the tokenizer `path` (as load_tokenizer takes it); "" for "bytes", a GGUF file
// itself.
std::string tokenizer_folder(const std::string& path);

struct TokenizerFile {
  std::string path;
  std::string name;  // in a model folder: "tokenizer.json", whatever it is called at `path`
};
// The files that make the tokenizer `path` (as load_tokenizer takes it) and say how it is used
// (special tokens, chat template); none for "bytes" and a GGUF
// file, which holds it all.
std::vector<TokenizerFile> tokenizer_files(const std::string& path);
// Copies them into an existing folder, each atomically, so that load_tokenizer(folder) is the same.
// "bytes" leaves a tokenizer_config.json that says so. A chat template (Jinja) goes in the place of
// that of `path`.
void copy_tokenizer_files(const std::string& path, const std::string& folder,
                          const std::string& chat_template = "");
// Whether a folder without a vocabulary has a tokenizer_config.json that says that its model reads
// bytes.
bool says_bytes(const std::string& folder);

}  // namespace mamba
