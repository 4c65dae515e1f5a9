// SPDX-License-Identifier: Apache-2.0
// Text to ids and back, whole and piece by piece.
#include <mamba/mamba.h>

#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: %s bytes|TOKENIZER TEXT\n", argv[0]), 2;
  const auto tokenizer = mamba::load_tokenizer(argv[1]);
  const std::vector<int32_t> ids = tokenizer->encode(argv[2]);
  std::printf("%zu ids of %lld:", ids.size(), static_cast<long long>(tokenizer->vocab_size()));
  for (const int32_t id : ids) std::printf(" %d", id);
  std::printf("\n");
  mamba::StreamDecoder decoder(*tokenizer);  // never prints half a character
  for (const int32_t id : ids) std::printf("%s", decoder.push(id).c_str());
  std::printf("%s\n", decoder.finish().c_str());
} catch (const mamba::Error& error) {
  return std::fprintf(stderr, "error: %s\n", error.what()), 1;
}
