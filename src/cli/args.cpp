// SPDX-License-Identifier: Apache-2.0
// Options, output and signals that the commands share.
#include "cli/args.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <sstream>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "base/near_names.h"
#include "device/cpu_features.h"
#include "formats/safetensors.h"
#include "tokenizer/files.h"
#include "tokenizer/gguf_tokenizer.h"

namespace mamba::cli {
namespace {

std::atomic<int> g_interrupted{0};  // the signal, or 0
Written g_written = Written::kNothing;
static_assert(std::atomic<int>::is_always_lock_free, "set by a signal handler");

extern "C" void on_interrupt(int signal) { g_interrupted.store(signal); }

void catch_signal(int signal) {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESETHAND;  // and no SA_RESTART: a read that waits for input ends
  ::sigaction(signal, &action, nullptr);
}

// "-n,--tokens" -> "--tokens": how messages name an option.
std::string long_name(const std::string& flags) {
  const size_t at = flags.find("--");
  return at == std::string::npos ? flags : flags.substr(at, flags.find(',', at) - at);
}

double parse_number(const std::string& flag, const std::string& text, double low, double high) {
  double v = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, v);
  const bool whole = error == std::errc() && at == end && !text.empty();
  if (!whole || !std::isfinite(v) || v < low || v > high) {
    fail(ErrorCode::kInvalidArgument, "[{}] expected a number in {}..{}, got '{}'", flag, low, high,
         text);
  }
  return v;
}

struct CloseFile {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};

}  // namespace

int64_t parse_int(const std::string& flag, const std::string& text, int64_t low, int64_t high) {
  int64_t v = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, v);
  if (error != std::errc() || at != end || v < low || v > high) {
    fail(ErrorCode::kInvalidArgument, "[{}] expected a whole number in {}..{}, got '{}'", flag, low,
         high, text);
  }
  return v;
}

std::vector<int64_t> parse_int_list(const std::string& flag, const std::string& text, int64_t low,
                                    int64_t high) {
  if (text.find_first_not_of(' ') == std::string::npos) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected whole numbers in {}..{} with commas between them, got an empty list; give "
         "one at least",
         flag, low, high);
  }
  std::vector<int64_t> values;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    size_t first = at, end = comma;
    while (first < end && text[first] == ' ') ++first;
    while (first < end && text[end - 1] == ' ') --end;
    values.push_back(parse_int(flag, text.substr(first, end - first), low, high));
    at = comma + 1;
  }
  return values;
}

CLI::Option* add_int(CLI::App& app, const std::string& flags, int64_t* value, int64_t low,
                     int64_t high, const std::string& help) {
  const std::string name = long_name(flags);
  return app
      .add_option_function<std::string>(
          flags, [=](const std::string& text) { *value = parse_int(name, text, low, high); }, help)
      ->type_name("N")
      ->default_str(fmt::format("{}", *value));
}

CLI::Option* add_number(CLI::App& app, const std::string& flags, double* value, double low,
                        double high, const std::string& help) {
  const std::string name = long_name(flags);
  return app
      .add_option_function<std::string>(
          flags, [=](const std::string& text) { *value = parse_number(name, text, low, high); },
          help)
      ->type_name("X")
      ->default_str(fmt::format("{}", *value));
}

CLI::Option* add_choice(CLI::App& app, const std::string& flags, std::string* value,
                        std::vector<std::string> allowed, const std::string& help) {
  const std::string name = long_name(flags);
  const std::string type = fmt::format("{}", fmt::join(allowed, "|"));
  return app
      .add_option_function<std::string>(
          flags,
          [=](const std::string& text) {
            if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
              fail(ErrorCode::kInvalidArgument, "[{}] expected one of {}, got '{}'{}", name,
                   fmt::join(allowed, ", "), text, did_you_mean(text, allowed));
            }
            *value = text;
          },
          help)
      ->type_name(type)
      ->default_str(*value);
}

CLI::Option* add_text(CLI::App& app, const std::string& flags, std::string* value,
                      const std::string& type_name, const std::string& help) {
  return app
      .add_option_function<std::string>(
          flags, [=](const std::string& text) { *value = text; }, help)
      ->type_name(type_name);
}

CLI::Option* add_list(CLI::App& app, const std::string& flags, std::string* value,
                      const std::string& type_name, const std::string& help) {
  return app
      .add_option_function<std::vector<std::string>>(
          flags,
          [=](const std::vector<std::string>& parts) {
            *value = fmt::format("{}", fmt::join(parts, ","));
          },
          help)
      ->type_name(type_name)
      ->allow_extra_args(false)
      ->default_str(*value);
}

namespace {

constexpr DType kWeightTypes[] = {DType::kF32,  DType::kBF16, DType::kF16,  DType::kQ8_0,
                                  DType::kQ6_K, DType::kQ5_K, DType::kQ5_1, DType::kQ5_0,
                                  DType::kQ4_K, DType::kQ4_1, DType::kQ4_0, DType::kIQ4_NL};

}  // namespace

std::vector<std::string> weight_dtypes() {
  std::vector<std::string> names;
  for (DType type : kWeightTypes) names.emplace_back(dtype_name(type));
  return names;
}

DType weight_dtype_of(const std::string& name) {
  for (DType type : kWeightTypes) {
    if (name == dtype_name(type)) return type;
  }
  return DType::kF32;
}

void add_gpu_layers(CLI::App& app) {
  add_without_effect(app, "--gpu-layers,--n-gpu-layers", "N",
                     "all layers run on one device, the processor unless --device says another",
                     "0");
}

void add_without_effect(CLI::App& app, const std::string& flags, const std::string& type_name,
                        const std::string& why, const std::string& silent) {
  const std::string name = long_name(flags);
  const auto warn = [=] {
    std::fprintf(stderr, "warning: [%s] changes nothing here: %s\n", name.c_str(), why.c_str());
  };
  const std::string help = "Changes nothing: " + why;
  if (type_name.empty()) {
    app.add_flag_callback(flags, warn, help);
  } else {
    app.add_option_function<std::string>(
           flags,
           [=](const std::string& value) {
             if (silent.empty() || value != silent) warn();
           },
           help)
        ->type_name(type_name);
  }
}

void add_device(CLI::App& app, std::string* device) {
  app.add_option_function<std::string>(
         "--device,--device-map",
         [device](const std::string& text) {
           const bool cpu = text == "cpu" || text == "auto" || text == "none";
           if (!cpu && text.rfind("cuda", 0) != 0) {
             fail(ErrorCode::kInvalidArgument,
                  "[--device] expected cpu, cuda or cuda:N, got '{}'; --list-devices says what is "
                  "here",
                  printable(text));
           }
           *device = cpu ? "cpu" : text;
         },
         "Where to run: the processor, or an NVIDIA GPU")
      ->type_name("cpu|cuda|cuda:N");
}

void add_run_options(CLI::App& app, RunOptions* options, bool with_dtype) {
  add_choice(app, "--isa", &options->isa,
             {"auto", "base", "avx2", "avx512", "avx512_bf16", "onednn", "ref"},
             "Instruction set to run on; auto takes the best for this CPU");
  add_int(app, "-t,--threads", &options->threads, 0, 1024, "Threads; 0: one per physical core");
  app.add_flag("--pin", options->pin, "Bind each thread to a physical core of its own");
  if (with_dtype) {
    add_choice(app, "--dtype", &options->dtype, weight_dtypes(),
               "Type of the weight matrices and their products; in 4 to 8 bits they are quantised "
               "on loading. Not given: blocks of a file stay as they are")
        ->each([options](const std::string&) { options->dtype_given = true; });
    add_cache_options(app, options);
  }
  add_device(app, &options->device);
  app.add_flag("--list-devices", options->list_devices,
               "List what this machine can run on, and end");
  add_gpu_layers(app);
}

void add_cache_options(CLI::App& app, RunOptions* options, bool with_verbose) {
  options->cache = true;
  app.add_flag("!--no-cache", options->cache,
               "Keep no file of prepared weights beside the model, and use none");
  add_number(app, "--cache-after", &options->cache_after, 0, 1e6,
             "Seconds of preparing weights from which on they are kept for the next load");
  if (with_verbose) app.add_flag("-v,--verbose", options->verbose, "Notes about such files");
}

std::string user_cache_folder() {
  for (const auto& [variable, below] : {std::pair("XDG_CACHE_HOME", ""), {"HOME", "/.cache"}}) {
    const char* value = std::getenv(variable);
    if (value != nullptr && value[0] == '/') return std::string(value) + below + "/mamba-cpp";
  }
  return "";
}

void add_state_dtype(CLI::App& app, RunOptions* options) {
  add_choice(app, "--state-dtype", &options->state_dtype, {"f32", "bf16"},
             "Type of the recurrent states; bf16 moves half the bytes in a step and rounds them");
}

ModelOptions model_options(const RunOptions& options) {
  ModelOptions model;
  if (options.device != "cpu" && options.isa != "auto") {
    fail(ErrorCode::kInvalidArgument,
         "[--isa] expected no instruction set of the processor with --device {}, got '{}'; leave "
         "one "
         "of them out",
         options.device, options.isa);
  }
  model.device = options.device != "cpu" ? options.device
                 : options.isa == "auto" ? "cpu"
                 : options.isa == "ref"  ? "ref"
                                         : "cpu:" + options.isa;
  model.threads = static_cast<int>(options.threads);
  model.backend = options.backend;
  model.choices_folder = user_cache_folder();
  model.dtype = weight_dtype_of(options.dtype);
  model.dequantize = options.dtype_given;
  if (options.pin && !pin_threads(model.threads)) {
    std::fprintf(stderr, "warning: threads are not pinned: fewer cores, or OpenMP binds them\n");
  }
  model.state_dtype = options.state_dtype == "bf16" ? DType::kBF16 : DType::kF32;
  model.cache.use = options.cache;
  model.cache.after_seconds = options.cache_after;
  model.cache.folder = user_cache_folder();
  if (options.verbose) {
    model.cache.on_note = [](const std::string& note) {
      std::fprintf(stderr, "note: %s\n", note.c_str());
    };
  }
  model.interrupted = [] { return interrupted(); };
  model.on_warning = [](const std::string& warning) {
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  };
  return model;
}

void add_backend(CLI::App& app, RunOptions* options) {
  add_choice(app, "--backend", &options->backend, {"auto", "reference", "fused"},
             "Kernels: auto takes the fastest by a table, reference the general ones alone, fused "
             "one for as much of a step as there is one for");
  app.add_flag("--explain", options->explain,
               "Say on standard error, as one line of JSON, which kernels were chosen and why");
}

void explain_model(Model& model, const RunOptions& options, int64_t batch) {
  if (options.explain) std::fputs(model.explain(batch).c_str(), stderr);
}

Model load_model(const std::string& path, const RunOptions& options, int64_t batch) {
  Model model = Model::load(path, model_options(options));
  explain_model(model, options, batch);
  return model;
}

std::unique_ptr<Tokenizer> tokenizer_of(const std::string& folder, const Config& config,
                                        std::string* why_none) {
  std::unique_ptr<Tokenizer> tokenizer;
  const auto has = [&](const char* name) {
    std::error_code ignored;
    return std::filesystem::exists(folder + "/" + name, ignored);
  };
  const auto none = [&](std::string reason) {
    if (why_none != nullptr) *why_none = std::move(reason);
    return nullptr;
  };
  const bool gguf = is_gguf_file(folder);
  if (gguf && !has_gguf_tokenizer(GgufFile(folder))) {
    if (config.vocab_size == 256) return make_tokenizer("bytes");
    return none(fmt::format("'{}' has no tokenizer", folder));
  }
  if (gguf || has("tokenizer.json") || has("vocab.json")) {
    try {
      tokenizer = load_tokenizer(folder);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      return none(error.what());
    }
  } else if (says_bytes(folder) || (!has("tokenizer.model") && config.vocab_size == 256)) {
    return make_tokenizer("bytes");
  } else {
    return none(fmt::format("'{}' has no tokenizer.json", folder));
  }
  if (tokenizer->vocab_size() > config.vocab_size) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a tokenizer of at most the {} ids of the model, got {}; is it another "
         "model's?",
         folder, config.vocab_size, tokenizer->vocab_size());
  }
  return tokenizer;
}

std::string closest(const std::string& word, const std::vector<std::string>& words) {
  std::string best;
  size_t best_distance = word.size() / 3 + 2;  // further away is not a typing mistake
  for (const std::string& candidate : words) {
    const size_t distance = edit_distance(word, candidate);
    if (distance >= best_distance) continue;
    best_distance = distance;
    best = candidate;
  }
  return best;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& words) {
  const std::string best = closest(word, words);
  return best.empty() ? "" : fmt::format(" (did you mean '{}'?)", best);
}

// CLI11 keeps them for us as the text below its help: two lines for each.
void add_examples(CLI::App& app, const std::vector<Example>& examples) {
  std::string text;
  for (const Example& e : examples) text += e.text + "\n" + e.command + "\n";
  app.footer(text);
}

std::vector<Example> examples_of(const CLI::App& app) {
  std::istringstream lines(app.get_footer());
  std::vector<Example> examples;
  for (Example e; std::getline(lines, e.text) && std::getline(lines, e.command);) {
    examples.push_back(e);
  }
  return examples;
}

Written written_output() { return g_written; }

void write_json_line(std::string_view line) {
  const bool lines = g_written != Written::kText;
  write_output(line);
  if (lines) g_written = Written::kJsonLines;
}

void write_output(std::string_view text) {
  if (!text.empty()) g_written = Written::kText;
  // Not through stdio, which loses its place when Ctrl-C interrupts a write to a slow reader.
  for (size_t done = 0; done < text.size();) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data() + done, text.size() - done);
    if (written >= 0) {
      done += static_cast<size_t>(written);
      continue;
    }
    const int error = errno;
    if (error == EINTR) continue;
    if (error == EPIPE || error == EBADF) throw OutputClosed{};
    fail(ErrorCode::kIo, "[stdout] expected to write {} bytes, got '{}'; free space or redirect it",
         text.size(), std::strerror(error));
  }
}

size_t read_block(std::FILE* file, char* out, size_t count) {
  size_t done = 0;
  while (done < count) {
    if (interrupted()) fail(ErrorCode::kCancelled, "interrupted");
    errno = 0;
    done += std::fread(out + done, 1, count - done, file);
    if (done == count || !std::ferror(file) || errno != EINTR) break;
    std::clearerr(file);
  }
  return done;
}

std::string read_input(const std::string& path, int64_t limit, const char* where) {
  std::unique_ptr<std::FILE, CloseFile> file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    if (interrupted()) fail(ErrorCode::kCancelled, "interrupted");  // while a pipe was opened
    fail(ErrorCode::kBadFile, "[{}] expected a readable file, got '{}' ({}); check the path", where,
         path, std::strerror(errno));
  }
  std::string text;
  std::vector<char> block(1 << 16);
  for (;;) {
    const size_t n = read_block(file.get(), block.data(), block.size());
    text.append(block.data(), n);
    if (static_cast<int64_t>(text.size()) > limit) {
      fail(ErrorCode::kBadFile, "[{}] expected at most {} bytes, got more ({}); split the text",
           where, limit, path);
    }
    if (n == block.size()) continue;
    if (std::ferror(file.get())) {
      fail(ErrorCode::kBadFile, "[{}] expected a readable file, got '{}' ({}); check the path",
           where, path, std::strerror(errno));
    }
    return text;
  }
}

void expect_writable(const std::string& path) {
  const AtomicFile probe(path);  // its temporary goes away again
}

void expect_replaceable(const std::string& flag, const std::string& path, const char* kind,
                        const std::function<bool()>& is_like) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(path, ignored)) {
    bool like = std::filesystem::file_size(path, ignored) == 0;
    try {
      like = like || is_like();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kBadFile && error.code() != ErrorCode::kUnsupported) throw;
    }
    if (!like) {
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected a new file, or {} to replace, got {}, which is something else; name "
           "another one",
           flag, kind, printable(path, 200));
    }
  }
  expect_writable(path);
}

void expect_state_place(const std::string& flag, const std::string& path, const char* format) {
  const bool state = std::string_view(format) == kStateFormat;
  expect_replaceable(flag, path, state ? "a saved state" : "a saved conversation",
                     [&] { return has_format(path, format); });
}

bool has_format(const std::string& path, const char* format) {
  const SafetensorsFile file(path);
  const auto found = file.metadata().find("format");
  return found != file.metadata().end() && found->second == format;
}

void catch_interrupt() { catch_signal(SIGINT); }
void catch_interrupt_and_sigterm() {
  catch_signal(SIGINT);
  catch_signal(SIGTERM);
}
void release_interrupt() {
  if (interrupted()) fail(ErrorCode::kCancelled, "interrupted");
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}
bool interrupted() { return g_interrupted.load() != 0; }
int interrupt_exit_code() { return 128 + (interrupted() ? g_interrupted.load() : SIGINT); }
void clear_interrupt() {
  g_interrupted.store(0);
  catch_interrupt();
}

}  // namespace mamba::cli
