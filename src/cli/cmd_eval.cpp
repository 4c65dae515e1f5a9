// SPDX-License-Identifier: Apache-2.0
// mamba-cpp eval: how well a model predicts a text.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "mamba/evaluate.h"

namespace mamba::cli {
namespace {

struct PplFlags {
  RunOptions run;
  std::string model, file;
  int64_t window = 1024, stride = 0;
  bool carry_state = false, json = false;
  CLI::Option *window_option = nullptr, *stride_option = nullptr;
};

struct CloseFile {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};

// The tokens of a file, block by block, so that memory does not grow with it. The byte tokenizer
// needs no context, so where blocks end changes nothing.
class FileTokens {
 public:
  FileTokens(const std::string& path, const Tokenizer& tokenizer)
      : path_(path),
        tokenizer_(tokenizer),
        file_(path == "-" ? stdin : std::fopen(path.c_str(), "rb")) {
    if (file_ == nullptr) fail_to_read();
    MAMBA_CHECK(tokenizer.name() == "bytes");
  }

  int64_t read(int32_t* ids, int32_t* bytes, int64_t count) {
    block_.resize(static_cast<size_t>(count));
    const size_t got = read_block(file_.get(), block_.data(), block_.size());
    if (got < block_.size() && std::ferror(file_.get())) fail_to_read();
    const std::vector<int32_t> tokens = tokenizer_.encode(std::string_view(block_).substr(0, got));
    for (size_t i = 0; i < tokens.size(); ++i) {
      ids[i] = tokens[i];
      bytes[i] = static_cast<int32_t>(tokenizer_.token_bytes(tokens[i]).size());
    }
    return static_cast<int64_t>(tokens.size());
  }

 private:
  [[noreturn]] void fail_to_read() const {
    fail(ErrorCode::kBadFile, "[eval ppl] expected a readable text, got '{}' ({}); check the path",
         path_, std::strerror(errno));
  }
  std::string path_;
  const Tokenizer& tokenizer_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::string block_;
};

PerplexityOptions options_of(const PplFlags& flags) {
  const bool windowed = flags.window_option->count() + flags.stride_option->count() > 0;
  if (flags.carry_state && windowed) {
    fail(ErrorCode::kInvalidArgument,
         "[eval ppl] expected --window and --stride, or --carry-state, got both; leave one out");
  }
  PerplexityOptions options;
  options.window = flags.window;
  options.stride = flags.stride > 0 ? flags.stride : std::max<int64_t>(1, flags.window / 2);
  options.carry_state = flags.carry_state;
  if (options.stride > options.window) {
    fail(ErrorCode::kInvalidArgument, "[--stride] expected at most --window {}, got {}",
         options.window, options.stride);
  }
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  options.progress = [terminal](int64_t scored) {
    if (terminal) fmt::print(stderr, "\r{} tokens", scored);
    return !interrupted();
  };
  return options;
}

void print(const PplFlags& flags, const Model& model, const PerplexityResult& r) {
  if (::isatty(STDERR_FILENO)) fmt::print(stderr, "\r\033[K");
  if (flags.json) {
    nlohmann::ordered_json json = {
        {"perplexity", r.perplexity},
        {"bits_per_byte", r.bits_per_byte},
        {"nll_sum", r.nll_sum},
        {"nll_mean", r.nll_mean},
        {"standard_error", r.standard_error},
        {"tokens", r.tokens},
        {"scored", r.scored},
        {"bytes", r.bytes},
        {"carry_state", flags.carry_state},
        {"model", flags.model},
        {"file", flags.file},
        {"device", model.device_name()},
        {"dtype", dtype_name(model.dtype())},
    };
    if (!flags.carry_state) {
      json["window"] = flags.window;
      json["stride"] = flags.stride > 0 ? flags.stride : std::max<int64_t>(1, flags.window / 2);
    }
    write_output(json.dump(2) + "\n");
    return;
  }
  write_output(fmt::format(
      "perplexity     {:.4f}\nbits per byte  {:.4f}\nnll            {:.5f} +- {:.5f} (standard "
      "error) a token\nscored         {} of {} tokens, {} bytes\n",
      r.perplexity, r.bits_per_byte, r.nll_mean, r.standard_error, r.scored, r.tokens, r.bytes));
}

int run_ppl(const PplFlags& flags) {
  const PerplexityOptions options = options_of(flags);
  Model model = Model::load(flags.model, model_options(flags.run));
  const std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(flags.model, model.config());
  if (tokenizer == nullptr) {
    fail(ErrorCode::kUnsupported,
         "[eval ppl] expected a model with a vocabulary of 256 bytes, got one of {} without a "
         "tokenizer that this version reads ({})",
         model.config().vocab_size, flags.model);
  }
  FileTokens tokens(flags.file, *tokenizer);
  catch_interrupt();
  const PerplexityResult result = evaluate_perplexity(
      model, [&](int32_t* ids, int32_t* bytes, int64_t n) { return tokens.read(ids, bytes, n); },
      options);
  print(flags, model, result);
  return 0;
}

}  // namespace

CommandRun add_eval(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("eval", "Measure how well a model predicts");
  app->require_subcommand(1);
  CLI::App* ppl = app->add_subcommand("ppl", "Perplexity and bits per byte of a text");
  auto flags = std::make_shared<PplFlags>();
  PplFlags* f = flags.get();
  add_text(*ppl, "-m,--model", &f->model, "FOLDER", "Model folder")->required();
  add_text(*ppl, "-f,--file", &f->file, "TEXT", "Text file; - for standard input")->required();
  constexpr int64_t kMaxWindow = int64_t{1} << 24;
  f->window_option = add_int(*ppl, "--window", &f->window, 2, kMaxWindow, "Tokens of a window");
  f->stride_option = add_int(*ppl, "--stride", &f->stride, 1, kMaxWindow,
                             "Tokens from one window to the next; half a window if not given");
  f->stride_option->default_str("");
  ppl->add_flag("--carry-state", f->carry_state, "One pass over the text with the state carried");
  add_run_options(*ppl, &f->run);
  ppl->add_flag("--json", f->json, "Print JSON");
  return [flags] { return run_ppl(*flags); };
}

}  // namespace mamba::cli
