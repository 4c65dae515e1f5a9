// SPDX-License-Identifier: Apache-2.0
// A regular expression of a tokenizer's file on PCRE2, compiled to machine code where it can be.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

struct RegexMatch {
  size_t begin, end;
};

// Immutable: any number of threads may use one.
class Regex {
 public:
  // Throws bad_file naming `where` for a pattern that is not valid.
  Regex(const std::string& pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // All matches in order. `text` is valid UTF-8. Throws bad_file if matching costs too much.
  std::vector<RegexMatch> find_all(std::string_view text) const;

  // A pattern that matches `text` alone.
  static std::string quoted(std::string_view text);

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace mamba
