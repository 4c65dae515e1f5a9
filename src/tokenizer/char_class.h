// SPDX-License-Identifier: Apache-2.0
// The classes of characters that pre-tokenizers tell apart.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/utf8.h"

namespace mamba {

enum CharClass : uint8_t {
  kLetter = 1,        // \p{L}
  kNumber = 2,        // \p{N}
  kSpace = 4,         // \s
  kWord = 8,          // \w
  kPunctuation = 16,  // ASCII punctuation or \p{P}
};

// Code point -> set of CharClass.
class CharTable {
 public:
  static const CharTable& get();

  uint8_t of(uint32_t code_point) const {
    return blocks_[block_of_[code_point >> 8] << 8 | (code_point & 0xff)];
  }
  // Of the character at the start of valid UTF-8, whose bytes are added to `length`.
  uint8_t at(const char* text, uint32_t* length) const {
    const unsigned char lead = static_cast<unsigned char>(*text);
    if (lead < 0x80) {
      *length = 1;
      return blocks_[lead];  // block 0 is that of the code points 0 to 255
    }
    const CodePoint c = decode_utf8(text);
    *length = c.length;
    return of(c.value);
  }

 private:
  CharTable();
  std::array<uint16_t, 0x1100> block_of_;
  std::vector<uint8_t> blocks_;  // of 256 code points, equal ones once
};

}  // namespace mamba
