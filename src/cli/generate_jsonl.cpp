// SPDX-License-Identifier: Apache-2.0
// Prompts and answers as JSON lines.
#include "cli/generate_jsonl.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <limits>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/line_reader.h"
#include "cli/result_file.h"
#include "cli/status_line.h"
#include "train/model_card.h"

namespace mamba::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxLine = size_t{64} << 20, kMaxPrompt = size_t{64} << 20;
constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr const char* kKeys = "prompt, prompt_ids, id, max_tokens (max_new_tokens), seed, stop";

// One line of the input.
struct Prompt {
  GenerateRequest request;
  Json id;  // null: none
  bool own_seed = false;
};

// FNV-1a.
std::string hash_text(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3ull;
  }
  return fmt::format("{:016x}", hash);
}

class PromptReader {
 public:
  PromptReader(const std::string& path, const Config& config, const Tokenizer* tokenizer,
               const JsonlDefaults& defaults)
      : lines_(path), config_(config), tokenizer_(tokenizer), defaults_(defaults) {}

  bool repeatable() const { return lines_.repeatable(); }

  // The next prompt; false behind the last one. Lines of spaces are passed over. Throws bad_file
  // naming the line. Without `encode` the ids of a text are left out.
  bool next(Prompt* prompt, bool encode = true) {
    std::string line;
    do {
      if (!lines_.next(&line)) return false;
    } while (line.find_first_not_of(" \t") == std::string::npos);
    *prompt = parse(line, encode);
    return true;
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorCode::kBadFile, "[{}] {}; correct the line", lines_.where(),
         fmt::format(format, std::forward<Args>(args)...));
  }

  Prompt parse(const std::string& line, bool encode) const {
    const std::string where = lines_.where();
    const Json json = parse_json(line, where, {kMaxLine});
    if (!json.is_object()) refuse("expected an object, got {}", printable_json(json));
    Prompt prompt;
    GenerateRequest& request = prompt.request;
    request.sampling = defaults_.sampling;
    request.max_tokens = defaults_.max_tokens;
    request.stop = defaults_.stop;
    for (const auto& [key, value] : json.items()) {
      if (key == "max_tokens" || key == "max_new_tokens") {
        request.max_tokens = get_int(json, key.c_str(), 0, kMaxTokens, where);
      } else if (key == "seed") {
        constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
        request.sampling.seed = static_cast<uint64_t>(get_int(json, "seed", 0, kMost, where));
        prompt.own_seed = true;
      } else if (key == "stop") {
        request.stop = parse_stop(value);
      } else if (key == "id") {
        if (!value.is_string() && !value.is_number_integer()) {
          refuse("expected \"id\" to be a string or an integer, got {}", printable_json(value));
        }
        prompt.id = value;
      } else if (key != "prompt" && key != "prompt_ids") {
        refuse("expected the keys {}, got \"{}\"", kKeys, printable(key));
      }
    }
    if (request.max_tokens < request.sampling.min_tokens) {
      refuse("expected \"max_tokens\" of at least --min-tokens = {}, got {}",
             request.sampling.min_tokens, request.max_tokens);
    }
    request.prompt = parse_prompt(json, where, encode);
    return prompt;
  }

  std::vector<std::string> parse_stop(const Json& value) const {
    std::vector<std::string> stop;
    for (const Json& text : value.is_array() ? value : Json::array({value})) {
      if (!text.is_string() || text.get_ref<const std::string&>().empty()) {
        refuse("expected \"stop\" to be text or a list of texts, none empty, got {}",
               printable_json(value));
      }
      stop.push_back(text.get<std::string>());
    }
    if (!stop.empty() && tokenizer_ == nullptr) {
      refuse("expected no \"stop\" as this model has no tokenizer, got {}", printable_json(value));
    }
    return stop;
  }

  std::vector<int32_t> parse_prompt(const Json& json, const std::string& where, bool encode) const {
    if (has_member(json, "prompt") == has_member(json, "prompt_ids")) {
      refuse("expected either \"prompt\" or \"prompt_ids\", got {}",
             has_member(json, "prompt") ? "both" : "neither");
    }
    std::vector<int32_t> ids;
    if (has_member(json, "prompt_ids")) {
      for (const int64_t id :
           get_int_list(json, "prompt_ids", 0, config_.vocab_size - 1, where, kMaxPrompt)) {
        ids.push_back(static_cast<int32_t>(id));
      }
      if (ids.empty()) refuse("expected at least one id in \"prompt_ids\", got none");
      return ids;
    }
    const std::string text = get_string(json, "prompt", where);
    if (text.empty()) return {first_token(config_, tokenizer_)};
    if (tokenizer_ == nullptr) {
      refuse("expected \"prompt_ids\" as this model has no tokenizer, got \"prompt\"");
    }
    return encode ? tokenizer_->encode(text) : ids;
  }

  LineReader lines_;
  const Config& config_;
  const Tokenizer* tokenizer_;
  const JsonlDefaults& defaults_;
};

class JsonlCommand {
 public:
  JsonlCommand(Model& model, const Tokenizer* tokenizer, const std::string& input,
               const JsonlDefaults& defaults, const JsonlFlags& flags)
      : model_(model),
        tokenizer_(tokenizer),
        defaults_(defaults),
        flags_(flags),
        total_(validate_input(input)),
        prompts_(input, model.config(), tokenizer, defaults_),
        output_(flags.output, flags.resume),
        status_(::isatty(STDERR_FILENO) != 0) {}

  int run() {
    skip_done();
    start_ = Clock::now();
    BatchOptions options;
    options.batch_size = flags_.batch_size;
    options.ignore_eos = defaults_.ignore_eos;
    options.interrupted = interrupted;
    options.on_progress = [this](const BatchProgress& p) {
      progress_ = p;
      status_.update([this] { return status_text(); });
    };
    Generator generator(model_, tokenizer_);
    generator.generate_batch([this](GenerateRequest& request) { return take(request); },
                             [this](int64_t, Generation&& g) { give(std::move(g)); }, options);
    status_.clear();
    fmt::print(stderr, "{}\n", summary());
    if (input_error_ && input_error_->code() != ErrorCode::kCancelled) throw *input_error_;
    if (!interrupted()) return 0;
    fmt::print(stderr, "{}\n",
               flags_.output.empty()
                   ? "interrupted; with --output FILE a later run could go on by --resume"
                   : fmt::format("interrupted; go on by the same command with --resume ({} whole "
                                 "results in {})",
                                 done_, flags_.output));
    return 130;
  }

 private:
  // How many prompts there are, all of them checked; -1 for what can be read only once.
  int64_t validate_input(const std::string& input) const {
    PromptReader reader(input, model_.config(), tokenizer_, defaults_);
    if (!reader.repeatable()) return -1;
    Prompt prompt;
    int64_t count = 0;
    while (reader.next(&prompt, false)) ++count;
    return count;
  }

  // Everything that decides the answer.
  std::string key_of(const GenerateRequest& r) const {
    const SamplingOptions& s = r.sampling;
    Json order = Json::array(), biases = Json::array();
    for (const SamplerStep step : s.order) order.push_back(sampler_step_name(step));
    for (const LogitBias& b : s.logit_bias) biases.push_back(fmt::format("{}:{}", b.id, b.bias));
    const Json all = {model_.fingerprint(),
                      r.prompt,
                      r.max_tokens,
                      r.stop,
                      s.temperature,
                      s.top_k,
                      s.top_p,
                      s.min_p,
                      s.typical_p,
                      s.repeat_penalty,
                      s.presence_penalty,
                      s.frequency_penalty,
                      s.repeat_last_n,
                      s.no_repeat_ngram,
                      biases,
                      s.min_tokens,
                      s.stop_ids,
                      s.eos_ids,
                      s.logprobs,
                      order,
                      s.seed,
                      defaults_.ignore_eos};
    return hash_text(json_text(all, -1));
  }

  // Reads past the prompts whose results are in the file, after checking that they are theirs.
  void skip_done() {
    Json result;
    bool seed_known = defaults_.seed_given;
    while (output_.next_done(&result)) {
      const std::string where = output_.where();
      Prompt prompt;
      if (!prompts_.next(&prompt)) {
        fail(ErrorCode::kBadFile,
             "[{}] expected at most {} results, as many as there are prompts, got more; is this "
             "the result of another input?",
             where, done_);
      }
      if (!prompt.own_seed &&
          !seed_known) {  // a seed that was chosen then is the one to go on with
        defaults_.sampling.seed = static_cast<uint64_t>(
            get_int(result, "seed", 0, std::numeric_limits<int64_t>::max(), where));
        prompt.request.sampling.seed = defaults_.sampling.seed;
        seed_known = true;
      }
      const int64_t index = get_int(result, "index", 0, std::numeric_limits<int64_t>::max(), where);
      if (index != done_ || get_string(result, "request", where) != key_of(prompt.request)) {
        fail(ErrorCode::kBadFile,
             "[{}] expected the result of prompt {} with this model and these flags, got another; "
             "repeat the flags of then, or give a new --output",
             where, done_);
      }
      ++done_;
    }
    skipped_ = done_;
  }

  bool take(GenerateRequest& request) {
    Prompt prompt;
    try {
      if (!prompts_.next(&prompt)) return false;
    } catch (const Error& error) {  // the answers to the lines before it are written first
      input_error_ = error;
      return false;
    }
    request = std::move(prompt.request);
    open_.push_back({std::move(prompt.id), request.sampling.seed, key_of(request),
                     static_cast<int64_t>(request.prompt.size())});
    return true;
  }

  void give(Generation&& g) {
    const Open& open = open_.front();
    nlohmann::ordered_json json;
    json["index"] = done_;
    if (!open.id.is_null()) json["id"] = open.id;
    json["text"] = g.text;
    json["ids"] = g.ids;
    json["finish_reason"] = finish_reason_name(g.finish_reason);
    json["prompt_tokens"] = open.prompt_tokens;
    json["seed"] = open.seed;
    if (defaults_.sampling.logprobs >= 0) json["logprobs"] = logprobs_json(g, tokenizer_);
    json["request"] = open.key;
    output_.write(json);
    open_.pop_front();
    ++done_;
  }

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  std::string counts(int64_t answered) const {
    const std::string of = total_ < 0 ? "" : fmt::format("/{}", with_commas(total_));
    const double rate = static_cast<double>(progress_.generated_tokens) / std::max(seconds(), 1e-9);
    return fmt::format("{}{} prompts, {} tokens, {:.0f} tokens/s", with_commas(answered), of,
                       with_commas(progress_.generated_tokens), rate);
  }

  std::string status_text() const {
    const std::string text = counts(skipped_ + progress_.finished);
    if (total_ < 0 || progress_.finished == 0) return text;
    const double each = seconds() / static_cast<double>(progress_.finished);
    const double left = each * static_cast<double>(total_ - skipped_ - progress_.finished);
    return fmt::format("{}, {} left", text, duration_text(left));
  }

  // Of the answers that are written: those that end before an earlier one wait for it, and go
  // where a run is cut short.
  std::string summary() const {
    const std::string before =
        skipped_ == 0 ? "" : fmt::format(" ({} by an earlier run)", with_commas(skipped_));
    const int64_t lost = skipped_ + progress_.finished - done_;
    const std::string waiting =
        lost <= 0 ? ""
                  : fmt::format("; {} more were ready behind an unfinished one, and are not kept",
                                with_commas(lost));
    return fmt::format("answered {}{} in {}; seed {}{}", counts(done_), before,
                       duration_text(seconds()), defaults_.sampling.seed, waiting);
  }

  // What give() needs of a prompt that was taken.
  struct Open {
    Json id;
    uint64_t seed;
    std::string key;
    int64_t prompt_tokens;
  };

  Model& model_;
  const Tokenizer* tokenizer_;
  JsonlDefaults defaults_;
  const JsonlFlags& flags_;
  int64_t total_;  // prompts; -1: unknown
  PromptReader prompts_;
  ResultFile output_;
  StatusLine status_;
  std::deque<Open> open_;  // taken and not yet given, in order
  int64_t done_ = 0, skipped_ = 0;
  std::optional<Error> input_error_;
  BatchProgress progress_;
  Clock::time_point start_;
};

}  // namespace

int generate_jsonl(Model& model, const Tokenizer* tokenizer, const std::string& input,
                   const JsonlDefaults& defaults, const JsonlFlags& flags) {
  return JsonlCommand(model, tokenizer, input, defaults, flags).run();
}

int32_t first_token(const Config& config, const Tokenizer* tokenizer) {
  if (config.bos_token_id >= 0) return static_cast<int32_t>(config.bos_token_id);
  if (tokenizer != nullptr) return tokenizer->encode("\n").at(0);
  fail(ErrorCode::kInvalidArgument,
       "[generate] expected a prompt, got none, and the model names no first token; give "
       "--prompt-ids");
}

}  // namespace mamba::cli
