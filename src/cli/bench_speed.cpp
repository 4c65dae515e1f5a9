// SPDX-License-Identifier: Apache-2.0
// The grid of tests: for each model, dtype and number of threads the weights are loaded once.
#include "cli/bench_speed.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "base/check.h"
#include "base/json.h"
#include "bench/bench.h"
#include "bench/speed.h"
#include "cli/bench_report.h"
#include "cli/error_report.h"
#include "cli/number_lists.h"
#include "formats/hf_config.h"
#include "model/network.h"

namespace mamba::cli {
namespace {

constexpr int64_t kMostTokens = 16'777'216;

// Everything that was asked for, checked before the first model is loaded.
struct Grid {
  std::vector<std::string> models, dtypes;
  std::vector<int64_t> threads, depth, batch, ubatch, sequences, prompt, gen;
  std::vector<std::pair<int64_t, int64_t>> prompt_gen, train;
  std::vector<std::string> train_dtypes;  // those of dtypes that have training

  bool has_inference() const { return !prompt.empty() || !gen.empty() || !prompt_gen.empty(); }

  size_t tests() const {
    const size_t inference = (prompt.size() + gen.size() + prompt_gen.size()) * depth.size() *
                             batch.size() * ubatch.size() * sequences.size();
    return models.size() * threads.size() *
           (dtypes.size() * inference + train_dtypes.size() * train.size());
  }
};

// There are no training steps in types of blocks: their rows are left out where others remain.
void expect_training_types(Grid* g) {
  if (g->train.empty()) return;
  std::vector<std::string> without;
  for (const std::string& dtype : g->dtypes) {
    (can_train_in(weight_dtype_of(dtype)) ? g->train_dtypes : without).push_back(dtype);
  }
  if (without.empty()) return;
  if (!g->has_inference() && g->train_dtypes.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--train] expected --dtype f32 or bf16, in which there is training, got {}",
         fmt::join(without, ", "));
  }
  fmt::print(stderr, "note: [--train] no training in {}: these rows are left out\n",
             fmt::join(without, ", "));
}

Grid grid_of(const SpeedFlags& f, const std::vector<std::string>& dtypes) {
  Grid g;
  g.models = model_list(f.models);
  g.dtypes = dtype_list(f.dtypes, dtypes);
  g.threads = parse_int_ranges("--threads", f.threads, 0, 1024);
  g.depth = parse_int_ranges("--n-depth", f.depth, 0, kMostTokens);
  // 0: what suits the device.
  g.batch = f.batch.empty() ? std::vector<int64_t>{0}
                            : parse_int_ranges("--batch-size", f.batch, 1, kMostTokens);
  g.ubatch = f.ubatch.empty() ? std::vector<int64_t>{0}
                              : parse_int_ranges("--ubatch-size", f.ubatch, 1, kMostTokens);
  g.sequences = parse_int_ranges("--batch-sizes", f.sequences, 1, 65536);
  g.prompt = parse_int_ranges("--n-prompt", f.prompt, 0, kMostTokens);
  g.gen = parse_int_ranges("--n-gen", f.gen, 0, kMostTokens);
  if (!f.prompt_gen.empty()) g.prompt_gen = parse_pairs("--pg", f.prompt_gen, kMostTokens);
  if (!f.train.empty()) g.train = parse_products("--train", f.train, kMostTokens);
  std::erase(g.prompt, 0);
  std::erase(g.gen, 0);
  if (!g.has_inference() && g.train.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--n-prompt] expected a test, got no tokens of any kind; give -p, -n, -pg or --train");
  }
  expect_training_types(&g);
  return g;
}

class SpeedCommand {
 public:
  SpeedCommand(const SpeedFlags& flags, const std::vector<std::string>& dtypes)
      : flags_(flags),
        grid_(grid_of(flags, dtypes)),
        report_(flags.output),
        report_err_(flags.output_err) {
    options_.repetitions = flags.repetitions;
    options_.warm_up = !flags.no_warm_up;
    options_.poll = [] {
      if (interrupted()) fail(ErrorCode::kCancelled, "interrupted");
    };
  }

  int run() {
    catch_interrupt_and_sigterm();
    try {
      run_grid();
    } catch (const Error& error) {
      if (begun_)
        end(flags_.json ? json_text(error_json(error)) : "");  // what there is stays readable
      throw;
    } catch (...) {
      if (begun_) end("");
      throw;
    }
    end("");
    return 0;
  }

 private:
  void run_grid() {
    for (const std::string& path : grid_.models) {
      for (const std::string& dtype : grid_.dtypes) {
        for (const int64_t threads : grid_.threads) {
          RunOptions run = {flags_.isa, threads, dtype, flags_.state_dtype};
          run.dtype_given = flags_.dtype_given;
          run.device = flags_.device;
          run.pin = flags_.pin;
          run.cache = flags_.caching.cache;
          run.backend = flags_.caching.backend;
          run.explain = flags_.caching.explain;
          run.cache_after = flags_.caching.cache_after;
          run.verbose = flags_.verbose;
          run_inference(path, run);
          run_training(path, run);
        }
      }
    }
  }

  static void write_error_stream(const std::string& text) { std::fputs(text.c_str(), stderr); }

  // Once the first model is there: an error before that prints nothing else.
  void begin() {
    if (begun_) return;
    begun_ = true;
    write_output(report_.begin());
    write_error_stream(report_err_.begin());
  }

  void add(const BenchRow& row) {
    write_output(report_.row(row));
    write_error_stream(report_err_.row(row));
  }

  void end(const std::string& error) {
    write_output(report_.end(error));
    write_error_stream(report_err_.end(error));
  }

  // Before each test: the rest that was asked for, and where the run is.
  void announce(const std::string& path, const std::string& test) {
    if (++tests_ > 1) rest();
    if (!flags_.progress && !flags_.verbose) return;
    fmt::print(stderr, "bench: test {} of {}: {} of {}\n", tests_, grid_.tests(), test,
               printable(path, 200));
  }

  void rest() const {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(flags_.delay);
    for (options_.poll(); std::chrono::steady_clock::now() < until; options_.poll()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  void tell_loaded(const BenchRow& row) const {
    if (!flags_.verbose) return;
    fmt::print(stderr, "bench: {} is {}, {} parameters in {} on {} with {} threads, {}\n",
               printable(row.model_filename, 200), row.model_type, row.model_n_params, row.dtype,
               row.backend, row.n_threads,
               row.random_weights ? "of random weights"
                                  : fmt::format("loaded in {:.1f} ms", row.load_seconds * 1e3));
  }

  // One row for a model, with what does not change from test to test.
  static BenchRow first_row(const std::string& path, BenchModel& bench) {
    Model& model = bench.model;
    BenchRow row;
    row.model_filename = path;
    row.model_type = model_type_name(model);
    row.model_size = static_cast<int64_t>(weight_bytes(model));
    row.model_n_params = model.parameters();
    row.random_weights = bench.random;
    row.backend = model.device_name();
    row.isa = model.network().device().kernels().name;
    row.dtype = dtype_name(model.dtype());  // of a file of blocks its own, whatever was asked for
    row.n_threads = model.network().device().threads();
    row.load_seconds = bench.load_seconds;
    row.state_bytes = model.new_state(1).bytes_per_sequence();
    return row;
  }

  std::vector<SpeedTest> tests_of(int64_t depth, int64_t sequences, int64_t chunk) const {
    std::vector<SpeedTest> tests;
    for (const int64_t p : grid_.prompt) tests.push_back({p, 0, depth, sequences, chunk});
    for (const int64_t n : grid_.gen) tests.push_back({0, n, depth, sequences, chunk});
    for (const auto& [p, n] : grid_.prompt_gen) tests.push_back({p, n, depth, sequences, chunk});
    return tests;
  }

  void run_inference(const std::string& path, const RunOptions& run) {
    if (!grid_.has_inference()) return;
    reset_peak_rss();
    BenchModel bench = open_bench_model(path, model_options(run));
    explain_model(bench.model, run);
    begin();
    const BenchRow first = first_row(path, bench);
    tell_loaded(first);
    for (const int64_t depth : grid_.depth) {
      for (const int64_t batch : grid_.batch) {
        for (const int64_t ubatch : grid_.ubatch) {
          for (const int64_t sequences : grid_.sequences) {
            BenchRow row = first;
            row.n_ubatch = ubatch > 0 ? ubatch : bench.model.network().prefill_chunk();
            row.n_batch = batch > 0 ? batch : std::max<int64_t>(2048, row.n_ubatch);
            const int64_t chunk = std::min(row.n_batch, row.n_ubatch);
            for (const SpeedTest& test : tests_of(depth, sequences, chunk)) {
              run_test(bench.model, test, row);
            }
          }
        }
      }
    }
  }

  void run_test(Model& model, const SpeedTest& test, BenchRow row) {
    row.test = test.name();
    row.n_prompt = test.prompt;
    row.n_gen = test.gen;
    row.n_depth = test.depth;
    row.n_sequences = test.sequences;
    row.tokens = test.tokens();
    announce(row.model_filename, row.test);
    row.seconds = time_speed(model, test, options_);
    row.peak_rss = peak_rss_bytes();
    add(row);
  }

  void run_training(const std::string& path, const RunOptions& run) {
    const std::vector<std::string>& types = grid_.train_dtypes;
    if (std::find(types.begin(), types.end(), run.dtype) == types.end()) return;
    for (const auto& [batch, length] : grid_.train) {
      const std::string name = fmt::format("train {}x{}", batch, length);
      options_.poll();
      announce(path, name);
      reset_peak_rss();
      const TrainReport r = bench_train(load_config(path), model_options(run), batch, length,
                                        flags_.repetitions, false, options_.poll);
      begin();
      BenchRow row;
      row.model_filename = path;
      row.model_type = r.model_type;
      row.model_size = 4 * r.parameters;
      row.model_n_params = r.parameters;
      row.random_weights = true;
      row.backend = r.device;
      row.isa = r.isa;
      row.dtype = run.dtype;
      row.n_threads = r.threads;
      row.n_batch = row.n_ubatch = batch * length;
      row.test = name;
      row.n_train = length;
      row.n_sequences = batch;
      row.tokens = batch * length;
      row.seconds = r.step.samples;
      row.state_bytes = r.state_bytes;
      row.peak_rss = r.peak_rss_bytes;
      add(row);
    }
  }

  const SpeedFlags& flags_;
  Grid grid_;
  BenchReport report_, report_err_;
  SpeedOptions options_;
  bool begun_ = false;
  size_t tests_ = 0;
};

}  // namespace

std::vector<std::string> model_list(const std::vector<std::string>& texts) {
  std::vector<std::string> models;
  std::error_code ignored;
  for (const std::string& text : texts) {
    const bool one = std::filesystem::exists(text, ignored);
    const std::vector<std::string> items = one ? std::vector{text} : comma_items(text);
    models.insert(models.end(), items.begin(), items.end());
  }
  return models;
}

std::vector<std::string> dtype_list(const std::string& text,
                                    const std::vector<std::string>& allowed) {
  const std::vector<std::string> items = comma_items(text);
  for (const std::string& item : items) {
    if (std::find(allowed.begin(), allowed.end(), item) == allowed.end()) {
      fail(ErrorCode::kInvalidArgument, "[--dtype] expected a list of {}, got '{}'{}",
           fmt::join(allowed, ", "), item, did_you_mean(item, allowed));
    }
  }
  return items;
}

std::vector<std::pair<int64_t, int64_t>> parse_products(const std::string& flag,
                                                        const std::string& text, int64_t high) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (const std::string& item : comma_items(text)) {
    const size_t x = item.find('x');
    if (x == std::string::npos) {
      fail(ErrorCode::kInvalidArgument, "[{}] expected sequences x tokens as in '8x256', got '{}'",
           flag, item);
    }
    pairs.emplace_back(parse_int(flag, item.substr(0, x), 1, high),
                       parse_int(flag, item.substr(x + 1), 1, high));
  }
  return pairs;
}

std::vector<std::pair<int64_t, int64_t>> parse_pairs(const std::string& flag,
                                                     const std::string& text, int64_t high) {
  const std::vector<int64_t> values = parse_int_list(flag, text, 1, high);
  if (values.size() % 2 != 0) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected pairs of a prompt and tokens behind it as in '512,128', got '{}'", flag,
         text);
  }
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (size_t i = 0; i < values.size(); i += 2) pairs.emplace_back(values[i], values[i + 1]);
  return pairs;
}

void add_speed_options(CLI::App& app, SpeedFlags* f) {
  const auto list = [&](const char* flags, std::string* value, const char* help) {
    return add_list(app, flags, value, "N[,N]", help)->group("Tests");
  };
  app.add_option("-m,--model", f->models,
                 "Folder or file of weights; of a configuration or preset random ones")
      ->type_name("MODEL[,MODEL]")
      ->allow_extra_args(false);
  list("-p,--n-prompt", &f->prompt, "Tokens of a prompt; 0: no such test");
  list("-n,--n-gen", &f->gen, "Tokens generated; 0: no such test");
  add_list(app, "--pg", &f->prompt_gen, "P,N[,P,N]", "A prompt and tokens generated behind it")
      ->group("Tests");
  list("-d,--n-depth", &f->depth, "Tokens read before, not timed");
  list("--batch-sizes,--npl", &f->sequences, "Sequences together; t/s is of all");
  add_list(app, "--train", &f->train, "BxL[,BxL]", "Training steps: sequences x tokens")
      ->group("Tests");
  list("-b,--batch-size", &f->batch,
       "Tokens of a prompt given at once (default 2048, on a GPU 8192)");
  list("--ubatch-size,--ub", &f->ubatch,
       "Tokens that go through the layers together (default 512, on a GPU 8192)");
  add_int(app, "-r,--repetitions", &f->repetitions, 1, 10000, "Times that each test is timed")
      ->group("Tests");
  app.add_flag("--no-warmup", f->no_warm_up, "Time the first run too")->group("Tests");
  add_int(app, "--delay", &f->delay, 0, 86400, "Seconds of rest between two tests")->group("Tests");
  add_list(app, "-t,--threads", &f->threads, "N[,N]", "Threads; 0: one per physical core");
  app.add_flag("--pin", f->pin, "Bind each thread to a physical core of its own");
  add_choice(app, "--state-dtype", &f->state_dtype, {"f32", "bf16"},
             "Type of the recurrent states");
  add_cache_options(app, &f->caching, false);
  add_backend(app, &f->caching);
  add_device(app, &f->device);
  add_gpu_layers(app);
  add_choice(app, "-o,--output", &f->output, {"md", "csv", "json", "jsonl", "sql"},
             "Form of the result");
  add_choice(app, "--output-err", &f->output_err, {"none", "md", "csv", "json", "jsonl", "sql"},
             "The result on standard error too, in this form");
  app.add_flag("--progress", f->progress, "Tell each test on standard error before it runs");
  app.add_flag("-v,--verbose", f->verbose, "As --progress, and each model that is loaded");
  app.add_flag("--json", f->json, "As -o json");
}

int run_speed(const SpeedFlags& flags, const std::vector<std::string>& dtypes) {
  return SpeedCommand(flags, dtypes).run();
}

}  // namespace mamba::cli
