// SPDX-License-Identifier: Apache-2.0
// The line editor of libedit, and reading lines from a file or pipe.
#include "cli/chat_input.h"

#include <fmt/format.h>
#include <histedit.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/bracketed_paste.h"
#include "generate/text_stream.h"

namespace mamba::cli {
namespace {

constexpr int kHistoryEntries = 1000;
constexpr size_t kMaxMessage = size_t{64} << 20;
constexpr std::string_view kQuotes = "\"\"\"";

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Lines of standard input that is no terminal.
class PipeInput final : public ChatInput {
 public:
  Result line(const std::string&, std::string* text) override {
    text->clear();
    for (;;) {
      const size_t newline = held_.find('\n', at_);
      if (newline != std::string::npos) {
        *text = held_.substr(at_, newline - at_);
        at_ = newline + 1;
        if (text->ends_with('\r')) text->pop_back();
        return Result::kText;
      }
      held_.erase(0, at_);
      at_ = 0;
      if (held_.size() > kMaxMessage) {
        fail(ErrorCode::kBadFile, "[input] expected lines of at most {} bytes, got a longer one",
             kMaxMessage);
      }
      std::array<char, 1 << 16> block;
      const ssize_t count = ::read(STDIN_FILENO, block.data(), block.size());
      if (interrupted()) return Result::kInterrupted;
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) {
        fail(ErrorCode::kIo, "[input] expected to read standard input, got '{}'",
             std::strerror(errno));
      }
      if (count > 0) {
        held_.append(block.data(), static_cast<size_t>(count));
        continue;
      }
      text->swap(held_);
      held_.clear();
      if (text->ends_with('\r')) text->pop_back();
      return text->empty() ? Result::kEnd : Result::kText;
    }
  }
  bool is_terminal() const override { return false; }

 private:
  std::string held_;
  size_t at_ = 0;
};

// libedit on the terminal. Prompts go to standard error: standard output has answers alone.
class TerminalInput final : public ChatInput {
 public:
  TerminalInput(const std::string& history_file, bool color)
      : history_file_(history_file), color_(color) {
    // libedit takes characters from the locale.
    if (std::setlocale(LC_CTYPE, "") == nullptr || MB_CUR_MAX == 1) {
      std::setlocale(LC_CTYPE, "C.UTF-8");
    }
    editor_ = el_init("mamba-cpp", stdin, stderr, stderr);
    history_ = history_init();
    if (editor_ == nullptr || history_ == nullptr) {
      fail(ErrorCode::kIo, "[chat] expected a terminal to edit lines on, got none; use a pipe");
    }
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryEntries);
    history(history_, &event, H_SETUNIQUE, 1);
    open_history();
    el_set(editor_, EL_CLIENTDATA, this);
    el_set(editor_, EL_PROMPT_ESC, &TerminalInput::prompt, '\1');
    el_set(editor_, EL_EDITOR, "emacs");
    el_set(editor_, EL_HIST, ::history, history_);
    el_set(editor_, EL_GETCFN, &TerminalInput::get_character);
    // Ctrl-C as a key, so that it can end the line; while an answer is written it is a signal.
    el_set(editor_, EL_SETTY, "-d", "-isig", nullptr);
    el_set(editor_, EL_ADDFN, "leave-line", "Drop the line", &TerminalInput::leave_line);
    el_set(editor_, EL_BIND, "^C", "leave-line", nullptr);
    el_set(editor_, EL_ADDFN, "end-or-delete", "End at an empty line",
           &TerminalInput::end_or_delete);
    el_set(editor_, EL_BIND, "^D", "end-or-delete", nullptr);
    el_set(editor_, EL_ADDFN, "insert-paste", "Insert what is pasted",
           &TerminalInput::insert_paste);
    el_set(editor_, EL_BIND, "^_", "insert-paste", nullptr);
    el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~TerminalInput() override {
    if (history_ != nullptr) history_end(history_);
    if (editor_ != nullptr) el_end(editor_);
  }

  Result line(const std::string& prompt, std::string* text) override {
    prompt_ = color_ ? "\1\033[1;32m\1" + prompt + "\1\033[0m\1" : prompt;
    left_ = invalid_ = false;
    text->clear();
    int count = 0;
    mark_pastes(kPasteMarksOn);
    const char* typed = el_gets(editor_, &count);
    mark_pastes(kPasteMarksOff);
    if (left_) {
      std::fputs("^C\n", stderr);
      return Result::kInterrupted;
    }
    if (typed == nullptr || count <= 0) return Result::kEnd;
    *text = typed;
    if (!text->empty() && text->back() == '\n') text->pop_back();
    remember(*text);
    if (invalid_) fmt::print(stderr, "note: bytes that are no UTF-8 became U+FFFD\n");
    // Ctrl-C typed right behind the line is meant for the answer to it.
    const size_t interrupt = typed_.find('\3');
    if (interrupt != std::string::npos) {
      typed_.erase(0, interrupt + 1);
      std::raise(SIGINT);
    }
    return Result::kText;
  }
  bool is_terminal() const override { return true; }

 private:
  static TerminalInput* self(EditLine* editor) {
    void* data = nullptr;
    el_get(editor, EL_CLIENTDATA, &data);
    return static_cast<TerminalInput*>(data);
  }
  static char* prompt(EditLine* editor) { return self(editor)->prompt_.data(); }
  // For libedit, which would drop bytes that are no character of the locale without a word.
  static int get_character(EditLine* editor, wchar_t* character) {
    return self(editor)->next_character(character);
  }
  int next_character(wchar_t* character) {
    std::string whole;
    while (whole.empty()) {
      while (typed_.empty()) {
        if (!read_typed()) return 0;
      }
      whole = characters_.push(typed_.substr(0, 1));
      typed_.erase(0, 1);
    }
    // A byte that ends a broken character comes behind its U+FFFD: it waits for the next call.
    wchar_t first = 0;
    const int length = std::mbtowc(&first, whole.data(), whole.size());
    if (length <= 0) return 0;
    const auto used = static_cast<size_t>(length);
    invalid_ = invalid_ || whole.compare(0, used, "\xEF\xBF\xBD") == 0;
    typed_.insert(0, whole.substr(used));
    *character = first;
    return 1;
  }
  bool read_typed() {
    for (;;) {
      std::array<char, 4096> block;
      const ssize_t count = ::read(STDIN_FILENO, block.data(), block.size());
      if (count > 0) typed_ = pastes_.push({block.data(), static_cast<size_t>(count)});
      if (count >= 0) return count > 0;
      if (errno != EINTR) return false;
      if (!interrupted()) continue;
      clear_interrupt();  // sent, not typed: it leaves the line as well
      typed_ = "\3";
      return true;
    }
  }

  static unsigned char leave_line(EditLine* editor, int) {
    self(editor)->left_ = true;
    return CC_EOF;
  }
  static unsigned char insert_paste(EditLine* editor, int) {
    const std::string text = self(editor)->pastes_.take();
    if (text.find("\xEF\xBF\xBD") != std::string::npos) self(editor)->invalid_ = true;
    return text.empty() || el_insertstr(editor, text.c_str()) < 0 ? CC_ERROR : CC_REFRESH;
  }
  // Only while a line is edited: an answer may be ended, and the program with it, at any time.
  static void mark_pastes(std::string_view marks) {
    const char* terminal = std::getenv("TERM");
    if (terminal == nullptr || std::string_view(terminal) == "dumb") return;
    if (::isatty(STDERR_FILENO)) std::fwrite(marks.data(), 1, marks.size(), stderr);
  }
  static unsigned char end_or_delete(EditLine* editor, int) {
    const LineInfo* info = el_line(editor);
    if (info->lastchar == info->buffer) return CC_EOF;
    if (info->cursor == info->lastchar) return CC_ERROR;
    el_cursor(editor, 1);
    el_deletestr(editor, 1);
    return CC_REFRESH;
  }

  // A file that is no history is not ours to write over; one that cannot be written is done
  // without.
  void open_history() {
    if (history_file_.empty()) return;
    namespace fs = std::filesystem;
    std::error_code ignored;
    HistEvent event;
    const bool there = fs::exists(history_file_, ignored);
    // libedit would read a device without end, and take its permissions away.
    if (there && !fs::is_regular_file(history_file_, ignored)) return no_history("not a file");
    const bool loaded = there && history(history_, &event, H_LOAD, history_file_.c_str()) >= 0;
    if (there && !loaded && fs::file_size(history_file_, ignored) > 0 &&
        ::access(history_file_.c_str(), R_OK) == 0) {
      fail(ErrorCode::kInvalidArgument,
           "[--history] expected a file that chat has written, got '{}', which is another; name a "
           "new one",
           printable(history_file_, 200));
    }
    fs::create_directories(fs::path(history_file_).parent_path(), ignored);
    std::FILE* file = std::fopen(history_file_.c_str(), "a");
    if (file == nullptr) return no_history(std::strerror(errno));
    std::fclose(file);
  }

  void no_history(const std::string& why) {
    fmt::print(stderr,
               "warning: [--history] expected to write '{}', got '{}'; lines are not kept\n",
               printable(history_file_, 200), why);
    history_file_.clear();
  }

  void remember(const std::string& text) {
    if (text.empty()) return;
    HistEvent event;
    history(history_, &event, H_ENTER, text.c_str());
    if (history_file_.empty()) return;
    // libedit does not look whether all of it could be written.
    std::FILE* file = std::fopen(history_file_.c_str(), "w");
    bool good = file != nullptr && history(history_, &event, H_SAVE_FP, file) >= 0;
    if (file != nullptr) good = std::fclose(file) == 0 && good;
    if (!good) no_history(std::strerror(errno));
  }

  std::string history_file_, prompt_;
  std::string typed_;  // read and not yet given to libedit
  PasteFilter pastes_;
  TextStream characters_;  // of them, the one that has begun
  bool color_, left_ = false, invalid_ = false;
  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
};

}  // namespace

ChatInput::Result ChatInput::message(std::string* text) {
  std::string part;
  Result result = line("> ", text);
  if (result != Result::kText) return result;
  if (text->rfind(kQuotes, 0) == 0) {
    std::string whole = text->substr(kQuotes.size());
    while (!ends_with(whole, kQuotes)) {
      result = line("... ", &part);
      if (result == Result::kInterrupted) return result;
      if (result == Result::kEnd) break;  // the end of the input ends the message too
      whole += "\n" + part;
      if (whole.size() > kMaxMessage) break;
    }
    if (ends_with(whole, kQuotes)) whole.resize(whole.size() - kQuotes.size());
    if (whole.rfind('\n', 0) == 0) whole.erase(0, 1);
    if (ends_with(whole, "\n")) whole.pop_back();
    *text = whole;
    return Result::kText;
  }
  while (ends_with(*text, "\\") && text->size() <= kMaxMessage) {
    text->back() = '\n';
    result = line("... ", &part);
    if (result == Result::kInterrupted) return result;
    if (result == Result::kEnd) break;
    *text += part;
  }
  return Result::kText;
}

std::unique_ptr<ChatInput> open_chat_input(const std::string& history, bool color) {
  if (::isatty(STDIN_FILENO)) return std::make_unique<TerminalInput>(history, color);
  return std::make_unique<PipeInput>();
}

std::string default_history_file() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return std::string(state) + "/mamba-cpp/chat_history";
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home == '/') {
    return std::string(home) + "/.local/state/mamba-cpp/chat_history";
  }
  return "";
}

}  // namespace mamba::cli
