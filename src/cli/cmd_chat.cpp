// SPDX-License-Identifier: Apache-2.0
// mamba-cpp chat: a conversation on the terminal, or line by line through pipes.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/chat_input.h"
#include "cli/commands.h"
#include "cli/sampling_args.h"
#include "cli/style.h"
#include "mamba/chat.h"

namespace mamba::cli {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr int64_t kMaxTemplateBytes = int64_t{1} << 20;
constexpr const char* kHelp =
    "/help           this list\n"
    "/reset          forget the conversation, keep the system prompt\n"
    "/regen          draw the last answer again\n"
    "/undo           forget the last message and its answer\n"
    "/save FILE      save the conversation with its state\n"
    "/load FILE      go on with a saved one\n"
    "/system TEXT    set the system prompt (none: remove it; without TEXT: show it)\n"
    "/stats          tokens, memory and speed\n"
    "/exit           leave, as Ctrl-D does\n"
    "A line that ends in \\ goes on with the next; \"\"\" begins and ends a message of several "
    "lines;\n"
    "a message that begins with / is typed with //. Ctrl-C stops an answer.\n";

struct ChatFlags {
  RunOptions run;
  SamplingFlags sampling;
  std::string model, system, chat_template, template_file, session, history;
  int64_t tokens = 512;
  std::vector<std::string> stop;
  bool ignore_eos = false, jinja = false, json = false;
  CLI::Option *system_option = nullptr, *history_option = nullptr;
};

// What strftime_now tells: the clock of the wall here.
int64_t local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  return now + local.tm_gmtoff;
}

// Which version of a file lies at a path: files are written anew under another name each time.
struct FileMark {
  uint64_t device = 0, node = 0;
  int64_t size = -1, seconds = 0, nanoseconds = 0;
  bool operator==(const FileMark&) const = default;
};

FileMark mark_of(const std::string& path) {
  struct stat facts {};
  if (path.empty() || ::stat(path.c_str(), &facts) != 0) return {};
  return {facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec};
}

bool same_file(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return !b.empty() && std::filesystem::equivalent(a, b, ignored);
}

double rate(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

class ChatCommand {
 public:
  explicit ChatCommand(const ChatFlags& flags)
      : flags_(flags),
        model_(load_model(flags.model, flags.run)),
        tokenizer_(need_tokenizer()),
        session_(model_, *tokenizer_, chosen_template(), {flags.system, local_time()}),
        sampling_(sampling_options(flags.sampling, flags.model, model_.config(), tokenizer_.get())),
        color_(is_colored(STDERR_FILENO)) {}

  int run() {
    catch_interrupt();
    std::string history = flags_.history;
    if (flags_.history_option->count() == 0) history = default_history_file();
    if (history == "none") history.clear();
    input_ = open_chat_input(history, color_);
    session_file_ = flags_.session;
    session_mark_ = mark_of(session_file_);
    if (!session_file_.empty() && std::filesystem::exists(session_file_)) resume();
    if (input_->is_terminal()) {
      note(fmt::format("{}; template {}; /help for commands", model_.device_name(),
                       session_.chat_template().name()));
    }
    for (;;) {
      std::string text;
      const ChatInput::Result result = input_->message(&text);
      if (result == ChatInput::Result::kEnd) break;
      if (result == ChatInput::Result::kInterrupted) {
        if (!input_->is_terminal()) fail(ErrorCode::kCancelled, "interrupted");
        note("Ctrl-D or /exit to leave");
        continue;
      }
      if (text.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (!guarded_turn(text)) break;
    }
    return 0;
  }

 private:
  std::unique_ptr<Tokenizer> need_tokenizer() {
    std::string why;
    std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(flags_.model, model_.config(), &why);
    if (tokenizer == nullptr) {
      fail(ErrorCode::kBadFile, "[chat] expected a model with a tokenizer, got none: {}", why);
    }
    return tokenizer;
  }

  ChatTemplate chosen_template() const {
    if (flags_.template_file.empty()) return ChatTemplate::load(flags_.model, flags_.chat_template);
    const std::string text = read_input(flags_.template_file, kMaxTemplateBytes);
    // With the tokens of the model; a text without tags would be taken for a name.
    return ChatTemplate::load(flags_.model,
                              text.find('{') == std::string::npos ? text + "{##}" : text);
  }

  // Lines about the conversation, beside its text on standard output.
  void note(const std::string& text) const {
    fmt::print(stderr, "{}\n", styled(Style::kFaint, text, color_));
  }

  void resume() {
    session_.load(flags_.session);
    // Goes on with its own seed unless another is asked for.
    if (flags_.sampling.seed < 0 && session_.turns() > 0) sampling_.seed = session_.seed();
    const std::vector<ChatMessage> messages = session_.messages();
    const bool has = !messages.empty() && messages[0].role == "system";
    const std::string old = has ? messages[0].content : "";
    if (flags_.system_option->count() > 0 && old != flags_.system)
      session_.set_system(flags_.system);
    const bool goes_on = session_.turns() == 0 || session_.goes_on();
    if (input_->is_terminal() || !goes_on) note(loaded_text(old != flags_.system));
  }

  // How a loaded conversation goes on.
  std::string loaded_text(bool other_system) const {
    const int64_t turns = session_.turns();
    if (turns == 0) return "goes on with a conversation without a message";
    if (session_.goes_on()) {
      return fmt::format("goes on after {} turn{} ({} tokens, none of them read again)", turns,
                         turns == 1 ? "" : "s", session_.context_tokens());
    }
    std::string why;
    const std::string &then = session_.loaded_template(), &now = session_.chat_template().name();
    if (then != now) {
      why = fmt::format("it was held with the template '{}' and this one is '{}'", printable(then),
                        printable(now));
    } else if (other_system && flags_.system_option->count() > 0) {
      why = "the system prompt is another one";
    } else {
      why = "the template writes it otherwise than its state has it";
    }
    return fmt::format("goes on after {} turn{}, which the next one reads again: {}", turns,
                       turns == 1 ? "" : "s", why);
  }

  // False to leave. On a terminal an error ends the turn, elsewhere the program.
  bool guarded_turn(const std::string& text) {
    if (!input_->is_terminal()) return turn(text);
    try {
      return turn(text);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kInternal) throw;
      fmt::print(stderr, "error: {}\n", error.what());
      return true;
    }
  }

  bool turn(const std::string& text) {
    if (text[0] == '/' && text.compare(0, 2, "//") != 0) return command(text);
    expect_own_session();
    show([&](const ChatOptions& o) {
      return session_.send(text[0] == '/' ? text.substr(1) : text, o);
    });
    return true;
  }

  ChatOptions options() {
    ChatOptions o;
    o.sampling = sampling_;
    o.max_tokens = flags_.tokens;
    o.stop = flags_.stop;
    o.ignore_eos = flags_.ignore_eos;
    o.interrupted = [] { return interrupted(); };
    return o;
  }

  // Prints an answer as it comes, without the spaces before its first word.
  template <class Ask>
  void show(Ask ask) {
    ChatOptions o = options();
    bool begun = false;
    char last = '\n';
    o.on_text = [&](std::string_view piece) {
      if (flags_.json) return;
      if (!begun) piece.remove_prefix(std::min(piece.find_first_not_of(" \t\r\n"), piece.size()));
      if (piece.empty()) return;
      begun = true;
      last = piece.back();
      write_output(piece);
    };
    last_ = ask(o);
    if (!flags_.json && (last != '\n' || !begun)) write_output("\n");
    if (last_.reread_tokens > 0 && !told_reread_) {
      told_reread_ = true;
      note(
          fmt::format("the template writes earlier messages anew: {} tokens were read again (said "
                      "once)",
                      last_.reread_tokens));
    }
    try {
      if (interrupted()) {
        if (!input_->is_terminal()) fail(ErrorCode::kCancelled, "interrupted");
        clear_interrupt();
        note(last_.dropped ? "interrupted; the message does not count" : "interrupted");
      }
      changed();
    } catch (...) {
      write_json();
      throw;
    }
    write_json();
  }

  // After the session is saved: who has read the line finds the turn in the session's file.
  void write_json() const {
    if (flags_.json) write_json_line(json_text(answer_json(), -1));
  }

  // A line for each answer with --json.
  nlohmann::ordered_json answer_json() const {
    return {{"turn", session_.turns()},
            {"text", last_.text},
            {"finish_reason", finish_reason_name(last_.finish_reason)},
            {"dropped", last_.dropped},
            {"prompt_tokens", last_.prompt_tokens},
            {"reread_tokens", last_.reread_tokens},
            {"generated_tokens", last_.generated_tokens},
            {"prompt_seconds", last_.prompt_seconds},
            {"generate_seconds", last_.generate_seconds},
            {"context_tokens", session_.context_tokens()},
            {"seed", session_.seed()}};
  }

  void changed() {
    if (session_file_.empty()) return;
    expect_own_session();
    session_.save(session_file_);
    session_mark_ = mark_of(session_file_);
  }

  // Another program may hold a conversation with the same file: neither's is lost then.
  void expect_own_session() const {
    if (session_file_.empty() || mark_of(session_file_) == session_mark_) return;
    fail(ErrorCode::kIo,
         "[--session] expected {} as this program has left it, got it changed by another one; keep "
         "this conversation with /save FILE, where it goes on then, or leave and go on with that "
         "one",
         printable(session_file_, 200));
  }

  bool command(const std::string& text) {
    const size_t space = text.find_first_of(" \t\n");
    const std::string name = text.substr(0, space);
    std::string rest = space == std::string::npos ? "" : text.substr(space + 1);
    rest.erase(0, rest.find_first_not_of(" \t"));
    rest.erase(rest.find_last_not_of(" \t\n") + 1);
    expect_nothing_behind(name, rest);
    if (name == "/exit" || name == "/quit") return false;
    if (name == "/help") {
      fmt::print(stderr, "{}", kHelp);
    } else if (name == "/regen") {
      show([&](const ChatOptions& o) { return session_.regenerate(o); });
    } else if (name == "/undo") {
      note(session_.undo() ? fmt::format("undone; {} turns left", session_.turns())
                           : "nothing to undo");
      changed();
    } else if (name == "/reset") {
      session_.reset();
      last_ = {};
      note("a new conversation");
      changed();
    } else if (name == "/save" || name == "/load") {
      file_command(name == "/save", rest);
    } else if (name == "/system") {
      system_command(rest);
    } else if (name == "/stats") {
      stats();
    } else {
      unknown(name);
    }
    return true;
  }

  static void expect_nothing_behind(const std::string& name, const std::string& rest) {
    for (const char* alone : {"/exit", "/quit", "/help", "/regen", "/undo", "/reset", "/stats"}) {
      if (name != alone || rest.empty()) continue;
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected nothing behind it, got '{}'; leave it out, or type /{} to send it as a "
           "message",
           name, printable(rest), name);
    }
  }

  void file_command(bool save, const std::string& path) {
    if (path.empty()) {
      fail(ErrorCode::kInvalidArgument, "[{}] expected the name of a file, got none",
           save ? "/save" : "/load");
    }
    if (save) {
      if (same_file(path, session_file_)) expect_own_session();
      expect_state_place("/save", path, kChatFormat);
      const bool lost = !session_file_.empty() && mark_of(session_file_) != session_mark_;
      session_.save(path);
      note(fmt::format("saved {} turns in {}{}", session_.turns(), path,
                       lost ? ", where the conversation goes on" : ""));
      if (lost) session_file_ = path;
      if (lost || same_file(path, session_file_)) session_mark_ = mark_of(session_file_);
      return;
    }
    session_.load(path);
    last_ = {};
    if (same_file(path, session_file_)) session_mark_ = mark_of(session_file_);
    note(loaded_text(false));
    changed();
  }

  void system_command(const std::string& text) {
    if (text.empty()) {
      const std::vector<ChatMessage> messages = session_.messages();
      const bool has = !messages.empty() && messages[0].role == "system";
      note(has ? "system prompt: " + messages[0].content : "no system prompt");
      return;
    }
    session_.set_system(text == "none" ? "" : text);
    note(session_.turns() > 0 ? "set; the next turn reads the conversation again" : "set");
    changed();
  }

  [[noreturn]] void unknown(const std::string& name) const {
    const std::string meant = closest(name, {"/help", "/reset", "/regen", "/undo", "/save", "/load",
                                             "/system", "/stats", "/exit"});
    fail(ErrorCode::kInvalidArgument, "[chat] expected a command, got '{}'{}; see /help",
         printable(name), meant.empty() ? "" : fmt::format(" (did you mean '{}'?)", meant));
  }

  void stats() const {
    note(fmt::format(
        "turns             {}\n"
        "context           {} tokens in a state of {} bytes\n"
        "kept for /undo    {} bytes\n"
        "last prompt       {} tokens, {:.1f} tokens/s ({} read again)\n"
        "last answer       {} tokens, {:.1f} tokens/s\n"
        "seed              {}\n"
        "template          {}\n"
        "model             {} on {}, {}",
        session_.turns(), session_.context_tokens(), session_.state_bytes(), session_.kept_bytes(),
        last_.prompt_tokens, rate(last_.prompt_tokens, last_.prompt_seconds), last_.reread_tokens,
        last_.generated_tokens, rate(last_.generated_tokens, last_.generate_seconds),
        session_.turns() > 0 ? session_.seed() : sampling_.seed, session_.chat_template().name(),
        flags_.model, model_.device_name(), dtype_name(model_.dtype())));
  }

  const ChatFlags& flags_;
  std::string session_file_;  // --session, or where it went on
  FileMark session_mark_;     // of that file as it was read or written last
  Model model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ChatSession session_;
  std::unique_ptr<ChatInput> input_;
  SamplingOptions sampling_;
  ChatAnswer last_;
  bool color_;
  bool told_reread_ = false;
};

void add_flags(CLI::App& app, ChatFlags* f) {
  add_text(app, "-m,--model,--pretrained-model-name-or-path", &f->model, "FOLDER", "Model folder")
      ->required();
  f->system_option = add_text(app, "--system-prompt", &f->system, "TEXT", "System prompt");
  CLI::Option* name =
      add_text(app, "--chat-template", &f->chat_template, "NAME|TEXT",
               "chatml, falcon-mamba, mistral, plain, zephyr, or Jinja text; default: the model's "
               "own, else plain");
  add_text(app, "--chat-template-file", &f->template_file, "FILE", "Jinja text from a file")
      ->excludes(name);
  app.add_flag("--jinja", f->jinja, "For other programs' sake: templates are always Jinja here");
  add_text(app, "--session", &f->session, "FILE",
           "Go on with this conversation if it exists, and save it after every turn");
  f->history_option = add_text(app, "--history", &f->history, "FILE|none",
                               "History of typed lines; default: below $XDG_STATE_HOME");
  add_int(app, "-n,--max-new-tokens,--tokens,--predict,--n-predict,--max-tokens", &f->tokens, -1,
          kMaxTokens, "Tokens of an answer at most; -1: until an end token");
  add_sampling_options(app, &f->sampling);
  app.add_option("--stop", f->stop, "Text that ends an answer; may be repeated")
      ->type_name("STR")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", f->ignore_eos, "Go on after the model's end token");
  app.add_flag("--json", f->json, "Print each answer as a line of JSON");
  add_run_options(app, &f->run);
  add_backend(app, &f->run);
  add_state_dtype(app, &f->run);
  add_without_effect(app, "-c,--ctx-size,--max-model-len", "N", kNoContext);
  add_without_effect(app, "-b,--batch-size", "N", kNoMicroBatches);
  add_without_effect(app, "--ubatch-size", "N", kNoMicroBatches);
  add_without_effect(app, "--parallel,--max-num-seqs", "N", "one conversation is held at a time");
}

}  // namespace

CommandRun add_chat(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("chat", "Talk with a model, in turns");
  auto flags = std::make_shared<ChatFlags>();
  add_flags(*app, flags.get());
  add_examples(*app,
               {
                   {"Talk with a model", "mamba-cpp chat -m MODEL"},
                   {"A conversation that goes on whenever it is called",
                    "mamba-cpp chat -m MODEL --session talk.chat --system-prompt 'Be brief.'"},
                   {"Two questions from a pipe, answers alone on standard output",
                    "mamba-cpp chat -m MODEL --chat-template chatml --temp 0"},
               });
  return [flags] {
    if (flags->tokens == 0) {
      fail(ErrorCode::kInvalidArgument,
           "[--max-new-tokens] expected at least 1 token, or -1, got 0; an answer needs one");
    }
    if (flags->tokens < 0) flags->tokens = kMaxTokens;
    if (!flags->session.empty()) expect_writable(flags->session);
    return ChatCommand(*flags).run();
  };
}

}  // namespace mamba::cli
