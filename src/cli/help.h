// SPDX-License-Identifier: Apache-2.0
// The text of --help and --help-all.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace mamba::cli {

struct HelpOptions {
  bool all = false;  // rare flags and every name of a flag
  bool colored = false;
  int columns = 80;
};

std::string help_text(const CLI::App& app, const HelpOptions& options);
// As this process would print it to this descriptor.
std::string help_text(const CLI::App& app, bool all, int descriptor);

// "mamba-cpp verify [FLAGS] MODEL GOLDEN"
std::string usage_line(const CLI::App& app);
// "-m, --model FOLDER": how help and manual write a flag; with all its names or the first ones.
std::string flag_title(const CLI::Option& option, bool all_names);
// The commands of a parent under their headings, in the order in which the headings first appear.
struct CommandGroup {
  std::string name;
  std::vector<const CLI::App*> commands;
};
std::vector<CommandGroup> command_groups(const CLI::App& app);

}  // namespace mamba::cli
