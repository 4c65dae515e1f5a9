// SPDX-License-Identifier: Apache-2.0
// The names that GGUF files have for the rules by which words are cut (tokenizer.ggml.pre).
#pragma once

#include <string>

#include "base/json.h"

namespace mamba {

struct GgufWords {
  Json pre_tokenizer;          // as tokenizer.json has it
  bool ignore_merges = false;  // a word that is a token is that token, merges or not
};

// Throws unsupported for a name that this version does not know. "" and "default", which older
// files of GPT-NeoX's tokenizer have, mean GPT-2's words.
GgufWords words_of_gguf(const std::string& name, const std::string& where);

// The name of a tokenizer.json's rules; "" if there is none.
std::string gguf_words_name(const Json& tokenizer_json, bool ignore_merges);

}  // namespace mamba
