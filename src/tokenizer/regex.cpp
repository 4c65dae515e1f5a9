// SPDX-License-Identifier: Apache-2.0
// PCRE2 with Unicode classes, and limits against patterns that would run for ever.
#include "tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <new>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "base/utf8.h"

namespace mamba {
namespace {

constexpr uint32_t kMatchLimit = 1'000'000;  // steps of one match
constexpr uint32_t kHeapLimitKiB = 256 << 10;
constexpr size_t kJitStackBytes = size_t{32} << 20;
constexpr size_t kMaxPatternBytes = 1 << 16;

struct FreeData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct FreeStack {
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

std::string message_of(int code) {
  unsigned char buffer[200];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct Regex::Code {
  std::string pattern, where;
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, const std::string& where)
    : code_(std::make_unique<Code>()) {
  code_->pattern = pattern;
  code_->where = where;
  if (pattern.size() > kMaxPatternBytes) {
    fail(ErrorCode::kBadFile, "[{}] expected a pattern of at most {} bytes, got {}; simplify it",
         where, kMaxPatternBytes, pattern.size());
  }
  int error = 0;
  size_t offset = 0;
  // No \C (single bytes) and no callouts to look after; \p{..} and \s mean Unicode.
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                              &error, &offset, nullptr);
  if (code_->code == nullptr) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a regular expression, got '{}' ({} at byte {}); correct it", where,
         printable(pattern), message_of(error), offset);
  }
  pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE);  // where it fails, matching interprets
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::vector<RegexMatch> Regex::find_all(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, FreeData> data(
      pcre2_match_data_create_from_pattern(code_->code, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeContext> context(
      pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_jit_stack, FreeStack> stack(
      pcre2_jit_stack_create(1 << 15, kJitStackBytes, nullptr));
  if (data == nullptr || context == nullptr || stack == nullptr) throw std::bad_alloc();
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKiB);
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  std::vector<RegexMatch> matches;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  for (size_t at = 0; at < text.size();) {
    const int found = pcre2_match(code_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK,
                                  data.get(), context.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      fail(ErrorCode::kBadFile,
           "[{}] expected a pattern that matches this text in {} steps, got '{}' ({}); simplify it",
           code_->where, kMatchLimit, printable(code_->pattern), message_of(found));
    }
    const size_t* range = pcre2_get_ovector_pointer(data.get());
    const size_t begin = range[0], end = range[1];
    // \K within a look-ahead can put the start behind the end, or before the last match's end.
    if (begin > end || begin < at) {
      fail(ErrorCode::kBadFile,
           "[{}] expected a pattern whose matches follow each other, got '{}'; do without \\K",
           code_->where, printable(code_->pattern));
    }
    matches.push_back({begin, end});
    at = end;
    if (end == begin && at < text.size()) at += decode_utf8(text.data() + at).length;
  }
  return matches;
}

std::string Regex::quoted(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = static_cast<unsigned char>(c) >= 0x80 || (c >= '0' && c <= '9') ||
                       (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    if (c == '\0') {
      out += "\\x00";
      continue;
    }
    if (!plain) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace mamba
