// SPDX-License-Identifier: Apache-2.0
// The table of commands and the headings under which the help lists them.
#include "cli/program.h"

// CLI11 splits itself: these define what App refers to.
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <string>

#include "base/check.h"
#include "cli/option_info.h"
#include "cli/settings.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

struct CommandEntry {
  const char* group;
  CommandRun (*add)(CLI::App&);
};

// clang-format off: a line for each command
constexpr CommandEntry kCommands[] = {
    {"Use a model", add_generate},
    {"Use a model", add_chat},
    {"Make a model", add_train},
    {"Make a model", add_convert},
    {"Make a model", add_quantize},
    {"Make a model", add_imatrix},
    {"Look at models", add_eval},
    {"Look at models", add_verify},
    {"Look at models", add_inspect},
    {"Look at models", add_bench},
    {"Tools", add_tune},
    {"Tools", add_tokenize},
    {"Tools", add_tokenizer},
    {"Tools", add_help},
    {"Tools", add_completion},
    {"Tools", add_man},
    {"Tools", add_version},
};
// clang-format on

}  // namespace

Program make_program() {
  Program program;
  program.app = std::make_unique<CLI::App>(
      "Mamba state-space language models: train, generate, evaluate, on the CPU", "mamba-cpp");
  CLI::App& app = *program.app;
  app.set_help_flag("-h,--help", "The common flags, and examples");
  app.set_help_all_flag("--help-all", "Every flag");
  app.set_version_flag("--version", std::string("mamba-cpp ") + MAMBA_VERSION,
                       "The version of this program");
  app.require_subcommand(0, 1);
  for (const CommandEntry& entry : kCommands) {
    program.runs.push_back(entry.add(app));
    const std::vector<CLI::App*> commands = commands_of(app);
    MAMBA_CHECK(commands.size() == program.runs.size());
    commands.back()->group(entry.group);
  }
  add_program_flags(app);
  return program;
}

}  // namespace mamba::cli
