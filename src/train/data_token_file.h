// SPDX-License-Identifier: Apache-2.0
// Files of token ids: little-endian uint16 or uint32 and nothing else, mapped and never read into
// memory whole; a description (tokenizer/token_file.h) may say which, and of which tokenizer.
#pragma once

#include <cstdint>
#include <string>

#include "base/mapped_file.h"
#include "mamba/tokenizer.h"

namespace mamba {

struct TokenFile {
  MappedFile file;
  int width = 2;      // bytes of an id: 2 or 4
  int64_t count = 0;  // ids
};

// `dtype` is "uint16", "uint32" or "" for what the description says, uint16 without one. Throws
// bad_file for a size that is no multiple of the width, and for a description that contradicts
// `dtype`, the size or the tokenizer. The ids are not checked: that is one pass for whoever reads
// them all.
TokenFile open_token_file(const std::string& path, const std::string& dtype,
                          const Tokenizer& tokenizer);

}  // namespace mamba
