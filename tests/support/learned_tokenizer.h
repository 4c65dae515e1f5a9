// SPDX-License-Identifier: Apache-2.0
// A small byte-level BPE vocabulary, learned on the spot.
#pragma once

#include <string>
#include <vector>

#include "tokenizer/bpe_trainer.h"

namespace mamba::test {

// A tokenizer.json of 300 ids, the special tokens first.
inline std::string learned_tokenizer_json(const std::vector<std::string>& special = {"<end>"}) {
  BpeTrainer trainer({.vocab_size = 300, .min_frequency = 2, .special = special});
  for (int i = 0; i < 30; ++i) trainer.add("the cat and the hat, aaaaaaa 1234 don't the end ");
  trainer.end_text();
  return trainer.train({});
}

}  // namespace mamba::test
