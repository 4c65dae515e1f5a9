// SPDX-License-Identifier: Apache-2.0
// UTF-8 out of a stream of bytes, never cut within a character.
#pragma once

#include <string>
#include <string_view>
#include <utility>

namespace mamba {

// Lets whole characters through; each maximal part that cannot be UTF-8 becomes U+FFFD.
class TextStream {
 public:
  // `begun`: the unfinished character that other text ended with, if any.
  explicit TextStream(std::string begun = "") : held_(std::move(begun)) {}
  // Takes bytes and returns the valid UTF-8 that is complete.
  std::string push(std::string_view bytes);
  // An unfinished character at the end becomes U+FFFD.
  std::string finish();
  // The unfinished character at the end, at most 3 bytes.
  const std::string& held() const { return held_; }

 private:
  std::string held_;  // the start of a character, at most 3 bytes
};

}  // namespace mamba
