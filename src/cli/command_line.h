// SPDX-License-Identifier: Apache-2.0
// The words of the command line before CLI11 takes them: which command they name, which flags are
// given, underscores in flags, and what is no command or flag, with the one that was meant.
#pragma once

#include <CLI/App.hpp>
#include <map>
#include <string>
#include <vector>

namespace mamba::cli {

struct CommandLine {
  CLI::App* app = nullptr;         // the command that the words name, or the root
  std::vector<std::string> words;  // as CLI11 is to see them
  size_t settings_at = 0;          // where flags from elsewhere may be put between the words
  // The options that are given, with the last value of each, "" where there is none.
  std::map<const CLI::Option*, std::string> given;

  bool has(const std::string& flag) const;
  // The value of a flag, or `otherwise` where it is not given.
  std::string value(const std::string& flag, const std::string& otherwise) const;
};

// Throws invalid_argument for unknown commands and flags.
CommandLine read_command_line(CLI::App& root, const std::vector<std::string>& words);

// The flag (or other name of `known`) that a wrong one was meant to be, as " (did you mean
// '--flag'?)", or "".
std::string flag_meant(const std::string& flag, const std::vector<std::string>& known);

}  // namespace mamba::cli
