// SPDX-License-Identifier: Apache-2.0
// Tokenizer files -> BpeFile: Hugging Face's tokenizer.json, and GPT-2's vocab.json + merges.txt.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "tokenizer/bpe_tokenizer.h"

namespace mamba {

// Of a folder or a tokenizer.json. Throws bad_file and unsupported as load_tokenizer() says.
BpeFile read_bpe_file(const std::string& path);

// The text of a tokenizer.json; `where` names it in errors.
BpeFile parse_tokenizer_json(std::string_view text, const std::string& where);
// The same, parsed.
BpeFile bpe_file_of(const Json& json, const std::string& where);
// The texts of GPT-2's two files.
BpeFile parse_gpt2_files(std::string_view vocabulary, std::string_view merges,
                         const std::string& where);

}  // namespace mamba
