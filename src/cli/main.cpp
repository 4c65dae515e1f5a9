// SPDX-License-Identifier: Apache-2.0
// mamba-cpp: runs the command that the words name, and turns every error into one line on standard
// error and an exit code (2 usage, 3 input, 4 device or memory, 70 a bug, 130 interrupted).
#include <fcntl.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/json.h"
#include "cli/args.h"
#include "cli/command_line.h"
#include "cli/error_report.h"
#include "cli/help.h"
#include "cli/option_info.h"
#include "cli/parse_errors.h"
#include "cli/program.h"
#include "cli/settings.h"
#include "cli/style.h"
#include "device/device.h"
#include "mamba/error.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

// Whether the caller reads JSON; set as early as it is known.
bool g_json = false;

// One line on standard error, and with --json the same as an object on standard output: alone, or
// as one more line behind lines of JSON. A document that is there already stays the only one.
int report(std::string message, const char* type, int code) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "%s %s\n",
               styled(Style::kError, "error:", is_colored(STDERR_FILENO)).c_str(), message.c_str());
  if (!g_json || written_output() == Written::kText) return code;
  const int indent = written_output() == Written::kNothing ? 2 : -1;
  try {
    write_output(json_text(error_json(message, type, code), indent));
  } catch (const OutputClosed&) {  // the line on standard error has said it
  } catch (const Error&) {
  }
  return code;
}

int report(const Error& error) {
  return report(error.what(), error_code_name(error.code()), exit_code(error.code()));
}

// The words before a "--" that ask for JSON, for errors found while the words are read.
bool asks_for_json(const std::vector<std::string>& words) {
  const auto end = std::find(words.begin(), words.end(), "--");
  return std::find(words.begin(), end, "--json") != end;
}

void list_devices() {
  const std::vector<std::string> names = Device::available();
  if (g_json) return write_output(json_text(nlohmann::ordered_json{{"devices", names}}));
  for (const std::string& name : names) write_output(name + "\n");
}

void take_program_flags(const CLI::App& root, const CommandLine& line) {
  std::string color = line.value("--color", "");
  const auto before_command = line.given.find(root.get_option_no_throw("--color"));
  if (color.empty() && before_command != line.given.end()) color = before_command->second;
  set_color_mode(color_mode_from_name(color.empty() ? "auto" : color));
  g_json = line.has("--json") && line.value("--json", "") != "false";
}

// Parses the words; 0 or 2 when that ends the program, -1 when a command is to run.
int parse(CLI::App& app, const CommandLine& line, const Settings& settings) {
  try {
    std::vector<std::string> last_first(line.words.rbegin(), line.words.rend());
    app.parse(last_first);  // which takes them from the end
  } catch (const CLI::CallForHelp&) {
    write_output(help_text(*line.app, false, STDOUT_FILENO));
    return 0;
  } catch (const CLI::CallForAllHelp&) {
    write_output(help_text(*line.app, true, STDOUT_FILENO));
    return 0;
  } catch (const CLI::CallForVersion&) {
    write_output(std::string("mamba-cpp ") + MAMBA_VERSION + "\n");
    return 0;
  } catch (const CLI::ParseError& e) {
    return report(settings.attributed(usage_message(app, *line.app, e)),
                  error_code_name(ErrorCode::kInvalidArgument), 2);
  }
  return -1;
}

int run(int argc, char** argv) {
  const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  g_json = asks_for_json(words);
  const Program program = make_program();
  CLI::App& app = *program.app;
  CommandLine line = read_command_line(app, words);
  Settings settings;
  try {
    settings.apply(app, &line);
    take_program_flags(app, line);
    if (line.has("--list-devices")) {
      list_devices();
      return 0;
    }
    const int done = parse(app, line, settings);
    if (done >= 0) return done;
    for (const std::string& warning : settings.warnings()) {
      std::fprintf(stderr, "warning: %s\n", warning.c_str());
    }
    const std::vector<CLI::App*> commands = commands_of(app);
    for (size_t i = 0; i < commands.size(); ++i) {
      if (commands[i]->parsed()) return program.runs[i]();
    }
  } catch (const Error& e) {
    throw Error(e.code(), settings.attributed(e.what()));
  }
  // As for any wrong usage: not on standard output, where a result would be expected.
  std::fputs(help_text(app, false, STDERR_FILENO).c_str(), stderr);
  return 2;
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
    return report(e);
  } catch (const std::bad_alloc&) {
    return report({ErrorCode::kOutOfMemory,
                   "[memory] expected to get the memory of this run, got none; use smaller sizes"});
  } catch (const std::exception& e) {
    return report(
        {ErrorCode::kInternal, std::string("[internal] ") + e.what() + "; please report this bug"});
  }
}

}  // namespace
}  // namespace mamba::cli

int main(int argc, char** argv) {
  mamba::cli::limit_spinning(argv);
  return mamba::cli::guarded(argc, argv);
}
