// SPDX-License-Identifier: Apache-2.0
// UTF-8 out of untrusted bytes.
#include "base/utf8.h"

#include <cstring>

namespace mamba {

Utf8Scan scan_utf8(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {Utf8Scan::kComplete, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Utf8Scan::kInvalid, 1};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  unsigned char low = 0x80, high = 0xbf;  // range of the second byte
  if (lead == 0xe0) low = 0xa0;
  if (lead == 0xed) high = 0x9f;
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;
  for (size_t i = 1; i < length; ++i) {
    if (i == s.size()) return {Utf8Scan::kUnfinished, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Scan::kInvalid, i};
    low = 0x80;
    high = 0xbf;
  }
  return {Utf8Scan::kComplete, length};
}

size_t valid_utf8_prefix(std::string_view s) {
  size_t at = 0;
  while (at < s.size()) {
    uint64_t eight;
    if (at + sizeof eight <= s.size()) {
      std::memcpy(&eight, s.data() + at, sizeof eight);
      if ((eight & 0x8080808080808080u) == 0) {
        at += sizeof eight;
        continue;
      }
    }
    const Utf8Scan scan = scan_utf8(s.substr(at));
    if (scan.kind != Utf8Scan::kComplete) break;
    at += scan.length;
  }
  return at;
}

size_t append_valid_utf8(std::string_view s, bool at_end, std::string* out) {
  size_t at = 0;
  while (at < s.size()) {
    const size_t valid = valid_utf8_prefix(s.substr(at));
    out->append(s.substr(at, valid));
    at += valid;
    if (at == s.size()) break;
    const Utf8Scan scan = scan_utf8(s.substr(at));
    if (scan.kind == Utf8Scan::kUnfinished && !at_end) break;
    out->append(kReplacementCharacter);
    at += scan.length;
  }
  return at;
}

void append_utf8(uint32_t c, std::string* out) {
  const auto put = [&](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6);
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3f));
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

}  // namespace mamba
