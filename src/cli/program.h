// SPDX-License-Identifier: Apache-2.0
// The whole program as a tree of commands and flags, before any word of the command line.
#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <vector>

#include "cli/commands.h"

namespace mamba::cli {

struct Program {
  std::unique_ptr<CLI::App> app;
  std::vector<CommandRun> runs;  // one for each subcommand of `app`, in order
};

Program make_program();

}  // namespace mamba::cli
