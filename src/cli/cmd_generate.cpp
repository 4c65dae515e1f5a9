// SPDX-License-Identifier: Apache-2.0
// mamba-cpp generate: text or ids from a model, streamed, as JSON, from and to saved states.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "base/check.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "generate/text_stream.h"
#include "mamba/generate.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxPromptBytes = int64_t{1} << 30;
constexpr int64_t kMaxSamples = 4096;
// JSON numbers are doubles for many readers: seeds that we choose stay exact there.
constexpr int64_t kMaxSeed = (int64_t{1} << 53) - 1;

struct GenerateFlags {
  RunOptions run;
  std::string model, prompt, file, prompt_ids, state_in, state_out;
  int64_t tokens = 128, samples = 1, seed = -1, top_k = 0;
  double temperature = 0.8, top_p = 0.95, min_p = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false, echo = false, json = false;
  CLI::Option *prompt_option = nullptr, *ids_option = nullptr, *seed_option = nullptr;
};

struct Timings {
  double load = 0, prompt = 0, generate = 0;  // seconds
  int64_t prompt_tokens = 0, generated_tokens = 0;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double rate(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

class GenerateCommand {
 public:
  explicit GenerateCommand(const GenerateFlags& flags)
      : flags_(flags),
        load_start_(Clock::now()),
        model_(Model::load(flags.model, model_options(flags.run))),
        tokenizer_(tokenizer_of(flags.model, model_.config())),
        generator_(model_, tokenizer_.get()) {
    timings_.load = seconds_since(load_start_);
  }

  int run() {
    as_ids_ = tokenizer_ == nullptr || flags_.ids_option->count() > 0;
    catch_interrupt();
    Session session =
        flags_.state_in.empty() ? generator_.start() : load_session(flags_.state_in, model_);
    const GenerateOptions options = generate_options(session);
    read_prompt(session);
    const std::vector<Generation> results = run_model(session, options);
    if (!flags_.state_out.empty() && session.tokens > 0) {
      save_session(flags_.state_out, session, model_);
    }
    finish_output(results, options.sampling.seed);
    return interrupted() ? 130 : 0;
  }

 private:
  GenerateOptions generate_options(const Session& session) {
    GenerateOptions options;
    SamplingOptions& s = options.sampling;
    s.temperature = flags_.temperature;
    s.top_k = flags_.top_k;
    s.top_p = flags_.top_p;
    s.min_p = flags_.min_p;
    // A continued session goes on with its own seed unless another is asked for.
    s.seed = static_cast<uint64_t>(flags_.seed);
    if (flags_.seed < 0) {
      const bool continued = session.tokens > 0 && flags_.seed_option->count() == 0;
      s.seed = continued ? session.seed : std::random_device{}() & kMaxSeed;
    }
    options.max_tokens = flags_.tokens;
    options.samples = flags_.samples;
    options.stop = flags_.stop;
    options.ignore_eos = flags_.ignore_eos;
    options.keep_session = !flags_.state_out.empty();
    options.interrupted = [this] { return interrupted() || output_closed_; };
    if (!flags_.json && flags_.samples == 1) {
      options.on_token = [this](int64_t, int32_t id, std::string_view piece) {
        stream(as_ids_ ? id_text(id) : std::string(piece));
      };
    }
    return options;
  }

  // Ids on one line, a space between two.
  std::string id_text(int32_t id) {
    if (id < 0) return "";
    std::string text = fmt::format("{}{}", any_id_ ? " " : "", id);
    any_id_ = true;
    return text;
  }

  void stream(const std::string& text) {
    if (text.empty() || output_closed_) return;
    try {
      write_output(text);
      last_character_ = text.back();
    } catch (const OutputClosed&) {
      output_closed_ = true;  // ends the answer; the state is still saved
    }
  }

  void read_prompt(const Session& session) {
    if (flags_.ids_option->count() > 0) {
      const int64_t last = model_.config().vocab_size - 1;
      for (const int64_t id : parse_int_list("--prompt-ids", flags_.prompt_ids, 0, last)) {
        prompt_ids_.push_back(static_cast<int32_t>(id));
      }
      return;
    }
    std::string prompt = flags_.prompt;
    const bool given = flags_.prompt_option->count() > 0;
    if (!flags_.file.empty()) {
      prompt = read_input(flags_.file, kMaxPromptBytes);
    } else if (!given && session.tokens == 0) {
      if (::isatty(STDIN_FILENO)) {
        fail(ErrorCode::kInvalidArgument,
             "[generate] expected a prompt, got none; give -p TEXT, -f FILE or --prompt-ids, or "
             "text on standard input");
      }
      prompt = read_input("-", kMaxPromptBytes);
    }
    if (tokenizer_ == nullptr && !prompt.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "[generate] expected --prompt-ids, got text: '{}' has no tokenizer that this version "
           "reads; give the ids of the prompt",
           flags_.model);
    }
    prompt_text_ = prompt;
    if (!prompt.empty()) {
      prompt_ids_ = tokenizer_->encode(prompt);
    } else if (session.tokens == 0) {
      prompt_ids_ = {first_token()};
    }
  }

  // What an empty prompt starts from: the model's first token or, for bytes, the end of a line.
  int32_t first_token() const {
    if (model_.config().bos_token_id >= 0) {
      return static_cast<int32_t>(model_.config().bos_token_id);
    }
    if (tokenizer_ != nullptr) return tokenizer_->encode("\n").at(0);
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected a prompt, got none, and '{}' names no first token; give --prompt-ids",
         flags_.model);
  }

  std::vector<Generation> run_model(Session& session, const GenerateOptions& options) {
    // A character that the state has begun is echoed where the prompt completes it, and one that
    // the prompt begins comes with the answer.
    if (flags_.echo) echo_text_ = TextStream(session.pending).push(prompt_text_);
    if (flags_.echo && options.on_token) {
      if (as_ids_) {
        for (const int32_t id : prompt_ids_) stream(id_text(id));
      } else {
        stream(echo_text_);
      }
    }
    Clock::time_point start = Clock::now();
    const bool whole = generator_.prefill(session, prompt_ids_, options.interrupted);
    timings_.prompt = seconds_since(start);
    timings_.prompt_tokens = static_cast<int64_t>(prompt_ids_.size());
    std::vector<Generation> results(static_cast<size_t>(flags_.samples));
    start = Clock::now();
    if (whole) {
      results = generator_.generate(session, options);
    } else {
      for (Generation& r : results) r.finish_reason = FinishReason::kInterrupted;
    }
    timings_.generate = seconds_since(start);
    for (const Generation& r : results) {
      timings_.generated_tokens += static_cast<int64_t>(r.ids.size());
    }
    return results;
  }

  OrderedJson json_of(const Generation& result, uint64_t seed) const {
    OrderedJson json;
    json["prompt_ids"] = prompt_ids_;
    json["ids"] = result.ids;
    json["text"] = echo_text_ + result.text;
    json["finish_reason"] = finish_reason_name(result.finish_reason);
    json["timings"] = {
        {"load_seconds", timings_.load},
        {"prompt_tokens", timings_.prompt_tokens},
        {"prompt_seconds", timings_.prompt},
        {"prompt_tokens_per_second", rate(timings_.prompt_tokens, timings_.prompt)},
        {"generated_tokens", timings_.generated_tokens},
        {"generate_seconds", timings_.generate},
        {"generated_tokens_per_second", rate(timings_.generated_tokens, timings_.generate)},
    };
    json["seed"] = seed;
    json["model"] = {{"path", flags_.model},
                     {"fingerprint", model_.fingerprint()},
                     {"device", model_.device_name()},
                     {"dtype", dtype_name(model_.dtype())}};
    return json;
  }

  std::string plain_of(const Generation& result) {
    if (!as_ids_) return echo_text_ + result.text;
    std::string text;
    any_id_ = false;
    if (flags_.echo) {
      for (const int32_t id : prompt_ids_) text += id_text(id);
    }
    for (const int32_t id : result.ids) text += id_text(id);
    return text;
  }

  void finish_output(const std::vector<Generation>& results, uint64_t seed) {
    if (flags_.json) {
      OrderedJson all = OrderedJson::array();
      for (const Generation& r : results) all.push_back(json_of(r, seed));
      stream((results.size() == 1 ? all[0] : all).dump(2) + "\n");
      return;
    }
    if (results.size() > 1) {
      for (size_t i = 0; i < results.size(); ++i) {
        stream(fmt::format("--- sample {} ({})\n{}\n", i + 1,
                           finish_reason_name(results[i].finish_reason), plain_of(results[i])));
      }
    } else if ((as_ids_ || ::isatty(STDOUT_FILENO)) && last_character_ != '\n') {
      stream("\n");  // text in a file or pipe stays as it is, so that answers can be joined
    }
    fmt::print(stderr,
               "prompt: {} tokens, {:.1f} tokens/s; generated: {} tokens, {:.1f} tokens/s; "
               "seed {}\n",
               timings_.prompt_tokens, rate(timings_.prompt_tokens, timings_.prompt),
               timings_.generated_tokens, rate(timings_.generated_tokens, timings_.generate), seed);
  }

  const GenerateFlags& flags_;
  Clock::time_point load_start_;
  Model model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Generator generator_;
  Timings timings_;
  std::string prompt_text_;
  std::string echo_text_;  // what --echo puts before the answer, in whole characters
  std::vector<int32_t> prompt_ids_;
  bool as_ids_ = false;  // ids on standard output instead of text
  bool any_id_ = false;
  bool output_closed_ = false;
  char last_character_ = 0;
};

void add_flags(CLI::App& app, GenerateFlags* f) {
  add_text(app, "-m,--model", &f->model, "FOLDER", "Model folder")->required();
  f->prompt_option = add_text(app, "-p,--prompt", &f->prompt, "TEXT", "Prompt");
  CLI::Option* file =
      add_text(app, "-f,--file", &f->file, "FILE", "Prompt from a file; - for standard input");
  f->ids_option = add_text(app, "--prompt-ids", &f->prompt_ids, "IDS",
                           "Prompt as ids, e.g. 1,2,3; the answer is ids too");
  file->excludes(f->prompt_option);
  f->ids_option->excludes(f->prompt_option)->excludes(file);
  add_int(app, "-n,--tokens", &f->tokens, 0, int64_t{1} << 40, "Tokens to generate at most");
  add_number(app, "--temp,--temperature", &f->temperature, 0, 1000,
             "Temperature; 0: always the most likely token");
  add_int(app, "--top-k", &f->top_k, 0, std::numeric_limits<int32_t>::max(),
          "Draw from the N most likely tokens; 0: all");
  add_number(app, "--top-p", &f->top_p, 1e-9, 1, "Draw from the most likely tokens of this mass");
  add_number(app, "--min-p", &f->min_p, 0, 1, "Drop tokens below this share of the most likely");
  f->seed_option = add_int(app, "--seed", &f->seed, -1, std::numeric_limits<int64_t>::max(),
                           "Seed; -1: another one each time, or that of --state-in");
  app.add_option("--stop", f->stop, "Text that ends the answer; may be repeated")
      ->type_name("STR")
      ->allow_extra_args(false);
  add_int(app, "--n,--samples", &f->samples, 1, kMaxSamples, "Answers to draw");
  app.add_flag("--ignore-eos", f->ignore_eos, "Go on after the model's end token");
  app.add_flag("--echo", f->echo, "Repeat the prompt before the answer");
  add_text(app, "--state-in", &f->state_in, "FILE", "Go on from a saved state");
  add_text(app, "--state-out", &f->state_out, "FILE", "Save the state behind the answer");
  add_run_options(app, &f->run);
  app.add_flag("--json", f->json, "Print one JSON object (a list of them for --n) at the end");
}

}  // namespace

CommandRun add_generate(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("generate", "Write text, or ids, with a model");
  auto flags = std::make_shared<GenerateFlags>();
  add_flags(*app, flags.get());
  return [flags] {
    if (!flags->state_out.empty() && flags->samples > 1) {
      fail(ErrorCode::kInvalidArgument,
           "[--state-out] expected one sample, got --n {}; save the state of one answer",
           flags->samples);
    }
    if (!flags->state_out.empty()) expect_writable(flags->state_out);
    return GenerateCommand(*flags).run();
  };
}

}  // namespace mamba::cli
