// SPDX-License-Identifier: Apache-2.0
// How well a model predicts a text, and which of two continuations it prefers.
#include <mamba/mamba.h>

#include <algorithm>
#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: %s MODEL TEXT\n", argv[0]), 2;
  mamba::Model model = mamba::Model::load(argv[1]);
  const auto tokenizer = mamba::load_tokenizer(argv[1]);
  const std::vector<int32_t> ids = tokenizer->encode(argv[2]);

  size_t at = 0;  // a source hands out tokens in blocks, so that texts may be larger than memory
  const mamba::TokenSource source = [&](int32_t* out, int32_t* bytes, int64_t count) {
    const int64_t n = std::min<int64_t>(count, static_cast<int64_t>(ids.size() - at));
    for (int64_t i = 0; i < n; ++i, ++at) {
      out[i] = ids[at];
      bytes[i] = static_cast<int32_t>(tokenizer->token_bytes(ids[at]).size());
    }
    return n;
  };
  mamba::PerplexityOptions options;
  options.carry_state = true;
  const mamba::PerplexityResult result = mamba::evaluate_perplexity(model, source, options);
  std::printf("perplexity %.3f over %lld tokens, %.3f bits per byte\n", result.perplexity,
              static_cast<long long>(result.scored), result.bits_per_byte);

  for (const char* ending : {" night.", " xqzv."}) {
    const auto request = mamba::encode_pair(*tokenizer, "It was a dark and stormy", ending);
    const auto score = mamba::loglikelihood(model, request.context, request.continuation);
    std::printf("log p(\"%s\") = %.2f\n", ending, score.log_prob);
  }
} catch (const mamba::Error& error) {
  return std::fprintf(stderr, "error: %s\n", error.what()), 1;
}
