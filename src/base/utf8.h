// SPDX-License-Identifier: Apache-2.0
// UTF-8 out of untrusted bytes (RFC 3629; replacement as in the Unicode standard, 3.9).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mamba {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

struct Utf8Scan {
  enum Kind { kComplete, kUnfinished, kInvalid } kind;
  size_t length;  // bytes of the character, or of its longest valid start (at least 1)
};

// The character at the start of `s`, which is not empty: no overlong forms, surrogates or values
// past 10FFFF.
Utf8Scan scan_utf8(std::string_view s);

// The index of the first byte that begins no whole character, or s.size().
size_t valid_utf8_prefix(std::string_view s);

// Appends `s` as valid UTF-8: each maximal part that cannot be a character becomes U+FFFD. Stops
// before a character that `s` ends in the middle of, unless `at_end`. Returns the bytes taken.
size_t append_valid_utf8(std::string_view s, bool at_end, std::string* out);

// Appends one code point below 0x110000.
void append_utf8(uint32_t code_point, std::string* out);

// The code point at the start of valid UTF-8, and its bytes.
struct CodePoint {
  uint32_t value;
  uint32_t length;
};
inline CodePoint decode_utf8(const char* s) {
  const auto byte = [&](int i) { return static_cast<uint32_t>(static_cast<unsigned char>(s[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (byte(1) & 0x3f), 2};
  if (lead < 0xf0) return {(lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f),
          4};
}

}  // namespace mamba
