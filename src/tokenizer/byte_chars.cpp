// SPDX-License-Identifier: Apache-2.0
// The table between bytes and the characters that stand for them.
#include "tokenizer/byte_chars.h"

#include <array>

#include "base/utf8.h"

namespace mamba {
namespace {

constexpr int kCodes = 0x144;  // 256 bytes, of which 68 are moved past 0xff

struct Table {
  std::array<uint16_t, 256> code_of{};
  std::array<int16_t, kCodes> byte_of{};
};

constexpr bool is_printable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
}

constexpr Table make_table() {
  Table table;
  table.byte_of.fill(-1);
  int moved = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int code = is_printable(byte) ? byte : moved++;
    table.code_of[static_cast<size_t>(byte)] = static_cast<uint16_t>(code);
    table.byte_of[static_cast<size_t>(code)] = static_cast<int16_t>(byte);
  }
  return table;
}

constexpr Table kTable = make_table();

}  // namespace

uint32_t char_of_byte(uint8_t byte) { return kTable.code_of[byte]; }

int byte_of_char(uint32_t code_point) {
  return code_point < kCodes ? kTable.byte_of[code_point] : -1;
}

std::string to_byte_chars(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_utf8(char_of_byte(static_cast<uint8_t>(c)), &out);
  return out;
}

std::optional<std::string> from_byte_chars(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text.data() + at);
    const int byte = byte_of_char(c.value);
    if (byte < 0) return std::nullopt;
    out.push_back(static_cast<char>(byte));
    at += c.length;
  }
  return out;
}

}  // namespace mamba
