// SPDX-License-Identifier: Apache-2.0
// The commands of mamba-cpp. Each add_<name> adds its subcommand with its flags to `parent` and
// returns what main calls when that subcommand was chosen; the result is the exit code.
#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace mamba::cli {

using CommandRun = std::function<int()>;

CommandRun add_train(CLI::App& parent);
CommandRun add_generate(CLI::App& parent);
CommandRun add_chat(CLI::App& parent);
CommandRun add_eval(CLI::App& parent);
CommandRun add_verify(CLI::App& parent);
CommandRun add_inspect(CLI::App& parent);
CommandRun add_tokenize(CLI::App& parent);
CommandRun add_tokenizer(CLI::App& parent);
CommandRun add_convert(CLI::App& parent);
CommandRun add_quantize(CLI::App& parent);
CommandRun add_imatrix(CLI::App& parent);
CommandRun add_bench(CLI::App& parent);
CommandRun add_tune(CLI::App& parent);
CommandRun add_help(CLI::App& parent);
CommandRun add_completion(CLI::App& parent);
CommandRun add_man(CLI::App& parent);
CommandRun add_version(CLI::App& parent);

}  // namespace mamba::cli
