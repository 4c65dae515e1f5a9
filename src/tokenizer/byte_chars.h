// SPDX-License-Identifier: Apache-2.0
// The characters by which byte-level BPE writes bytes in its files: printable ones stand for
// themselves, the others are U+0100 and up (so a space is U+0120).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mamba {

// The character of a byte: a code point below 0x144.
uint32_t char_of_byte(uint8_t byte);
// -1 for a code point that stands for no byte.
int byte_of_char(uint32_t code_point);

// The bytes as such characters in UTF-8.
std::string to_byte_chars(std::string_view bytes);
// The other way; nothing if a character stands for no byte. `text` is valid UTF-8.
std::optional<std::string> from_byte_chars(std::string_view text);

}  // namespace mamba
