// SPDX-License-Identifier: Apache-2.0
// A tokenizer of bytes with an EOS: id 256, written as the byte 4.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "mamba/tokenizer.h"

namespace mamba::test {

class EosTokenizer final : public Tokenizer {
 public:
  explicit EosTokenizer(int64_t vocab_size = 257) : vocab_size_(vocab_size) {}
  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override { return vocab_size_; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(c == 4 ? 256 : static_cast<unsigned char>(c));
    return ids;
  }
  std::string token_bytes(int32_t id) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : "<eos>";
  }
  int32_t eos_id() const override { return 256; }
  // Anywhere: ids are those of single bytes.
  size_t safe_cut(std::string_view text, const EncodeOptions&) const override {
    return text.size() / 2 + 1;
  }

 private:
  std::string name_ = "eos";
  int64_t vocab_size_;
};

}  // namespace mamba::test
