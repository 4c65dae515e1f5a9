// SPDX-License-Identifier: Apache-2.0
// The flags of every command that draws tokens, and what they make of SamplingOptions.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "mamba/generate.h"

namespace mamba::cli {

struct SamplingFlags {
  double temperature = 0.8, top_p = 0.95, min_p = 0, typical_p = 1;
  double repeat_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int64_t top_k = 0, repeat_last_n = 64, no_repeat_ngram = 0, min_tokens = 0, seed = -1;
  int64_t logprobs = -1;  // its flag is the command's own: not every output has a place for them
  std::vector<std::string> logit_bias;
  std::string stop_ids, samplers;
  // Set by add_sampling_options: whether a flag was given.
  struct Given {
    CLI::Option *temperature = nullptr, *top_k = nullptr, *top_p = nullptr, *min_p = nullptr,
                *typical_p = nullptr, *repeat_penalty = nullptr, *presence_penalty = nullptr,
                *frequency_penalty = nullptr, *repeat_last_n = nullptr, *samplers = nullptr,
                *stop_ids = nullptr, *seed = nullptr;
  } given;
};

// --temp, --top-k, ... --samplers, --seed. `flags` must outlive the parsing.
void add_sampling_options(CLI::App& app, SamplingFlags* flags);

// A flag counts before the model's generation_config.json (read from `model_folder`), and that
// before the default. The seed is that of the flag, else `continued`'s, else a random one below
// 2^53. Throws invalid_argument for contradictions and for tokens that the model does not have.
SamplingOptions sampling_options(const SamplingFlags& flags, const std::string& model_folder,
                                 const Config& config, const Tokenizer* tokenizer,
                                 const Session* continued = nullptr);

}  // namespace mamba::cli
