// SPDX-License-Identifier: Apache-2.0
// Keys and numbers of the tokenizer in GGUF metadata.
#pragma once

#include <cstdint>

namespace mamba {

inline constexpr const char* kGgufModel = "tokenizer.ggml.model";
inline constexpr const char* kGgufTokens = "tokenizer.ggml.tokens";
inline constexpr const char* kGgufTokenTypes = "tokenizer.ggml.token_type";
inline constexpr const char* kGgufMerges = "tokenizer.ggml.merges";
inline constexpr const char* kGgufBos = "tokenizer.ggml.bos_token_id";
inline constexpr const char* kGgufEos = "tokenizer.ggml.eos_token_id";
inline constexpr const char* kGgufTemplate = "tokenizer.chat_template";
// Of ours alone: tokenizer.json without the vocabulary and the merges that the lists above have.
inline constexpr const char* kGgufRest = "mamba_cpp.tokenizer_json";

// Types of tokens.
enum GgufTokenType : int64_t {
  kGgufNormal = 1,
  kGgufUnknown = 2,
  kGgufControl = 3,
  kGgufUserDefined = 4,
  kGgufUnused = 5,
  kGgufByte = 6,
};

}  // namespace mamba
