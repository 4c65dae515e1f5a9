// SPDX-License-Identifier: Apache-2.0
// The files of a tokenizer, as they go from one folder into another.
#pragma once

#include <string>
#include <vector>

namespace mamba {

// Paths of the files that make the tokenizer `path` (as load_tokenizer takes it) and say how it is
// used (special tokens, chat template); none for "bytes".
std::vector<std::string> tokenizer_files(const std::string& path);
// Copies them into an existing folder, each atomically, so that load_tokenizer(folder) is the same.
// "bytes" leaves a tokenizer_config.json that says so.
void copy_tokenizer_files(const std::string& path, const std::string& folder);
// Whether a folder's tokenizer_config.json says that its model reads bytes.
bool says_bytes(const std::string& folder);

}  // namespace mamba
