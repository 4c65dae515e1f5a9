// SPDX-License-Identifier: Apache-2.0
// UTF-8 out of a stream of bytes (RFC 3629; replacement as in the Unicode standard, 3.9).
#include "generate/text_stream.h"

namespace mamba {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

struct Scan {
  enum Kind { kComplete, kUnfinished, kInvalid } kind;
  size_t length;  // bytes of the character, or of its longest valid start (at least 1)
};

// The character at the start of `s`: no overlong forms, surrogates or values past 10FFFF.
Scan scan_character(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {Scan::kComplete, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Scan::kInvalid, 1};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  unsigned char low = 0x80, high = 0xbf;  // range of the second byte
  if (lead == 0xe0) low = 0xa0;
  if (lead == 0xed) high = 0x9f;
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;
  for (size_t i = 1; i < length; ++i) {
    if (i == s.size()) return {Scan::kUnfinished, i};
    if (byte(i) < low || byte(i) > high) return {Scan::kInvalid, i};
    low = 0x80;
    high = 0xbf;
  }
  return {Scan::kComplete, length};
}

}  // namespace

std::string TextStream::push(std::string_view bytes) {
  held_ += bytes;
  std::string_view rest = held_;
  std::string out;
  while (!rest.empty()) {
    const Scan scan = scan_character(rest);
    if (scan.kind == Scan::kUnfinished) break;
    out += scan.kind == Scan::kComplete ? rest.substr(0, scan.length) : kReplacement;
    rest.remove_prefix(scan.length);
  }
  held_ = std::string(rest);
  return out;
}

std::string TextStream::finish() {
  if (held_.empty()) return "";
  held_.clear();
  return std::string(kReplacement);
}

}  // namespace mamba
