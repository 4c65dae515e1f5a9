// SPDX-License-Identifier: Apache-2.0
// The byte tokenizer (id = byte) and the choice of a tokenizer by name or path.
#include <fmt/ranges.h>

#include <cstddef>

#include "base/check.h"
#include "base/json.h"
#include "mamba/tokenizer.h"
#include "tokenizer/bpe_tokenizer.h"
#include "tokenizer/files.h"
#include "tokenizer/gguf_tokenizer.h"
#include "tokenizer/tokenizer_file.h"

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
  int32_t id_of(std::string_view content) const override {
    return content.size() == 1 ? static_cast<unsigned char>(content[0]) : -1;
  }
  size_t safe_cut(std::string_view text, const EncodeOptions&) const override {
    return text.size();
  }

 private:
  std::string name_ = "bytes";
};

}  // namespace

std::vector<std::string> tokenizer_names() { return {"bytes"}; }

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_unique<ByteTokenizer>();
  fail(ErrorCode::kInvalidArgument, "[tokenizer] expected one of {}; got '{}'",
       fmt::join(tokenizer_names(), ", "), printable(name));
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path) {
  if (path == "bytes" || says_bytes(path)) return make_tokenizer("bytes");
  if (is_gguf_file(path)) return load_gguf_tokenizer(GgufFile(path));
  return std::make_unique<BpeTokenizer>(read_bpe_file(path));
}

}  // namespace mamba
