// SPDX-License-Identifier: Apache-2.0
// Whether a file that should be text is something else: packed, a model, or other bytes.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace mamba {

struct NotText {
  std::string what;    // "packed by xz", "a GGUF file", ...
  std::string advice;  // "unpack it: xz -dk 'FILE'"
};

inline constexpr size_t kTextHead = size_t{1} << 16;  // bytes that are looked at

// By the first bytes of a file (kTextHead of them are enough): a magic number, or more NULs and
// other controls than text has. `path` is for the advice. None for text, whatever its language, and
// for what is too short to say.
std::optional<NotText> not_text(std::string_view head, const std::string& path);

// The same of the regular file at `path`; none where there is no such file to read.
std::optional<NotText> file_not_text(const std::string& path);

// Throws bad_file, which begins with [where], for a regular file at `path` that is no text.
void expect_text(const std::string& path, const std::string& where);

}  // namespace mamba
