// SPDX-License-Identifier: Apache-2.0
// What help, the manual, shell completion and the environment need to know of a flag or command;
// all of it is read from CLI11's tree of apps, so that a new command needs no more than its flags.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace mamba::cli {

// Subcommands in the order in which they were added.
std::vector<CLI::App*> commands_of(const CLI::App& app);
std::vector<std::string> command_names(const CLI::App& app);
// Every app of the tree that has no subcommands, and those that have, parents first.
std::vector<CLI::App*> all_commands(CLI::App& root);
// "bench model", or "mamba-cpp bench model" with the program.
std::string command_path(const CLI::App& app, bool with_program);
// "see 'mamba-cpp bench model --help'"
std::string see_help(const CLI::App& app);

// Options with a long name, and those without dashes, in the order in which they were added.
std::vector<const CLI::Option*> flags_of(const CLI::App& app);
std::vector<const CLI::Option*> positionals_of(const CLI::App& app);
// "--temp": the name that messages, the environment and files of settings use.
std::string flag_name(const CLI::Option& option);
// All names with their dashes, short ones first.
std::vector<std::string> flag_names(const CLI::Option& option);
// All long names of a command with their dashes.
std::vector<std::string> long_flags(const CLI::App& app);

bool is_switch(const CLI::Option& option);          // takes no value
bool is_value_optional(const CLI::Option& option);  // --resume [PATH]
bool takes_many(const CLI::Option& option);         // several values, or may be repeated

// The words of a type name such as "f32|bf16" or "bytes|DIR" that are values themselves.
std::vector<std::string> choices_of(const CLI::Option& option);
enum class ValueKind { kText, kFile, kFolder };
ValueKind value_kind(const CLI::Option& option);

// Whether a flag can have its value from the environment or a file of settings (--help cannot).
bool is_setting(const CLI::Option& option);
// Whether the flag means the same as in other commands, so that one setting is for all of them:
// --dtype is the type of the weights, but of tokens in 'tokenize' and of a file in 'convert'.
bool is_shared_setting(const CLI::App& app, const CLI::Option& option);
// What a setting of this flag has no use without, as the flags that do, one of each list: what
// CLI11 knows as needed, and --json or --jsonl for --logprobs, of which plain text has no place.
std::vector<std::vector<const CLI::Option*>> needs_of(const CLI::App& app,
                                                      const CLI::Option& option);
// "MAMBA_CPP_GENERATE_TEMP", for one command alone, and then, where it is shared, "MAMBA_CPP_TEMP";
// empty for flags that are no settings.
std::vector<std::string> environment_names(const CLI::App& app, const CLI::Option& option);

}  // namespace mamba::cli
