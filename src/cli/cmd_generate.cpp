// SPDX-License-Identifier: Apache-2.0
// mamba-cpp generate: text or ids from a model, streamed, as JSON, from and to saved states.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/eval_common.h"
#include "cli/generate_jsonl.h"
#include "cli/result_file.h"
#include "cli/sampling_args.h"
#include "generate/text_stream.h"
#include "mamba/generate.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxPromptBytes = int64_t{1} << 30;
constexpr int64_t kMaxSamples = 4096;
constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr int64_t kMaxLogprobs = 1000;

struct GenerateFlags {
  RunOptions run;
  SamplingFlags sampling;
  JsonlFlags lines;
  std::string model, prompt, file, prompt_ids, state_in, state_out;
  int64_t tokens = 128, samples = 1, ctx_size = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false, echo = false, json = false;
  CLI::Option *prompt_option = nullptr, *ids_option = nullptr, *logprobs_option = nullptr;
  CLI::Option* batch_option = nullptr;
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
        model_(load_model(flags.model, flags.run, flags.lines.jsonl ? flags.lines.batch_size : 1)),
        tokenizer_(tokenizer_of(flags.model, model_.config())),
        generator_(model_, tokenizer_.get()) {
    timings_.load = seconds_since(load_start_);
  }

  int run() {
    as_ids_ = tokenizer_ == nullptr || flags_.ids_option->count() > 0;
    catch_interrupt();
    if (flags_.lines.jsonl) return run_lines();
    Session session =
        flags_.state_in.empty() ? generator_.start() : load_session(flags_.state_in, model_);
    const GenerateOptions options = generate_options(session);
    keep_history_for(session, options.sampling);
    read_prompt(session);
    const int64_t before = session.tokens;
    const std::vector<Generation> results = run_model(session, options);
    note_length(before, results);
    if (!flags_.state_out.empty() && session.tokens > 0) {
      save_session(flags_.state_out, session, model_);
    }
    finish_output(results, options.sampling.seed);
    return interrupted() ? 130 : 0;
  }

 private:
  // --ctx-size comes from programs whose models end there: here it is only a mark.
  void note_length(int64_t before, const std::vector<Generation>& results) const {
    size_t longest = 0;
    for (const Generation& r : results) longest = std::max(longest, r.ids.size());
    const int64_t tokens = before + static_cast<int64_t>(prompt_ids_.size() + longest);
    if (flags_.ctx_size == 0 || tokens <= flags_.ctx_size) return;
    fmt::print(stderr, "note: {} tokens are more than --ctx-size {}; the state goes on\n", tokens,
               flags_.ctx_size);
  }

  int run_lines() {
    JsonlDefaults defaults;
    defaults.sampling =
        sampling_options(flags_.sampling, flags_.model, model_.config(), tokenizer_.get());
    defaults.seed_given = flags_.sampling.seed >= 0;
    defaults.max_tokens = flags_.tokens;
    defaults.stop = flags_.stop;
    defaults.ignore_eos = flags_.ignore_eos;
    const std::string input = flags_.file.empty() ? "-" : flags_.file;
    return generate_jsonl(model_, tokenizer_.get(), input, defaults, flags_.lines);
  }

  GenerateOptions generate_options(const Session& session) {
    GenerateOptions options;
    options.sampling = sampling_options(flags_.sampling, flags_.model, model_.config(),
                                        tokenizer_.get(), &session);
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
      if (flags_.file != "-") {
        expect_plain_text(flags_.file, "--file", "answer them with --jsonl, or give it as -f -");
      }
      prompt = read_input(flags_.file, kMaxPromptBytes);
      if (prompt.empty() && flags_.file != "-" && session.tokens == 0) {
        fail(ErrorCode::kBadFile,
             "[--file] expected text, got '{}', which is empty; to begin with nothing: -p ''",
             printable(flags_.file, 200));
      }
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
      prompt_ids_ = {first_token(model_.config(), tokenizer_.get())};
    }
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
    const int64_t before = session.tokens;
    const bool whole = generator_.prefill(session, prompt_ids_, options.interrupted);
    timings_.prompt = seconds_since(start);
    timings_.prompt_tokens = session.tokens - before;
    if (!whole) {
      std::fprintf(stderr, "interrupted after %lld of %zu tokens of the prompt\n",
                   static_cast<long long>(timings_.prompt_tokens), prompt_ids_.size());
      prompt_ids_.resize(static_cast<size_t>(timings_.prompt_tokens));
    }
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
    if (flags_.sampling.logprobs >= 0) json["logprobs"] = logprobs_json(result, tokenizer_.get());
    json["timings"] = {
        {"load_seconds", timings_.load},
        {"prompt_tokens", timings_.prompt_tokens},
        {"prompt_seconds", timings_.prompt},
        {"prompt_tokens_per_second", rate(timings_.prompt_tokens, timings_.prompt)},
        {"generated_tokens", timings_.generated_tokens},  // of all samples, as the next two
        {"generate_seconds", timings_.generate},
        {"generated_tokens_per_second", rate(timings_.generated_tokens, timings_.generate)},
    };
    json["seed"] = seed;
    json["model"] = {{"path", flags_.model},
                     {"device", model_.device_name()},
                     {"dtype", dtype_name(model_.dtype())}};
    // It reads all weights, as long as loading them takes: for those who keep states alone.
    if (!flags_.state_in.empty() || !flags_.state_out.empty()) {
      json["model"]["fingerprint"] = model_.fingerprint();
    }
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
      stream(json_text(results.size() == 1 ? all[0] : all));
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

void add_jsonl_options(CLI::App& app, GenerateFlags* f) {
  CLI::Option* jsonl = app.add_flag(
      "--jsonl", f->lines.jsonl,
      "Prompts as JSON lines from -f or standard input, answers as JSON lines in their order");
  add_text(app, "-o,--output", &f->lines.output, "FILE", "A new file for the answers of --jsonl")
      ->needs(jsonl);
  app.add_flag("--resume", f->lines.resume, "Go on with the --output of an interrupted run")
      ->needs(app.get_option("--output"));
  f->batch_option =
      add_int(app, "-b,--batch-size,--parallel,--max-num-seqs", &f->lines.batch_size, 1,
              kMaxSamples, "Prompts of --jsonl to answer together; nothing without it");
  for (const char* other : {"--prompt", "--prompt-ids", "--samples", "--echo", "--state-in",
                            "--state-out", "--json", "--ctx-size"}) {
    jsonl->excludes(app.get_option(other));
  }
}

void add_flags(CLI::App& app, GenerateFlags* f) {
  add_text(app, "-m,--model,--pretrained-model-name-or-path", &f->model, "FOLDER", "Model folder")
      ->required();
  f->prompt_option = add_text(app, "-p,--prompt", &f->prompt, "TEXT", "Prompt");
  CLI::Option* file =
      add_text(app, "-f,--file", &f->file, "FILE", "Prompt from a file; - for standard input");
  f->ids_option = add_text(app, "--prompt-ids", &f->prompt_ids, "IDS",
                           "Prompt as ids, e.g. 1,2,3; the answer is ids too");
  file->excludes(f->prompt_option);
  f->ids_option->excludes(f->prompt_option)->excludes(file);
  add_int(app, "-n,--max-new-tokens,--tokens,--predict,--n-predict,--max-tokens", &f->tokens, -1,
          kMaxTokens, "Tokens to generate at most; -1: until an end token");
  add_sampling_options(app, &f->sampling);
  app.add_option("--stop", f->stop, "Text that ends the answer; may be repeated")
      ->type_name("STR")
      ->allow_extra_args(false);
  add_int(app, "--n,--samples", &f->samples, 1, kMaxSamples, "Answers to draw");
  app.add_flag("--ignore-eos", f->ignore_eos, "Go on after the model's end token");
  app.add_flag("--echo", f->echo, "Repeat the prompt before the answer");
  add_text(app, "--state-in", &f->state_in, "FILE", "Go on from a saved state");
  add_text(app, "--state-out", &f->state_out, "FILE", "Save the state behind the answer");
  add_int(app, "-c,--ctx-size,--max-model-len", &f->ctx_size, 0, int64_t{1} << 40,
          "Say so when prompt and answer are longer; states have no limit, so it ends nothing");
  add_run_options(app, &f->run);
  add_backend(app, &f->run);
  add_state_dtype(app, &f->run);
  add_without_effect(app, "--ubatch-size", "N", kNoMicroBatches);
  add_without_effect(app, "--cont-batching", "", "rows of --jsonl that end are filled at once");
  app.add_flag("--json", f->json, "Print one JSON object (a list of them for --n) at the end");
  f->logprobs_option =
      add_int(app, "--logprobs", &f->sampling.logprobs, 0, kMaxLogprobs,
              "In JSON: the log-probability of each token and of the N most likely ones")
          ->default_str("");
  add_jsonl_options(app, f);
}

}  // namespace

CommandRun add_generate(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("generate", "Write text, or ids, with a model");
  auto flags = std::make_shared<GenerateFlags>();
  add_flags(*app, flags.get());
  add_examples(
      *app, {
                {"Go on with a text", "mamba-cpp generate -m MODEL -p 'Once upon a time' -n 200"},
                {"The most likely answer to a question in a file, as JSON",
                 "mamba-cpp generate -m MODEL -f question.txt --temp 0 --json"},
                {"Keep what was read, and go on from it at once",
                 "mamba-cpp generate -m MODEL -f book.txt -n 0 --state-out book.state"},
                {"Many prompts together, {\"prompt\": ...} a line",
                 "mamba-cpp generate -m MODEL --jsonl -f prompts.jsonl -o answers.jsonl"},
            });
  return [flags] {
    if (flags->tokens < 0) flags->tokens = kMaxTokens;
    if (!flags->state_out.empty() && flags->samples > 1) {
      fail(ErrorCode::kInvalidArgument,
           "[--state-out] expected one sample, got --n {}; save the state of one answer",
           flags->samples);
    }
    if (flags->logprobs_option->count() > 0 && !flags->json && !flags->lines.jsonl) {
      fail(
          ErrorCode::kInvalidArgument,
          "[--logprobs] expected --json or --jsonl with it, got plain text, which has no place for "
          "them; add one");
    }
    if (flags->batch_option->count() > 0 && !flags->lines.jsonl) {
      std::fprintf(stderr, "warning: [--batch-size] changes nothing without --jsonl\n");
    }
    if (!flags->lines.output.empty()) check_result_path(flags->lines.output, flags->lines.resume);
    if (!flags->state_out.empty())
      expect_state_place("--state-out", flags->state_out, kStateFormat);
    return GenerateCommand(*flags).run();
  };
}

}  // namespace mamba::cli
