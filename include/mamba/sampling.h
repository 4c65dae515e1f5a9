// SPDX-License-Identifier: Apache-2.0
// How the next token is chosen: every option of the sampler, the order of its steps, and the
// defaults that a model folder brings. docs/sampling.md has the formulas.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

// The steps that --samplers puts in order. Bans and biases always come before the first, the draw
// after the last.
enum class SamplerStep : uint8_t {
  kPenalties,    // repeat_penalty, presence_penalty, frequency_penalty
  kTopK,         // top_k
  kTypicalP,     // typical_p
  kTopP,         // top_p
  kMinP,         // min_p
  kTemperature,  // temperature
};

// "penalties", "top_k", "typical_p", "top_p", "min_p", "temperature".
const char* sampler_step_name(SamplerStep step) noexcept;
// penalties;top_k;typical_p;top_p;min_p;temperature
std::vector<SamplerStep> default_sampler_order();
// Names with ; between them, in any order, none twice; a step that is left out is not applied.
// Also takes - for _ and the names typ_p and temp. Throws invalid_argument for anything else.
std::vector<SamplerStep> parse_sampler_order(std::string_view text);

// Added to the logit of a token before anything else.
struct LogitBias {
  int32_t id = 0;
  double bias = 0;  // finite, or -infinity: the token is never drawn
};

struct SamplingOptions {
  double temperature = 1;  // 0..1000; 0: the most likely token after bans, biases and penalties
  int64_t top_k = 0;       // keep the k most likely tokens; 0: all
  double top_p = 1;        // (0, 1]: keep the most likely tokens that reach this probability
  double min_p = 0;        // [0, 1]: drop tokens below this share of the largest probability
  double typical_p = 1;    // (0, 1]: keep the tokens nearest to the entropy that reach this

  // Over the last repeat_last_n tokens of the sequence, the prompt's included.
  double repeat_penalty = 1;     // (0, 1000]: divides positive logits, multiplies the others
  double presence_penalty = 0;   // [-1000, 1000]: subtracted once from each token that is there
  double frequency_penalty = 0;  // [-1000, 1000]: subtracted for each time that it is there
  int64_t repeat_last_n = 64;    // -1: all tokens; 0: none, so that no penalty acts

  int64_t no_repeat_ngram = 0;        // n: no n tokens in a row appear twice; 0: they may
  std::vector<LogitBias> logit_bias;  // ids in the vocabulary; several of one id add up
  int64_t min_tokens = 0;             // end tokens and stop_ids are banned before that many
  std::vector<int32_t> stop_ids;      // tokens that end an answer, without their text
  std::vector<int32_t> eos_ids;       // end tokens beside those of the model's config
  int64_t logprobs = -1;  // -1: none; k: log-probabilities of each token and of the k best

  std::vector<SamplerStep> order = default_sampler_order();
  uint64_t seed = 0;  // a token depends on (seed, sample, position), history and logits alone
};

// Throws invalid_argument naming the first option that is out of range.
void validate(const SamplingOptions& options);
// How many tokens back from the one to draw these options look; -1: all.
int64_t history_needed(const SamplingOptions& options);

// What generation_config.json of a model folder asks for; what it leaves open is empty.
struct GenerationDefaults {
  std::optional<double> temperature;  // 0 where the file says "do_sample": false
  std::optional<int64_t> top_k;
  std::optional<double> top_p, min_p, typical_p;
  std::vector<int32_t> eos_ids;
};
// Nothing where the folder has no such file. Throws bad_file for values out of range, naming them.
GenerationDefaults load_generation_defaults(const std::string& folder);

}  // namespace mamba
