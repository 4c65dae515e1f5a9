// SPDX-License-Identifier: Apache-2.0
// Reading the numbers and strings of a GGUF header, each checked against the end of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/check.h"
#include "base/json.h"
#include "formats/gguf.h"

namespace mamba {

class GgufCursor {
 public:
  GgufCursor(const uint8_t* bytes, size_t count, const std::string& where)
      : bytes_(bytes), count_(count), where_(where) {}

  size_t at() const { return at_; }
  size_t left() const { return count_ - at_; }

  // `what` stands in messages: "the length of a key".
  template <class T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }
  // A string of at most `limit` bytes.
  std::string text(size_t limit, const char* what);
  // A value of metadata; `key` stands in messages.
  GgufValue value(const std::string& key);

 private:
  const uint8_t* take(size_t count, const char* what);
  GgufType type_of(uint32_t number, const std::string& key) const;
  int64_t whole(GgufType type);
  double real(GgufType type);
  void array(const std::string& key, int depth, GgufValue* out);

  const uint8_t* bytes_;
  size_t count_, at_ = 0;
  const std::string& where_;
  int64_t elements_ = 0;  // of all arrays so far
};

}  // namespace mamba
