// SPDX-License-Identifier: Apache-2.0
// mamba-cpp: the table of commands, and what every error becomes: one line on standard error and an
// exit code (2 usage, 3 input, 4 device or memory, 70 a bug, 130 interrupted).
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "base/check.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "mamba/error.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

constexpr CommandRun (*kCommands[])(CLI::App&) = {
    add_train, add_generate, add_eval, add_verify, add_inspect, add_bench, add_version,
};

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return 2;
    case ErrorCode::kBadFile:
    case ErrorCode::kUnsupported:
    case ErrorCode::kIo:
      return 3;
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kDevice:
      return 4;
    case ErrorCode::kCancelled:
      return 130;
    case ErrorCode::kInternal:
      return 70;
  }
  return 70;
}

int report(std::string message, int code) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "error: %s\n", message.c_str());
  return code;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& words) {
  const std::string best = closest(word, words);
  return best.empty() ? "" : fmt::format(" (did you mean '{}'?)", best);
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(sub->get_name());
  }
  return names;
}

// "mamba-cpp bench model" for that command, without the program's name as messages begin.
std::string path_of(const CLI::App* app, bool with_program) {
  std::string path = app->get_name();
  for (app = app->get_parent(); app != nullptr; app = app->get_parent()) {
    if (with_program || app->get_parent() != nullptr) path = app->get_name() + " " + path;
  }
  return path;
}

std::string see_help(const CLI::App* app) {
  return fmt::format("see '{} --help'", path_of(app, true));
}

// The beginning of a longer flag is more likely meant than another flag of similar letters.
std::string flag_meant(const std::string& flag, const std::vector<std::string>& known) {
  std::string best;
  for (const std::string& k : known) {
    if (flag.size() > 2 && k.rfind(flag, 0) == 0 && (best.empty() || k.size() < best.size())) {
      best = k;
    }
  }
  return best.empty() ? did_you_mean(flag, known) : fmt::format(" (did you mean '{}'?)", best);
}

// The project's words for what CLI11 found wrong; its messages begin or end with the option's name.
std::string usage_message(const CLI::App& root, const CLI::ParseError& e) {
  const CLI::App* app = &root;
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  const std::string what = e.what(), command = path_of(app, false);
  const std::string first = what.substr(0, what.find_first_of(": "));
  const std::string last = what.substr(what.rfind(' ') + 1);
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&e) != nullptr) {
    if (what.find("At Most 1 ") != std::string::npos) {
      return fmt::format("[{}] expected one value, got {}; give it once", first, last);
    }
    if (last == "missing") {
      return fmt::format("[{}] expected a value, got none; {}", first, see_help(app));
    }
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr) {
    const std::vector<std::string> extras = root.remaining(true);
    const std::string& got = extras.empty() ? last : extras.front();
    const char* expected = got[0] == '-'                 ? "a known flag"
                           : command_names(*app).empty() ? "flags"
                                                         : "a command";
    return fmt::format("[{}] expected {}, got '{}'; {}", command, expected, got, see_help(app));
  }
  if (dynamic_cast<const CLI::RequiredError*>(&e) != nullptr && last == "required") {
    if (first == "A") {  // "A subcommand is required"
      return fmt::format("[{}] expected one of the commands {}, got none; {}", command,
                         fmt::join(command_names(*app), ", "), see_help(app));
    }
    const CLI::Option* option = app->get_option_no_throw(first);
    const std::string type = option == nullptr ? "" : option->get_type_name();
    return fmt::format("[{}] expected {}, got none; {}", command,
                       first[0] == '-' ? first + " " + type
                       : type.empty()  ? first
                                       : type,
                       see_help(app));
  }
  if (dynamic_cast<const CLI::ExcludesError*>(&e) != nullptr) {
    return fmt::format("[{}] expected {} or {}, got both; leave one out", command, first, last);
  }
  if (dynamic_cast<const CLI::RequiresError*>(&e) != nullptr) {
    return fmt::format("[{}] expected {} with it, got none; add it", first, last);
  }
  return fmt::format("[{}] expected other arguments, got: {}; {}", command, what, see_help(app));
}

// CLI11 reports what it does not know last and without a suggestion: say it first, and say more.
void refuse_unknown_words(CLI::App& root, const std::vector<std::string>& words) {
  CLI::App* app = &root;
  bool in_commands = true;  // the words up to the first flag may name commands
  for (const std::string& word : words) {
    if (word == "--") return;
    const bool flag = word.rfind("--", 0) == 0;
    if (in_commands && !word.empty() && word[0] != '-') {
      const std::vector<std::string> names = command_names(*app);
      if (names.empty()) {
        in_commands = false;
        continue;
      }
      if (std::find(names.begin(), names.end(), word) == names.end()) {
        fail(ErrorCode::kInvalidArgument, "[{}] expected one of the commands {}, got '{}'{}",
             path_of(app, false), fmt::join(names, ", "), word, did_you_mean(word, names));
      }
      app = app->get_subcommand(word);
      continue;
    }
    in_commands = in_commands && word.empty();
    const std::string name = word.substr(0, word.find('='));
    if (!flag || app->get_option_no_throw(name) != nullptr) continue;
    std::vector<std::string> known;
    for (const CLI::Option* option : app->get_options()) {
      for (const std::string& l : option->get_lnames()) known.push_back("--" + l);
    }
    fail(ErrorCode::kInvalidArgument, "[{}] expected a known flag, got '{}'{}; {}",
         path_of(app, false), name, flag_meant(name, known), see_help(app));
  }
}

int run(int argc, char** argv) {
  CLI::App app("Mamba state-space language models: train, generate, evaluate, on the CPU",
               "mamba-cpp");
  app.set_version_flag("--version", std::string("mamba-cpp ") + MAMBA_VERSION);
  app.require_subcommand(0, 1);
  app.get_formatter()->column_width(36);
  std::vector<CommandRun> commands;
  for (const auto& add : kCommands) commands.push_back(add(app));
  const std::vector<CLI::App*> subs = app.get_subcommands([](CLI::App*) { return true; });
  MAMBA_CHECK(subs.size() == commands.size());
  std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  if (!words.empty() && words[0] == "help") {  // help [COMMAND]
    words.erase(words.begin());
    words.push_back("--help");
  }
  try {
    refuse_unknown_words(app, words);
    std::vector<std::string> last_first(words.rbegin(), words.rend());  // as CLI11 takes them
    app.parse(last_first);
  } catch (const CLI::CallForHelp&) {
    write_output(app.help());
    return 0;
  } catch (const CLI::CallForVersion&) {
    write_output(std::string("mamba-cpp ") + MAMBA_VERSION + "\n");
    return 0;
  } catch (const CLI::ParseError& e) {
    return report(usage_message(app, e), 2);
  }
  for (size_t i = 0; i < subs.size(); ++i) {
    if (subs[i]->parsed()) return commands[i]();
  }
  fail(ErrorCode::kInvalidArgument,
       "[mamba-cpp] expected one of the commands {}, got none; see --help",
       fmt::join(command_names(app), ", "));
}

// A file that is opened on a closed descriptor 0..2 would receive what is printed.
void fill_standard_descriptors() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) == -1 && ::open("/dev/null", O_RDWR) != fd) return;
  }
}

// GCC's OpenMP spins about 5 ms at every barrier before it sleeps: on a machine that does anything
// else, a small training step took 100 times its time. It reads this variable only while it is
// loaded, so the program starts once more with it. Whoever sets one of these tunes OpenMP by hand;
// and with threads bound, this one already is, and the affinity would be inherited by all.
void limit_spinning(char** argv) {
  for (const char* name :
       {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"}) {
    if (std::getenv(name) != nullptr) return;
  }
  ::setenv("GOMP_SPINCOUNT", "3000", 1);
  ::execv("/proc/self/exe", argv);  // if it fails, go on as it is
}

// Data and weights are mapped: a file that another program cuts short while it is in use ends in
// this signal at the first byte that is gone.
extern "C" void on_bus_error(int) {
  static constexpr char kText[] =
      "error: [file] expected a file to keep its length while it is read, got one that was cut "
      "short; restore it and run again\n";
  const ssize_t written = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  ::_exit(written < 0 ? 70 : 3);
}

int guarded(int argc, char** argv) {
  fill_standard_descriptors();
  std::signal(SIGPIPE, SIG_IGN);  // writes report EPIPE instead
  std::signal(SIGXFSZ, SIG_IGN);  // and EFBIG
  std::signal(SIGBUS, on_bus_error);
  try {
    return run(argc, argv);
  } catch (const OutputClosed&) {
    return 0;
  } catch (const Error& e) {
    return report(e.what(), exit_code(e.code()));
  } catch (const std::bad_alloc&) {
    return report("[memory] expected to get the memory of this run, got none; use smaller sizes",
                  4);
  } catch (const std::exception& e) {
    return report(std::string("[internal] ") + e.what() + "; please report this bug", 70);
  }
}

}  // namespace
}  // namespace mamba::cli

int main(int argc, char** argv) {
  mamba::cli::limit_spinning(argv);
  return mamba::cli::guarded(argc, argv);
}
