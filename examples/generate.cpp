// SPDX-License-Identifier: Apache-2.0
// The library in a few lines: load a model, go on with a text, print it as it comes.
#include <mamba/mamba.h>

#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: %s MODEL TEXT\n", argv[0]), 2;
  mamba::Model model = mamba::Model::load(argv[1]);
  const auto tokenizer = mamba::load_tokenizer(argv[1]);
  mamba::Generator generator(model, tokenizer.get());
  mamba::Session session = generator.start();
  generator.prefill(session, tokenizer->encode(argv[2]));

  mamba::GenerateOptions options;
  options.max_tokens = 200;
  options.sampling.temperature = 0.8;
  options.on_token = [](int64_t, int32_t, std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
  };
  generator.generate(session, options);
} catch (const mamba::Error& error) {
  return std::fprintf(stderr, "error: %s\n", error.what()), 1;
}
