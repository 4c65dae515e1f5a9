// SPDX-License-Identifier: Apache-2.0
// The tokenizer in the metadata of GGUF files <-> the files of a tokenizer's folder.
#pragma once

#include <memory>
#include <string>

#include "base/json.h"
#include "formats/gguf.h"
#include "mamba/config.h"
#include "mamba/tokenizer.h"

namespace mamba {

// False where the file has no tokenizer at all.
bool has_gguf_tokenizer(const GgufFile& file);
// What tokenizer.json and tokenizer_config.json (special tokens, chat template) would be; a
// tokenizer of bytes has the second alone. Throws bad_file, or unsupported for what is no
// byte-level BPE.
Json tokenizer_json_of(const GgufFile& file);
Json tokenizer_config_of(const GgufFile& file);
std::unique_ptr<Tokenizer> load_gguf_tokenizer(const GgufFile& file);
// Writes those files into an existing folder, each atomically.
void write_tokenizer_files(const GgufFile& file, const std::string& folder);

// Adds the tokenizer at `path` (as load_tokenizer takes it, but no GGUF file) to the metadata of a
// model of config.vocab_size rows; ids of special tokens are those of `config`, where it has them.
// Throws unsupported for a tokenizer that llama.cpp would read otherwise.
void add_tokenizer_metadata(const std::string& path, const Config& config, GgufMetadata* metadata);

}  // namespace mamba
