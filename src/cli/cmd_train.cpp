// SPDX-License-Identifier: Apache-2.0
// mamba-cpp train: flags into TrainOptions, the progress of the run on standard error.
#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <ctime>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>

#include "base/check.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/progress.h"
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
  std::string schedule = "cosine", order = "shuffled";
  int64_t seed = 0;
  bool dry_run = false;
  CLI::Option *resume = nullptr, *eval_steps = nullptr, *eval_batches = nullptr;
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
    if (skip || (going_on && word.starts_with("--init-from"))) {
      skip = !skip && word == "--init-from";
      continue;
    }
    line += line.empty() ? "mamba-cpp" : " " + shell_quoted(word);
  }
  return line;
}

TrainOptions options_of(const TrainFlags& flags) {
  TrainOptions options = flags.options;
  const ModelOptions model = model_options(flags.run);
  options.device = model.device;
  options.threads = model.threads;
  options.lr_schedule = lr_schedule_from_name(flags.schedule);
  options.data_order = data_order_from_name(flags.order);
  options.seed = static_cast<uint64_t>(flags.seed);
  options.resume = flags.resume->count() > 0;
  options.command_line = own_command_line(false);
  if (options.valid.empty() && flags.eval_steps->count() + flags.eval_batches->count() > 0) {
    fail(ErrorCode::kInvalidArgument,
         "[--eval-steps] expected --valid with --eval-steps or --eval-batches, got none; name a "
         "held-out text or leave them out");
  }
  return options;
}

std::string mib(int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576.0);
}

std::string plan_text(const TrainOptions& o, const TrainPlan& plan) {
  const Config& c = plan.config;
  std::string text = fmt::format("model            {}, width {}, {} layers, vocabulary {}\n",
                                 c.mixer, c.d_model, c.n_layer, c.vocab_size);
  text += fmt::format("parameters       {}\n", with_commas(plan.parameters));
  text += fmt::format(
      "memory           {}: parameters {}, gradients {}, optimizer {}, activations {}, scratch "
      "{}\n",
      mib(plan.total_bytes()), mib(plan.parameter_bytes), mib(plan.gradient_bytes),
      mib(plan.optimizer_bytes), mib(plan.activation_bytes), mib(plan.scratch_bytes));
  text += fmt::format("tokens per step  {} ({} x {} x {})\n", with_commas(plan.tokens_per_step),
                      o.gradient_accumulation_steps, o.batch_size, o.seq_len);
  text += fmt::format("data             {} tokens, {:.1f} steps an epoch\n",
                      with_commas(plan.data_tokens), plan.steps_per_epoch);
  text += fmt::format("steps            {} to {} ({:.2f} epochs in all)\n", plan.first_step + 1,
                      plan.max_steps, static_cast<double>(plan.max_steps) / plan.steps_per_epoch);
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
  if (flags.dry_run) {
    const RunSetup setup = prepare_run(options, true);
    for (const std::string& notice : setup.notices) fmt::print(stderr, "note: {}\n", notice);
    write_output(plan_text(options, setup.plan));
    return 0;
  }
  std::signal(SIGINT, on_stop_signal);
  std::signal(SIGTERM, on_stop_signal);
  TrainDisplay display(::isatty(STDERR_FILENO) != 0);
  const TrainResult result = train(options, callbacks_for(&display, options));
  display.clear();
  if (result.status == TrainStatus::kInterrupted) return report_interrupted(options, result);
  if (result.status == TrainStatus::kDiverged) return report_diverged(result);
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
  app.add_option("--data", o->data, "Text files, or folders of them, to train on")
      ->type_name("FILE|DIR...")
      ->required();
  app.add_option("--valid", o->valid, "Held-out text for evaluations")->type_name("FILE|DIR...");
  add_choice(app, "--tokenizer", &o->tokenizer, tokenizer_names(), "How text becomes ids");
  add_text(app, "--output-dir", &o->output_dir, "DIR",
           "Where checkpoints, metrics.jsonl, curves.svg and the model go");
  f->resume = app.add_option("--resume", o->resume_path,
                             "Go on from this checkpoint, or from the newest in --output-dir")
                  ->expected(0, 1)
                  ->type_name("[PATH]");
  app.add_flag("--dry-run", f->dry_run,
               "Print parameters, memory and tokens per step without starting");
}

void add_course_flags(CLI::App& app, TrainFlags* f) {
  TrainOptions* o = &f->options;
  add_int(app, "--max-steps", &o->max_steps, 1, kMany, "Updates of the weights");
  add_int(app, "--batch-size", &o->batch_size, 1, 65536, "Sequences of one forward and backward");
  add_int(app, "--seq-len", &o->seq_len, 1, int64_t{1} << 24, "Tokens of a sequence");
  add_int(app, "--gradient-accumulation-steps", &o->gradient_accumulation_steps, 1, 65536,
          "Batches that an update sums up");
  add_choice(app, "--data-order", &f->order, {"shuffled", "sequential"}, "Order of the sequences");
  add_int(app, "--seed", &f->seed, 0, std::numeric_limits<int64_t>::max(),
          "Of the first weights and of the order of the data");
  add_number(app, "--learning-rate", &o->learning_rate, 0, 1e3, "At its peak");
  add_int(app, "--warmup-steps", &o->warmup_steps, 0, kMany, "Steps up to the peak");
  add_choice(app, "--lr-scheduler-type", &f->schedule, {"constant", "linear", "cosine", "wsd"},
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
  f->eval_steps = add_int(app, "--eval-steps", &o->eval_steps, 0, kMany,
                          "Steps from one evaluation to the next; 0: at the end alone");
  f->eval_batches = add_int(app, "--eval-batches", &o->eval_batches, 1, kMany,
                            "Batches of an evaluation, from the start of --valid");
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
  return [flags] { return run_train(*flags); };
}

}  // namespace mamba::cli
