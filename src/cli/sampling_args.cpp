// SPDX-License-Identifier: Apache-2.0
// Sampling flags -> SamplingOptions; flag > generation_config.json > default.
#include "cli/sampling_args.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <random>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"

namespace mamba::cli {
namespace {

constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();
// JSON numbers are doubles for many readers: seeds that we choose stay exact there.
constexpr uint64_t kMaxSeed = (uint64_t{1} << 53) - 1;
constexpr double kMaxBias = 1e6;

bool is_given(const CLI::Option* option) { return option != nullptr && option->count() > 0; }

bool is_id(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// The VALUE of --logit-bias: a number, or a ban as "-inf" or "false".
std::optional<double> parse_bias(std::string_view text) {
  if (text == "false" || text == "-inf") return -std::numeric_limits<double>::infinity();
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || at != end || !(std::fabs(value) <= kMaxBias)) return {};
  return value;
}

[[noreturn]] void refuse_bias(const std::string& text, const std::string& why) {
  fail(ErrorCode::kInvalidArgument,
       "[--logit-bias] expected TOKEN=VALUE, TOKEN+VALUE or TOKEN-VALUE (an id or the text of one "
       "token; a number up to {:g}, -inf or false), got '{}'{}",
       kMaxBias, printable(text), why);
}

int32_t bias_token(const std::string& key, const std::string& text, int64_t vocab,
                   const Tokenizer* tokenizer) {
  if (is_id(key)) {
    return static_cast<int32_t>(parse_int("--logit-bias", key, 0, vocab - 1));
  }
  if (tokenizer == nullptr) refuse_bias(text, "; this model has no tokenizer, give an id");
  const int32_t id = tokenizer->id_of(key);
  if (id >= 0 && id < vocab) return id;
  const std::vector<int32_t> ids = tokenizer->encode(key);
  if (ids.size() == 1 && ids[0] < vocab) return ids[0];
  refuse_bias(text, fmt::format("; '{}' is {} tokens", printable(key), ids.size()));
}

LogitBias parse_logit_bias(const std::string& text, int64_t vocab, const Tokenizer* tokenizer) {
  const size_t equals = text.rfind('=');
  if (equals != std::string::npos && equals > 0) {
    if (const auto bias = parse_bias(std::string_view(text).substr(equals + 1))) {
      return {bias_token(text.substr(0, equals), text, vocab, tokenizer), *bias};
    }
  }
  // The sign behind an id is the first one, that behind a text the last: "5+1e-3", "a-b+2".
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  size_t sign = digits > 0 && digits < text.size() &&
                        std::string_view("+-").find(text[digits]) != std::string_view::npos
                    ? digits
                    : text.find_last_of("+-");
  if (sign == std::string::npos || sign == 0) refuse_bias(text, "");
  const auto bias = parse_bias(std::string_view(text).substr(sign));
  if (!bias) refuse_bias(text, "");
  return {bias_token(text.substr(0, sign), text, vocab, tokenizer), *bias};
}

std::vector<LogitBias> parse_logit_biases(const std::vector<std::string>& texts, int64_t vocab,
                                          const Tokenizer* tokenizer) {
  std::vector<LogitBias> biases;
  for (const std::string& text : texts) {
    const LogitBias bias = parse_logit_bias(text, vocab, tokenizer);
    for (const LogitBias& other : biases) {
      if (other.id != bias.id) continue;
      fail(ErrorCode::kInvalidArgument,
           "[--logit-bias] expected each token once, got {} twice ('{}'); leave one out", bias.id,
           printable(text));
    }
    biases.push_back(bias);
  }
  return biases;
}

// The order of the steps; a flag whose step is not among them contradicts it.
std::vector<SamplerStep> parse_order(const SamplingFlags& flags) {
  if (!is_given(flags.given.samplers)) return default_sampler_order();
  const std::vector<SamplerStep> order = parse_sampler_order(flags.samplers);
  const auto& given = flags.given;
  const std::pair<const CLI::Option*, SamplerStep> steps[] = {
      {given.temperature, SamplerStep::kTemperature},
      {given.top_k, SamplerStep::kTopK},
      {given.top_p, SamplerStep::kTopP},
      {given.min_p, SamplerStep::kMinP},
      {given.typical_p, SamplerStep::kTypicalP},
      {given.repeat_penalty, SamplerStep::kPenalties},
      {given.presence_penalty, SamplerStep::kPenalties},
      {given.frequency_penalty, SamplerStep::kPenalties}};
  for (const auto& [option, step] : steps) {
    if (!is_given(option) || std::find(order.begin(), order.end(), step) != order.end()) continue;
    fail(ErrorCode::kInvalidArgument,
         "[--samplers] expected {} among the samplers with {}, got '{}'; add it or leave the flag "
         "out",
         sampler_step_name(step), option->get_name(), printable(flags.samplers));
  }
  return order;
}

void check_penalties(const SamplingFlags& flags) {
  if (flags.repeat_last_n != 0 || !is_given(flags.given.repeat_last_n)) return;
  for (const CLI::Option* option :
       {flags.given.repeat_penalty, flags.given.presence_penalty, flags.given.frequency_penalty}) {
    if (!is_given(option)) continue;
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected --repeat-last-n of at least 1 or -1 with it, got 0, which switches "
         "penalties off; leave one out",
         option->get_name());
  }
}

template <class T>
T choose(const CLI::Option* option, T flag, const std::optional<T>& model) {
  return is_given(option) ? flag : model.value_or(flag);
}

uint64_t choose_seed(const SamplingFlags& flags, const Session* continued) {
  if (flags.seed >= 0) return static_cast<uint64_t>(flags.seed);
  const bool goes_on = continued != nullptr && continued->tokens > 0 && !is_given(flags.given.seed);
  if (goes_on) return continued->seed;
  std::random_device random;
  return (uint64_t{random()} << 32 | random()) & kMaxSeed;
}

}  // namespace

void add_sampling_options(CLI::App& app, SamplingFlags* f) {
  auto& given = f->given;
  given.temperature = add_number(app, "--temp,--temperature", &f->temperature, 0, 1000,
                                 "Temperature; 0: always the most likely token");
  given.top_k = add_int(app, "--top-k", &f->top_k, -1, kMaxCount,
                        "Draw from the N most likely tokens; 0 or -1: all");
  given.top_p = add_number(app, "--top-p", &f->top_p, 0, 1,
                           "Draw from the most likely tokens of this mass; 0: the most likely one");
  given.min_p = add_number(app, "--min-p", &f->min_p, 0, 1,
                           "Drop tokens below this share of the most likely");
  given.typical_p =
      add_number(app, "--typical-p,--typical", &f->typical_p, 1e-9, 1,
                 "Draw from the tokens of this mass whose surprise is nearest to the mean");
  given.repeat_penalty =
      add_number(app, "--repeat-penalty,--repetition-penalty", &f->repeat_penalty, 1e-3, 1000,
                 "Divide positive logits of recent tokens by this, multiply the others");
  given.presence_penalty = add_number(app, "--presence-penalty", &f->presence_penalty, -1000, 1000,
                                      "Subtract this from the logits of recent tokens");
  given.frequency_penalty = add_number(app, "--frequency-penalty", &f->frequency_penalty, -1000,
                                       1000, "Subtract this for each time that a token is recent");
  given.repeat_last_n = add_int(app, "--repeat-last-n", &f->repeat_last_n, -1, kMaxCount,
                                "Tokens that count as recent; -1: all, 0: none");
  add_int(app, "--no-repeat-ngram,--no-repeat-ngram-size", &f->no_repeat_ngram, 0, kMaxCount,
          "Never write the same N tokens in a row twice; 0: off");
  app.add_option("--logit-bias", f->logit_bias,
                 "Add VALUE to a token's logit: ID+VALUE, ID-VALUE, ID=-inf, TEXT=VALUE; may be "
                 "repeated")
      ->type_name("BIAS")
      ->allow_extra_args(false);
  add_int(app, "--min-tokens", &f->min_tokens, 0, int64_t{1} << 40,
          "No end token and none of --stop-ids before N tokens");
  given.stop_ids =
      add_text(app, "--stop-ids", &f->stop_ids, "IDS", "Tokens that end the answer, e.g. 0,50256");
  given.samplers = add_text(app, "--samplers", &f->samplers, "STEPS",
                            "Order of the steps; left out: not applied "
                            "[penalties;top_k;typical_p;top_p;min_p;temperature]");
  given.seed = add_int(app, "-s,--seed", &f->seed, -1, std::numeric_limits<int64_t>::max(),
                       "Seed; -1: another one each time, or that of a continued state");
}

SamplingOptions sampling_options(const SamplingFlags& flags, const std::string& model_folder,
                                 const Config& config, const Tokenizer* tokenizer,
                                 const Session* continued) {
  const GenerationDefaults model = load_generation_defaults(model_folder);
  const auto& given = flags.given;
  SamplingOptions s;
  s.order = parse_order(flags);
  check_penalties(flags);
  s.temperature = choose(given.temperature, flags.temperature, model.temperature);
  s.top_k = std::max<int64_t>(choose(given.top_k, flags.top_k, model.top_k), 0);
  // The mass of the most likely token of any vocabulary is larger: it alone is left.
  s.top_p = std::max(choose(given.top_p, flags.top_p, model.top_p), 1e-9);
  s.min_p = choose(given.min_p, flags.min_p, model.min_p);
  s.typical_p = choose(given.typical_p, flags.typical_p, model.typical_p);
  // Without its step there is no temperature, and so no greedy choice either.
  if (std::find(s.order.begin(), s.order.end(), SamplerStep::kTemperature) == s.order.end()) {
    s.temperature = 1;
  }
  s.repeat_penalty = flags.repeat_penalty;
  s.presence_penalty = flags.presence_penalty;
  s.frequency_penalty = flags.frequency_penalty;
  s.repeat_last_n = flags.repeat_last_n;
  s.no_repeat_ngram = flags.no_repeat_ngram;
  const int64_t vocab = tokenizer == nullptr ? config.vocab_size
                                             : std::min(config.vocab_size, tokenizer->vocab_size());
  s.logit_bias = parse_logit_biases(flags.logit_bias, vocab, tokenizer);
  s.min_tokens = flags.min_tokens;
  if (is_given(given.stop_ids)) {
    for (const int64_t id :
         parse_int_list("--stop-ids", flags.stop_ids, 0, config.vocab_size - 1)) {
      s.stop_ids.push_back(static_cast<int32_t>(id));
    }
  }
  for (const int32_t id : model.eos_ids) {
    if (id < config.vocab_size) continue;
    fail(ErrorCode::kBadFile,
         "[{}/generation_config.json] expected \"eos_token_id\" in 0..{}, got {}; correct the file",
         model_folder, config.vocab_size - 1, id);
  }
  s.eos_ids = model.eos_ids;
  s.logprobs = flags.logprobs;
  s.seed = choose_seed(flags, continued);
  return s;
}

}  // namespace mamba::cli
