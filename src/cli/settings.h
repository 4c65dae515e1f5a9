// SPDX-License-Identifier: Apache-2.0
// Values of flags that come from elsewhere than the command line: from the environment
// (MAMBA_CPP_TEMP) and from the file of --config. A flag counts first, then the environment, then
// the file.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "cli/config_file.h"

namespace mamba::cli {

// Gives every command the flags that all have: --config and --color.
void add_program_flags(CLI::App& root);

// Where the values of flags come from that were not typed.
class Settings {
 public:
  // Puts what the environment and the file say into the words of `line`, for flags that are not
  // typed, do not exclude a flag that is, and need none that is not. Throws invalid_argument for a
  // wrong boolean, a setting that no command has, or two of one place that exclude each other;
  // bad_file for a broken file.
  void apply(CLI::App& root, CommandLine* line);

  // Of the settings that this run has no use for.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // A message that begins with a flag, "[--temp] expected ...", with the place instead that the
  // value came from: "[MAMBA_CPP_TEMP] expected ..."; places of other flags in it stand behind.
  std::string attributed(const std::string& message) const;

 private:
  void apply_environment(CommandLine* line);
  void apply_file(CLI::App& root, CommandLine* line, const std::string& path);
  void drop_unneeded(CommandLine* line);
  // What comes first counts before the rest.
  enum class Place { kOwnVariable, kSharedVariable, kSection, kWholeFile };
  void put(CommandLine* line, const CLI::Option* option, const Setting& setting, Place place);

  struct Taken {
    const CLI::Option* option;
    Place place;
    std::string where;
    std::vector<std::string> words;
  };
  std::vector<Taken> taken_;
  std::vector<std::string> warnings_;
  std::map<std::string, std::string> origin_;  // of flags by their first long name
  std::set<const CLI::Option*> settled_;       // by a place that counts before the rest
};

}  // namespace mamba::cli
