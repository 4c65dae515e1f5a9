// SPDX-License-Identifier: Apache-2.0
// The manual page mamba-cpp(1).
#pragma once

#include <CLI/App.hpp>
#include <string>

namespace mamba::cli {

// In roff with the macros of man(7).
std::string manual_page(CLI::App& root);

}  // namespace mamba::cli
