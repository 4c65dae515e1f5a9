// SPDX-License-Identifier: Apache-2.0
// Normal forms. ASCII is normal in each of them; a piece of other characters is normalised together
// with the ASCII character before it, which may be the base of a combining mark.
#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "base/check.h"
#include "base/utf8.h"

namespace mamba {
namespace {

bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

// The index of the first byte past ASCII at or after `at`.
size_t ascii_end(std::string_view text, size_t at) {
  uint64_t eight;
  while (at + sizeof eight <= text.size()) {
    std::memcpy(&eight, text.data() + at, sizeof eight);
    if ((eight & 0x8080808080808080u) != 0) break;
    at += sizeof eight;
  }
  while (at < text.size() && is_ascii(text[at])) ++at;
  return at;
}

// True for characters that NFC leaves alone whatever is before them: neither decomposed nor
// combining. (What combines with them is none of these.)
bool nfc_leaves_alone(uint32_t c) {
  return c < 0x300 || (c >= 0x400 && c < 0x483) || (c >= 0x2010 && c < 0x2028) ||
         (c >= 0x2030 && c < 0x205f) || (c >= 0x4e00 && c < 0xa000);
}

utf8proc_option_t options_of(NormalForm form) {
  switch (form) {
    case NormalForm::kNfc:
      return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    case NormalForm::kNfd:
      return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    case NormalForm::kNfkc:
      return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
    case NormalForm::kNfkd:
      return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  }
  return UTF8PROC_STABLE;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

void append_normalized(NormalForm form, std::string_view piece, std::string* out) {
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t count =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(piece.data()),
                   static_cast<utf8proc_ssize_t>(piece.size()), &result, options_of(form));
  const std::unique_ptr<utf8proc_uint8_t, Free> owner(result);
  if (count == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  MAMBA_CHECK(count >= 0);  // the text was checked to be UTF-8
  out->append(reinterpret_cast<const char*>(result), static_cast<size_t>(count));
}

// Of a piece without ASCII, behind `at`: its end, and whether it has to be normalised.
std::pair<size_t, bool> other_end(NormalForm form, std::string_view text, size_t at) {
  bool changes = form != NormalForm::kNfc;
  while (at < text.size() && !is_ascii(text[at])) {
    const CodePoint c = decode_utf8(text.data() + at);
    changes = changes || !nfc_leaves_alone(c.value);
    at += c.length;
  }
  return {at, changes};
}

}  // namespace

const char* normal_form_name(NormalForm form) {
  switch (form) {
    case NormalForm::kNfc:
      return "NFC";
    case NormalForm::kNfd:
      return "NFD";
    case NormalForm::kNfkc:
      return "NFKC";
    case NormalForm::kNfkd:
      return "NFKD";
  }
  return "";
}

std::string_view normalize(NormalForm form, std::string_view text, std::string* out) {
  out->clear();
  size_t copied = 0;
  bool changed = false;
  for (size_t at = ascii_end(text, 0); at < text.size(); at = ascii_end(text, at)) {
    const auto [end, changes] = other_end(form, text, at);
    if (changes) {
      const size_t begin = at > copied ? at - 1 : at;  // with the ASCII character before
      out->append(text.substr(copied, begin - copied));
      append_normalized(form, text.substr(begin, end - begin), out);
      copied = end;
      changed = true;
    }
    at = end;
  }
  if (!changed) return text;
  out->append(text.substr(copied));
  return *out;
}

std::string_view normalize(const std::vector<NormalForm>& forms, std::string_view text,
                           std::string* out) {
  std::string next;
  for (const NormalForm form : forms) {
    const std::string_view result = normalize(form, text, &next);
    if (result.data() != next.data()) continue;
    out->swap(next);
    text = *out;
  }
  return text;
}

}  // namespace mamba
