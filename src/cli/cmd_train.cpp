// SPDX-License-Identifier: Apache-2.0
// mamba-cpp train: flags into TrainOptions, the progress of the run on standard error.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <csignal>
#include <ctime>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <random>

#include "base/check.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/train_json.h"
#include "mamba/tokenizer.h"
#include "mamba/train.h"
#include "train/model_card.h"
#include "train/run_setup.h"

namespace mamba::cli {
namespace {

volatile std::sig_atomic_t g_signal = 0;

volatile std::time_t g_signal_time = 0;

// The first signal asks the run to save and stop; one more after a second ends the process. (Some
// senders signal the process and its group, so that it comes twice at once.)
extern "C" void on_stop_signal(int signal) {
  const std::time_t now = std::time(nullptr);
  if (g_signal == 0) {
    g_signal = signal;
    g_signal_time = now;
  } else if (now > g_signal_time + 1) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

struct TrainFlags {
  TrainOptions options;
  RunOptions run;
  std::string schedule = "cosine", order = "shuffled", recompute = "none", vocab_size;
  std::string packing = "stream", data_weights;
  int64_t seed = 0;
  bool dry_run = false, json = false;
  CLI::Option* resume = nullptr;
};

// 'it'\''s' for a word that a shell would not take as it is.
std::string shell_quoted(const std::string& word) {
  constexpr const char* kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string quoted = "'";
  for (const char c : word) {
    quoted += c == '\'' ? "'\\''" : std::string(1, c);
  }
  return quoted + "'";
}

// The command as it was typed, with the program's plain name; "" where /proc does not say. For
// going on without --init-from, which a resumed run no longer needs.
std::string own_command_line(bool going_on) {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  const std::string words{std::istreambuf_iterator<char>(in), {}};
  std::string line;
  bool skip = false;  // the value of a flag that is left out
  for (size_t begin = 0; begin < words.size();) {
    const size_t end = std::min(words.find('\0', begin), words.size());
    const std::string word = words.substr(begin, end - begin);
    begin = end + 1;
    const bool init = word.starts_with("--init-from") || word.starts_with("--init_from");
    if (skip || (going_on && init)) {
      skip = !skip && word.find('=') == std::string::npos;
      continue;
    }
    line += line.empty() ? "mamba-cpp" : " " + shell_quoted(word);
  }
  return line;
}

// "0.7,0.3"; "" is none.
std::vector<double> parse_weights(const std::string& text) {
  std::vector<double> weights;
  for (size_t begin = 0; !text.empty() && begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    double weight = 0;
    const auto [stop, error] = std::from_chars(text.data() + begin, text.data() + end, weight);
    if (error != std::errc() || stop != text.data() + end) {
      fail(ErrorCode::kInvalidArgument, "[--data-weights] expected numbers like 0.7,0.3, got '{}'",
           printable(text));
    }
    weights.push_back(weight);
    begin = end + 1;
  }
  return weights;
}

// For --seed -1: that of the run that goes on, else another one each time, which JSON can hold.
uint64_t chosen_seed(const TrainOptions& options) {
  std::string from = options.resume_path;
  if (options.resume && from.empty()) {
    const std::vector<CheckpointEntry> found = list_checkpoints(options.output_dir);
    if (!found.empty()) from = found.back().path;
  }
  if (options.resume) return from.empty() ? 0 : seed_of_checkpoint(from);
  std::random_device random;
  return (uint64_t{random()} << 32 | random()) >> 11;
}

TrainOptions options_of(const TrainFlags& flags) {
  TrainOptions options = flags.options;
  const ModelOptions model = model_options(flags.run);
  options.device = model.device;
  options.threads = model.threads;
  options.lr_schedule = lr_schedule_from_name(flags.schedule);
  options.data_order = data_order_from_name(flags.order);
  options.packing = packing_from_name(flags.packing);
  options.data_weights = parse_weights(flags.data_weights);
  options.recompute = recompute_from_name(flags.recompute);
  if (!flags.vocab_size.empty()) {
    options.vocab_size = flags.vocab_size == "auto"
                             ? kVocabAuto
                             : parse_int("--vocab-size", flags.vocab_size, 1, 16'777'216);
  }
  options.resume = flags.resume->count() > 0;
  options.seed = flags.seed >= 0 ? static_cast<uint64_t>(flags.seed) : chosen_seed(options);
  options.command_line = own_command_line(false);
  return options;
}

std::string mib(int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576.0);
}

std::string data_text(const TrainOptions& o, const TrainPlan& plan) {
  std::string text =
      fmt::format("data             {} tokens, {:.1f} steps an epoch, packing {}",
                  with_commas(plan.data_tokens), plan.steps_per_epoch, packing_name(o.packing));
  if (o.packing == Packing::kDocuments)
    text += fmt::format(", {:.1f} % padding", 100 * plan.padding);
  text += "\n";
  const auto samples =
      static_cast<double>(o.gradient_accumulation_steps * o.batch_size * plan.max_steps);
  for (const TrainSource& s : plan.sources) {
    text +=
        fmt::format("source           {}: {} tokens in {} document{}", printable(s.name, 200),
                    with_commas(s.tokens), with_commas(s.documents), s.documents == 1 ? "" : "s");
    if (s.files > 1) text += fmt::format(" of {} files", with_commas(s.files));
    if (s.scored < s.tokens) text += fmt::format(", {} with a loss", with_commas(s.scored));
    if (s.left_out > 0) text += fmt::format(", {} left out", with_commas(s.left_out));
    text += fmt::format("; {} sequences", with_commas(s.sequences));
    if (plan.sources.size() > 1) {
      text += fmt::format(", weight {:.4g}, {:.2f} epochs in all", s.weight,
                          s.weight * samples / static_cast<double>(s.sequences));
      if (o.packing == Packing::kDocuments)
        text += fmt::format(", {:.1f} % padding", 100 * s.padding);
    }
    text += "\n";
  }
  return text;
}

std::string plan_text(const TrainOptions& o, const TrainPlan& plan) {
  const Config& c = plan.config;
  std::string text = fmt::format("model            {}, width {}, {} layers, vocabulary {}", c.mixer,
                                 c.d_model, c.n_layer, c.vocab_size);
  if (plan.grown_from > 0) {
    text += fmt::format(" ({} of them from --init-from)", plan.grown_from);
  }
  text += "\n";
  text += fmt::format("parameters       {}", with_commas(plan.parameters));
  if (plan.trained_parameters != plan.parameters) {
    text += fmt::format(", {} of them trained", with_commas(plan.trained_parameters));
  }
  text += "\n";
  text += fmt::format(
      "memory           {}: parameters {}, gradients {}, optimizer {}, activations {}, scratch "
      "{}\n",
      mib(plan.total_bytes()), mib(plan.parameter_bytes), mib(plan.gradient_bytes),
      mib(plan.optimizer_bytes), mib(plan.activation_bytes), mib(plan.scratch_bytes));
  text += fmt::format("tokens per step  {} ({} x {} x {}", with_commas(plan.tokens_per_step),
                      o.gradient_accumulation_steps, o.batch_size, o.seq_len);
  if (o.bptt_segments > 1) text += fmt::format(" in {} segments", o.bptt_segments);
  text += fmt::format("), recompute {}\n", recompute_name(o.recompute));
  text += data_text(o, plan);
  const std::string from =
      plan.tokenizer_from.empty() ? "" : fmt::format(" (of {})", plan.tokenizer_from);
  text += fmt::format("tokenizer        {}, {} ids{}\n", printable(plan.tokenizer, 200),
                      with_commas(plan.tokenizer_size), from);
  const double epochs = static_cast<double>(plan.max_steps) / plan.steps_per_epoch;
  text += plan.first_step == plan.max_steps
              ? fmt::format("steps            all {} are done ({:.2f} epochs)\n", plan.max_steps,
                            epochs)
              : fmt::format("steps            {} to {} ({:.2f} epochs in all)\n",
                            plan.first_step + 1, plan.max_steps, epochs);
  text += fmt::format("device           {}, {} threads, {}\n", plan.device, plan.threads,
                      o.bf16 ? "bf16 products" : "f32");
  return text;
}

TrainCallbacks callbacks_for(TrainDisplay* display, const TrainOptions& options) {
  TrainCallbacks callbacks;
  callbacks.on_start = [=](const TrainPlan& plan) {
    std::string text = plan_text(options, plan);
    text.pop_back();
    display->line(text);
  };
  callbacks.on_step = [=](const TrainProgress& p) { display->step(p); };
  callbacks.on_log = [=](const TrainProgress& p) { display->log(p); };
  callbacks.on_eval = [=](const EvalReport& r) {
    display->line(
        fmt::format("step {}  validation loss {:.4f}  perplexity {:.4g}  bits per byte {:.4f}",
                    r.step, r.loss, r.perplexity, r.bits_per_byte));
  };
  callbacks.on_checkpoint = [=](const std::string& path) { display->line("saved " + path); };
  callbacks.on_notice = [=](const std::string& text) { display->line("note: " + text); };
  callbacks.should_stop = [] { return g_signal != 0; };
  return callbacks;
}

int report_interrupted(const TrainOptions& options, const TrainResult& result) {
  const int signal = g_signal;
  std::string command = own_command_line(true);
  if (command.empty()) command = "the same command";
  if (!options.resume) command += " --resume";
  fmt::print(stderr, "stopped after step {}; everything is in {}\ngo on with: {}\n",
             result.last.step, result.checkpoint, command);
  return 128 + signal;
}

// Without the sign that NaN may have.
std::string number_text(double value) {
  return std::isnan(value) ? "nan" : fmt::format("{:.6g}", value);
}

int report_diverged(const TrainResult& result) {
  constexpr size_t kShown = 8;
  fmt::print(stderr,
             "error: [train] expected finite numbers at step {}, got loss {}, gradient norm {}"
             "{}; nothing was saved since {}; use a lower --learning-rate or --max-grad-norm, or a "
             "longer --warmup-steps\n",
             result.last.step, number_text(result.last.loss), number_text(result.last.grad_norm),
             result.weights_diverged ? " and weights that are not finite" : "",
             result.checkpoint.empty() ? "the start (there is no checkpoint yet)"
                                       : "the last good checkpoint " + result.checkpoint);
  fmt::print(stderr, "norms of {}:\n", result.weights_diverged ? "weights" : "gradients");
  for (size_t i = 0; i < std::min(kShown, result.norms.size()); ++i) {
    fmt::print(stderr, "  {:>12}  {}\n", number_text(result.norms[i].second),
               result.norms[i].first);
  }
  return 1;
}

int run_train(const TrainFlags& flags) {
  const TrainOptions options = options_of(flags);
  if (flags.seed < 0) fmt::print(stderr, "note: --seed {}\n", options.seed);
  if (flags.dry_run) {
    const RunSetup setup = prepare_run(options, true);
    for (const std::string& notice : setup.notices) fmt::print(stderr, "note: {}\n", notice);
    write_output(flags.json ? plan_json(options, setup.plan) : plan_text(options, setup.plan));
    return 0;
  }
  std::signal(SIGINT, on_stop_signal);
  std::signal(SIGTERM, on_stop_signal);
  TrainDisplay display(::isatty(STDERR_FILENO) != 0);
  const TrainResult result = train(options, callbacks_for(&display, options));
  display.clear();
  if (flags.json) write_output(result_json(options, result));
  if (result.status == TrainStatus::kInterrupted) return report_interrupted(options, result);
  if (result.status == TrainStatus::kDiverged) return report_diverged(result);
  if (flags.json) return 0;
  std::string text = fmt::format("trained {} steps in {}: loss {:.4f}", result.last.step,
                                 duration_text(result.last.seconds), result.last.loss);
  if (result.eval.targets > 0) {
    text += fmt::format(", validation {:.4f} ({:.4f} bits per byte)", result.eval.loss,
                        result.eval.bits_per_byte);
  }
  write_output(fmt::format("{}\nmodel: {}\n", text, options.output_dir));
  return 0;
}

constexpr int64_t kMany = 1'000'000'000;

void add_input_flags(CLI::App& app, TrainFlags* f) {
  TrainOptions* o = &f->options;
  add_text(app, "--model-config", &o->model_config, "FILE|PRESET",
           "Configuration of the model: a config.json, or one of the presets that 'inspect' knows");
  add_text(app, "--init-from", &o->init_from, "MODEL", "Start from the weights of a model folder");
  add_text(app, "--vocab-size", &f->vocab_size, "N|auto",
           "Tokens of the model: with --init-from, new ones are added; auto: the tokenizer's");
  app.add_option("--freeze", o->freeze,
                 "Tensors that are not trained, by name: 'backbone.layers.[0-3].*'")
      ->type_name("PATTERN...");
  app.add_option("--data", o->data,
                 "Text, JSONL (text, prompt and response, or messages) or .bin token files, or "
                 "folders of them, to train on")
      ->type_name("FILE|DIR...")
      ->required();
  add_text(app, "--data-weights", &f->data_weights, "W,W...",
           "Make each path of --data a source with this share of the sequences");
  add_text(app, "--data-dtype", &o->data_dtype, "uint16|uint32",
           "Of .bin files without a description; uint16 if not given");
  add_choice(app, "--packing", &f->packing, {"stream", "documents"},
             "Sequences are windows of one stream, or whole documents side by side");
  app.add_option("--valid", o->valid, "Held-out data for evaluations")->type_name("FILE|DIR...");
  add_text(
      app, "--tokenizer", &o->tokenizer, "auto|bytes|DIR|FILE",
      "How text becomes ids: bytes, or a folder with tokenizer.json; auto: that of --resume or "
      "--init-from, else bytes");
  add_text(app, "--chat-template", &o->chat_template, "NAME|TEXT",
           "Of JSONL lines with messages: chatml, falcon-mamba, mistral, plain, zephyr, or Jinja "
           "text; default: the tokenizer's own, else plain");
  add_text(app, "--output-dir", &o->output_dir, "DIR",
           "Where checkpoints, metrics.jsonl, curves.svg and the model go");
  f->resume = app.add_option("--resume,--resume-from-checkpoint", o->resume_path,
                             "Go on from this checkpoint, or from the newest in --output-dir")
                  ->expected(0, 1)
                  ->type_name("[PATH]")
                  ->excludes(app.get_option("--init-from"));
  app.add_flag("--json", f->json, "Print a JSON object at the end, or of the --dry-run");
  app.add_flag("--dry-run", f->dry_run,
               "Print parameters, memory and tokens per step without starting");
}

void add_course_flags(CLI::App& app, TrainFlags* f) {
  TrainOptions* o = &f->options;
  add_int(app, "--max-steps", &o->max_steps, 1, kMany, "Updates of the weights");
  add_int(app, "-b,--batch-size,--per-device-train-batch-size", &o->batch_size, 1, 65536,
          "Sequences of one forward and backward");
  add_int(app, "--seq-len,--max-seq-length", &o->seq_len, 1, int64_t{1} << 24,
          "Tokens of a sequence");
  add_int(app, "--gradient-accumulation-steps,--grad-accum", &o->gradient_accumulation_steps, 1,
          65536, "Batches that an update sums up");
  add_int(app, "--bptt-segments", &o->bptt_segments, 1, int64_t{1} << 24,
          "Parts of a sequence in memory one at a time, with equal gradients");
  add_choice(app, "--recompute", &f->recompute, {"none", "scan", "block"},
             "What a step computes again instead of keeping it in memory");
  add_choice(app, "--data-order", &f->order, {"shuffled", "sequential"}, "Order of the sequences");
  add_int(app, "-s,--seed", &f->seed, -1, std::numeric_limits<int64_t>::max(),
          "Of the first weights and of the order of the data; -1: another one each time");
  add_number(app, "--learning-rate,--lr", &o->learning_rate, 0, 1e3, "At its peak");
  add_int(app, "--warmup-steps", &o->warmup_steps, 0, kMany, "Steps up to the peak");
  add_choice(app, "--lr-scheduler-type,--lr-schedule", &f->schedule,
             {"constant", "linear", "cosine", "wsd"},
             "Course of the learning rate; wsd is warm-up, stable, and a decay of the last fifth");
  add_number(app, "--min-lr-ratio", &o->min_lr_ratio, 0, 1, "Last learning rate to the peak");
  add_number(app, "--weight-decay", &o->weight_decay, 0, 1e3, "Of matrices; others have none");
  add_number(app, "--adam-beta1", &o->adam_beta1, 0, 1, "Decay of the first moment");
  add_number(app, "--adam-beta2", &o->adam_beta2, 0, 1, "Decay of the second moment");
  add_number(app, "--adam-epsilon", &o->adam_epsilon, 0, 1,
             "Added to the root of the second moment");
  add_number(app, "--max-grad-norm", &o->max_grad_norm, 0, 1e30, "Clip gradients at; 0: never");
  app.add_flag("--bf16", o->bf16, "Products of matrices in bf16; everything else stays f32");
}

void add_report_flags(CLI::App& app, TrainFlags* f) {
  TrainOptions* o = &f->options;
  CLI::Option* valid = app.get_option("--valid");
  add_int(app, "--eval-steps", &o->eval_steps, 0, kMany,
          "Steps from one evaluation to the next; 0: at the end alone")
      ->needs(valid);
  add_int(app, "--eval-batches", &o->eval_batches, 1, kMany,
          "Batches of an evaluation, from the start of --valid")
      ->needs(valid);
  add_int(app, "--logging-steps", &o->logging_steps, 1, kMany, "Steps from one line to the next");
  add_int(app, "--save-steps", &o->save_steps, 0, kMany,
          "Steps from one checkpoint to the next; 0: at the end alone");
  add_int(app, "--save-total-limit", &o->save_total_limit, 0, kMany,
          "Newest checkpoints that are kept; 0: all");
}

}  // namespace

CommandRun add_train(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("train", "Train a model on text");
  auto flags = std::make_shared<TrainFlags>();
  add_input_flags(*app, flags.get());
  add_course_flags(*app, flags.get());
  add_report_flags(*app, flags.get());
  add_run_options(*app, &flags->run, false);
  add_examples(
      *app,
      {
          {"A small model on text files",
           "mamba-cpp train --model-config config.json --data books --valid held-out.txt "
           "--output-dir run"},
          {"What it would take, without starting",
           "mamba-cpp train --model-config mamba-130m --data books --output-dir run --dry-run"},
          {"A model that answers, from lines of {\"messages\": [...]}",
           "mamba-cpp train --init-from MODEL --tokenizer MODEL --data chats.jsonl --packing "
           "documents --output-dir run"},
          {"Go on where an interrupted run stopped, with the settings of a file",
           "mamba-cpp train --config run.toml --resume"},
      });
  return [flags] { return run_train(*flags); };
}

}  // namespace mamba::cli
