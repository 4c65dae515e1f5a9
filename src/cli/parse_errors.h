// SPDX-License-Identifier: Apache-2.0
// What CLI11 finds wrong, in the words of this project.
#pragma once

#include <CLI/App.hpp>
#include <string>

namespace mamba::cli {

// "[--temp] expected a value, got none; see 'mamba-cpp generate --help'"; `app` is the command.
std::string usage_message(const CLI::App& root, const CLI::App& app, const CLI::ParseError& error);

}  // namespace mamba::cli
