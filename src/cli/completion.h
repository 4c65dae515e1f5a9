// SPDX-License-Identifier: Apache-2.0
// Completion scripts for shells: commands, flags, values of choices, names of files and folders.
#pragma once

#include <CLI/App.hpp>
#include <string>

namespace mamba::cli {

std::string bash_completion(CLI::App& root);
std::string zsh_completion(CLI::App& root);
std::string fish_completion(CLI::App& root);

}  // namespace mamba::cli
