// SPDX-License-Identifier: Apache-2.0
// What the commands of eval share: a text as a stream of tokens, and progress with the time left.
#pragma once

#include <CLI/App.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mamba/evaluate.h"
#include "mamba/tokenizer.h"

namespace mamba::cli {

// The tokenizer of a model folder; throws unsupported where there is none. `where` begins messages.
std::unique_ptr<Tokenizer> require_tokenizer(const std::string& folder, const Config& config,
                                             const char* where);

// Throws bad_file for a file that is no text (base/text_kind.h) and for lines of JSON, by name.
void expect_plain_text(const std::string& path, const std::string& where,
                       const std::string& advice = "take out the texts: jq -r .text");

// The tokens of a file (or standard input for "-"), block by block: memory does not grow with it.
class FileTokens {
 public:
  // Borrows the tokenizer.
  FileTokens(const std::string& path, const Tokenizer& tokenizer, const char* where);

  int64_t read(int32_t* ids, int32_t* bytes, int64_t count);
  // Share of the file that has been read; 0 where its length is not known.
  double share_read() const;

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const {
      if (file != stdin) std::fclose(file);
    }
  };
  [[noreturn]] void fail_to_read() const;

  std::string path_;
  const char* where_;
  const Tokenizer& tokenizer_;
  StreamEncoder encoder_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  double size_ = 0, read_ = 0;  // bytes
  bool ended_ = false;
  std::vector<int32_t> ids_;  // encoded and not handed out before next_
  size_t next_ = 0;
};

// One line on standard error: redrawn on a terminal, one every ten seconds otherwise.
class EvalProgress {
 public:
  EvalProgress();
  ~EvalProgress() { clear(); }
  EvalProgress(const EvalProgress&) = delete;
  EvalProgress& operator=(const EvalProgress&) = delete;

  // `text` says where it stands; share is in [0, 1], 0 where it is not known. False after Ctrl-C.
  bool update(const std::string& text, double share);
  // Forgets the time that has passed: what follows is timed on its own.
  void restart();
  // A line of its own above the progress.
  void line(const std::string& text);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_, last_;
};

// The flags of the commands that read a text in windows.
struct WindowFlags {
  int64_t window = 1024, stride = 0, windows = 0;
  bool carry_state = false, drop_tail = false;

  int64_t stride_used() const { return stride > 0 ? stride : window / 2; }
};
void add_window_flags(CLI::App& app, WindowFlags* flags);
// Without the progress function. Throws invalid_argument for a contradiction.
PerplexityOptions window_options(const WindowFlags& flags);
// What JSON says of them.
nlohmann::ordered_json window_json(const WindowFlags& flags);
// Which model and what runs it.
nlohmann::ordered_json model_json(const std::string& folder, const Model& model);

// Where a text stands, and after Ctrl-C false.
std::function<bool(int64_t)> text_progress(EvalProgress& progress, const FileTokens& tokens);

}  // namespace mamba::cli
