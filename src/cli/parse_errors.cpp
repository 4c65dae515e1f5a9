// SPDX-License-Identifier: Apache-2.0
// Messages of CLI11 begin or end with the name of the option; the rest of them is not kept.
#include "cli/parse_errors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/option_info.h"

namespace mamba::cli {
namespace {

std::string required_message(const CLI::App& app, const std::string& name) {
  const std::string command = command_path(app, false);
  if (name == "A") {  // "A subcommand is required"
    return fmt::format("[{}] expected one of the commands {}, got none; {}", command,
                       fmt::join(command_names(app), ", "), see_help(app));
  }
  const CLI::Option* option = app.get_option_no_throw(name);
  const std::string type = option == nullptr ? "" : option->get_type_name();
  return fmt::format("[{}] expected {}, got none; {}", command,
                     name[0] == '-' ? name + " " + type
                     : type.empty() ? name
                                    : type,
                     see_help(app));
}

}  // namespace

std::string usage_message(const CLI::App& root, const CLI::App& app, const CLI::ParseError& error) {
  const std::string what = error.what(), command = command_path(app, false);
  const std::string first = what.substr(0, what.find_first_of(": "));
  const std::string last = what.substr(what.rfind(' ') + 1);
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    if (what.find("At Most 1 ") != std::string::npos) {
      return fmt::format("[{}] expected one value, got {}; give it once", first, last);
    }
    if (what.find("missing") != std::string::npos) {
      return fmt::format("[{}] expected a value, got none; {}", first, see_help(app));
    }
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> extras = root.remaining(true);
    const std::string& got = extras.empty() ? last : extras.front();
    const char* expected = got[0] == '-'                ? "a known flag"
                           : command_names(app).empty() ? "flags"
                                                        : "a command";
    return fmt::format("[{}] expected {}, got '{}'; {}", command, expected, got, see_help(app));
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && last == "required") {
    return required_message(app, first);
  }
  if (dynamic_cast<const CLI::ExcludesError*>(&error) != nullptr) {
    return fmt::format("[{}] expected {} or {}, got both; leave one out", command, first, last);
  }
  if (dynamic_cast<const CLI::RequiresError*>(&error) != nullptr) {
    return fmt::format("[{}] expected {} with it, got none; add it", first, last);
  }
  return fmt::format("[{}] expected other arguments, got: {}; {}", command, what, see_help(app));
}

}  // namespace mamba::cli
