// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

// Immutable once made: any number of threads may use one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // "bytes", ...: what make_tokenizer takes.
  virtual const std::string& name() const = 0;
  // Ids are in [0, vocab_size).
  virtual int64_t vocab_size() const = 0;
  // Ids of `text`, which may hold any bytes.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // The bytes that `id` stands for, possibly a part of a character. Throws invalid_argument for an
  // id outside the vocabulary.
  virtual std::string token_bytes(int32_t id) const = 0;
  // The bytes of all ids; not always valid UTF-8.
  std::string decode(const std::vector<int32_t>& ids) const;
};

// Names that make_tokenizer accepts.
std::vector<std::string> tokenizer_names();
// Throws invalid_argument for an unknown name, listing the known ones.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace mamba
