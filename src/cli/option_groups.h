// SPDX-License-Identifier: Apache-2.0
// The headings of the help: under which a flag stands and which flags the short help leaves out.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace mamba::cli {

// Where a flag lands that neither its command nor the table has placed; a test finds these.
inline constexpr const char* kOtherFlags = "Other flags";

struct FlagGroup {
  std::string name;
  std::vector<const CLI::Option*> flags;
};

std::string group_of(const CLI::App& app, const CLI::Option& option);
// Shown by --help-all, not by --help.
bool is_rare(const CLI::App& app, const CLI::Option& option);
// The flags of a command under their headings, in the order of the help.
std::vector<FlagGroup> groups_of(const CLI::App& app);

}  // namespace mamba::cli
