// SPDX-License-Identifier: Apache-2.0
// Texts, progress and flags of the commands of eval.
#include "cli/eval_common.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/json.h"
#include "base/text_kind.h"
#include "cli/args.h"
#include "train/model_card.h"

namespace mamba::cli {
namespace {

constexpr size_t kBlock = size_t{1} << 16;
constexpr std::chrono::milliseconds kRedraw{100};
constexpr std::chrono::seconds kLineEvery{10};

void put(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace

std::unique_ptr<Tokenizer> require_tokenizer(const std::string& folder, const Config& config,
                                             const char* where) {
  std::string why;
  std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(folder, config, &why);
  if (tokenizer != nullptr) return tokenizer;
  fail(ErrorCode::kUnsupported,
       "[{}] expected a model folder with a tokenizer, or a vocabulary of 256 bytes, got one of {} "
       "({}); put its tokenizer.json there",
       where, config.vocab_size, why);
}

void expect_plain_text(const std::string& path, const std::string& where,
                       const std::string& advice) {
  expect_text(path, where);
  std::error_code ignored;
  if (!path.ends_with(".jsonl") || !std::filesystem::is_regular_file(path, ignored)) return;
  fail(ErrorCode::kBadFile, "[{}] expected text, got '{}', which has lines of JSON; {}", where,
       printable(path, 200), advice);
}

FileTokens::FileTokens(const std::string& path, const Tokenizer& tokenizer, const char* where)
    : path_(path),
      where_(where),
      tokenizer_(tokenizer),
      encoder_(tokenizer),
      file_(path == "-" ? stdin : std::fopen(path.c_str(), "rb")) {
  if (file_ == nullptr) fail_to_read();
  if (path != "-") expect_plain_text(path, where);
  struct stat facts {};
  if (::fstat(::fileno(file_.get()), &facts) == 0 && S_ISREG(facts.st_mode)) {
    size_ = static_cast<double>(facts.st_size);
  }
}

int64_t FileTokens::read(int32_t* ids, int32_t* bytes, int64_t count) {
  std::string block;
  while (next_ == ids_.size() && !ended_) {
    ids_.clear();
    next_ = 0;
    block.resize(kBlock);
    const size_t got = read_block(file_.get(), block.data(), block.size());
    if (got < block.size() && std::ferror(file_.get())) fail_to_read();
    read_ += static_cast<double>(got);
    encoder_.push(std::string_view(block).substr(0, got), &ids_);
    ended_ = got < block.size();
    if (ended_) encoder_.finish(&ids_);
  }
  const int64_t n = std::min<int64_t>(count, static_cast<int64_t>(ids_.size() - next_));
  for (int64_t i = 0; i < n; ++i) {
    ids[i] = ids_[next_++];
    bytes[i] = static_cast<int32_t>(tokenizer_.token_bytes(ids[i]).size());
  }
  return n;
}

double FileTokens::share_read() const {
  if (size_ <= 0) return 0;
  // Of the block that was read last, what is handed out.
  const double handed =
      ids_.empty() ? 1 : static_cast<double>(next_) / static_cast<double>(ids_.size());
  const double behind = std::min(read_, static_cast<double>(kBlock)) * (1 - handed);
  return std::clamp((read_ - behind) / size_, 0.0, 1.0);
}

void FileTokens::fail_to_read() const {
  fail(ErrorCode::kBadFile, "[{}] expected a readable text, got '{}' ({}); check the path", where_,
       printable(path_), std::strerror(errno));
}

EvalProgress::EvalProgress()
    : terminal_(::isatty(STDERR_FILENO) != 0), start_(Clock::now()), last_(start_) {}

bool EvalProgress::update(const std::string& text, double share) {
  const Clock::time_point now = Clock::now();
  const bool due = terminal_ ? !drawn_ || now - last_ >= kRedraw : now - last_ >= kLineEvery;
  if (due) {
    last_ = now;
    std::string left;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    // Before a second has passed, what is left would be a guess.
    if (share > 0 && seconds >= 1) {
      left = fmt::format("  {} left", duration_text(seconds * (1 - share) / share));
    }
    put(terminal_ ? fmt::format("\r{}{}\033[K", text, left) : fmt::format("{}{}\n", text, left));
    drawn_ = terminal_;
  }
  return !interrupted();
}

void EvalProgress::restart() { start_ = Clock::now(); }

void EvalProgress::line(const std::string& text) {
  clear();
  put(text + "\n");
}

void EvalProgress::clear() {
  if (drawn_) put("\r\033[K");
  drawn_ = false;
}

void add_window_flags(CLI::App& app, WindowFlags* f) {
  constexpr int64_t kMaxWindow = int64_t{1} << 24;
  CLI::Option* window = add_int(app, "-c,--window,--ctx-size,--max-model-len", &f->window, 2,
                                kMaxWindow, "Tokens of a window");
  CLI::Option* stride = add_int(app, "--stride", &f->stride, 1, kMaxWindow,
                                "Tokens from one window to the next; half a window if not given");
  stride->default_str("");
  CLI::Option* windows =
      add_int(app, "--windows", &f->windows, 1, INT64_MAX, "Stop after so many windows");
  windows->default_str("");
  CLI::Option* tail =
      app.add_flag("--drop-tail", f->drop_tail, "Leave out a last window that is not full");
  CLI::Option* carry = app.add_flag("--carry-state", f->carry_state,
                                    "One pass over the text with the state carried");
  for (CLI::Option* of_windows : {window, stride, windows, tail}) carry->excludes(of_windows);
}

PerplexityOptions window_options(const WindowFlags& flags) {
  PerplexityOptions options;
  options.window = flags.window;
  options.stride = flags.stride_used();
  options.max_windows = flags.windows;
  options.drop_tail = flags.drop_tail;
  options.carry_state = flags.carry_state;
  if (options.stride > options.window) {
    fail(ErrorCode::kInvalidArgument, "[--stride] expected at most --window {}, got {}",
         options.window, options.stride);
  }
  return options;
}

nlohmann::ordered_json window_json(const WindowFlags& flags) {
  nlohmann::ordered_json json = {{"carry_state", flags.carry_state}};
  if (flags.carry_state) return json;
  json["window"] = flags.window;
  json["stride"] = flags.stride_used();
  json["drop_tail"] = flags.drop_tail;
  json["max_windows"] = flags.windows > 0 ? nlohmann::ordered_json(flags.windows) : nullptr;
  return json;
}

nlohmann::ordered_json model_json(const std::string& folder, const Model& model) {
  return {{"path", folder},
          {"fingerprint", model.fingerprint()},
          {"parameters", model.parameters()},
          {"dtype", dtype_name(model.dtype())},
          {"device", model.device_name()}};
}

std::function<bool(int64_t)> text_progress(EvalProgress& progress, const FileTokens& tokens) {
  return [&progress, &tokens](int64_t scored) {
    return progress.update(fmt::format("{} tokens", scored), tokens.share_read());
  };
}

}  // namespace mamba::cli
