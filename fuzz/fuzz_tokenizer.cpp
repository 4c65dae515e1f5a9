// SPDX-License-Identifier: Apache-2.0
// Any bytes as a tokenizer.json and, behind the first zero byte, a text: an error, or a tokenizer
// whose ids are in range, decode, and are the same for the text cut where it says.
#include <stddef.h>
#include <stdint.h>

#include <algorithm>

#include "base/check.h"
#include "tokenizer/tokenizer_file.h"

namespace {

using namespace mamba;

void use(const BpeTokenizer& tokenizer, std::string_view text) {
  for (const bool parse_special : {true, false}) {
    const EncodeOptions options{.parse_special = parse_special};
    const std::vector<int32_t> ids = tokenizer.encode_with(text, options);
    for (const int32_t id : ids) MAMBA_CHECK(id >= 0 && id < tokenizer.vocab_size());
    StreamDecoder decoder(tokenizer);
    std::string streamed;
    for (const int32_t id : ids) streamed += decoder.push(id);
    streamed += decoder.finish();
    MAMBA_CHECK(streamed == tokenizer.decode_text(ids));
    const size_t cut = tokenizer.safe_cut(text, options);
    MAMBA_CHECK(cut <= text.size());
    std::vector<int32_t> parts = tokenizer.encode_with(text.substr(0, cut), options);
    const std::vector<int32_t> rest = tokenizer.encode_with(text.substr(cut), options);
    parts.insert(parts.end(), rest.begin(), rest.end());
    MAMBA_CHECK(parts == ids);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  const std::string_view all(reinterpret_cast<const char*>(bytes), count);
  const size_t end = std::min(all.find('\0'), all.size());
  try {
    const BpeTokenizer tokenizer(parse_tokenizer_json(all.substr(0, end), "fuzz"));
    use(tokenizer, all.substr(std::min(end + 1, all.size())));
  } catch (const Error& error) {
    MAMBA_CHECK(error.code() == ErrorCode::kBadFile || error.code() == ErrorCode::kUnsupported);
    for (const char* c = error.what(); *c != '\0'; ++c) MAMBA_CHECK(*c >= 0x20 && *c < 0x7f);
  }
  return 0;
}
