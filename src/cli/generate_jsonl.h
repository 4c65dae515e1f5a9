// SPDX-License-Identifier: Apache-2.0
// mamba-cpp generate --jsonl: prompts in and answers out as JSON lines, in the same order, decoded
// together, and continued where an earlier run stopped.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mamba/generate.h"

namespace mamba::cli {

struct JsonlFlags {
  bool jsonl = false, resume = false;
  std::string output;
  int64_t batch_size = 8;
};

// What every line gets unless it says otherwise.
struct JsonlDefaults {
  SamplingOptions sampling;
  bool seed_given = false;
  int64_t max_tokens = 128;
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

// The exit code. `input` is a path or - for standard input.
int generate_jsonl(Model& model, const Tokenizer* tokenizer, const std::string& input,
                   const JsonlDefaults& defaults, const JsonlFlags& flags);

// What an empty prompt starts from: the model's first token or, for bytes, the end of a line.
// Throws invalid_argument where there is neither.
int32_t first_token(const Config& config, const Tokenizer* tokenizer);

// {"tokens", "token_logprobs", "top_logprobs"} as in OpenAI's completions. A token that is not text
// of its own is "bytes:\xNN...", and "token_id:N" without a tokenizer.
nlohmann::ordered_json logprobs_json(const Generation& generation, const Tokenizer* tokenizer);

}  // namespace mamba::cli
