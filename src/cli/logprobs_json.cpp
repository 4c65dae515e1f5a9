// SPDX-License-Identifier: Apache-2.0
// Log-probabilities in the form of OpenAI's completions.
#include <fmt/format.h>

#include <algorithm>

#include "cli/generate_jsonl.h"
#include "generate/text_stream.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::string token_text(int32_t id, const Tokenizer* tokenizer) {
  const std::string bytes = tokenizer == nullptr ? "" : tokenizer->token_bytes(id);
  if (bytes.empty()) return fmt::format("token_id:{}", id);
  TextStream stream;
  if (stream.push(bytes) == bytes && stream.held().empty()) return bytes;
  std::string text = "bytes:";
  for (const char byte : bytes) {
    text += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  }
  return text;
}

// JSON has no infinity; readers of this form expect -9999 for what cannot be.
double finite(double logprob) { return std::max(logprob, -9999.0); }

}  // namespace

nlohmann::ordered_json logprobs_json(const Generation& generation, const Tokenizer* tokenizer) {
  OrderedJson tokens = OrderedJson::array(), own = OrderedJson::array(), top = OrderedJson::array();
  for (size_t i = 0; i < generation.logprobs.size(); ++i) {
    const TokenLogprobs& logprobs = generation.logprobs[i];
    const std::string text = token_text(generation.ids[i], tokenizer);
    tokens.push_back(text);
    own.push_back(finite(logprobs.logprob));
    // Two tokens may have one text: the larger value stays. The drawn token is always there.
    OrderedJson best = OrderedJson::object();
    for (const TokenLogprob& t : logprobs.top) {
      best.emplace(token_text(t.id, tokenizer), finite(t.logprob));
    }
    if (!logprobs.top.empty()) best.emplace(text, finite(logprobs.logprob));
    top.push_back(std::move(best));
  }
  return {{"tokens", tokens}, {"token_logprobs", own}, {"top_logprobs", top}};
}

}  // namespace mamba::cli
