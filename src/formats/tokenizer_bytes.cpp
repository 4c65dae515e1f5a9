// SPDX-License-Identifier: Apache-2.0
// The byte tokenizer (id = byte) and the list of tokenizers.
#include <fmt/ranges.h>

#include "base/check.h"
#include "mamba/tokenizer.h"

namespace mamba {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override { return 256; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    return ids;
  }
  std::string token_bytes(int32_t id) const override {
    if (id < 0 || id > 255) {
      fail(ErrorCode::kInvalidArgument,
           "[tokenizer bytes] expected an id in 0..255, got {}; use the tokenizer of the model",
           id);
    }
    return std::string(1, static_cast<char>(id));
  }

 private:
  std::string name_ = "bytes";
};

}  // namespace

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += token_bytes(id);
  return bytes;
}

std::vector<std::string> tokenizer_names() { return {"bytes"}; }

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_unique<ByteTokenizer>();
  fail(ErrorCode::kInvalidArgument, "[tokenizer] expected one of {}; got '{}'",
       fmt::join(tokenizer_names(), ", "), name);
}

}  // namespace mamba
