// SPDX-License-Identifier: Apache-2.0
// Reads CLI11's tree of apps.
#include "cli/option_info.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace mamba::cli {
namespace {

// "bench model" + "--seq-len" -> "BENCH_MODEL_SEQ_LEN"
std::string upper_snake(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool word = std::isalnum(static_cast<unsigned char>(c)) != 0;
    out += word ? static_cast<char>(std::toupper(static_cast<unsigned char>(c))) : '_';
  }
  return out.substr(std::min(out.find_first_not_of('_'), out.size()));
}

// "FILE|DIR..." -> FILE, DIR
std::vector<std::string> type_words(const CLI::Option& option) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : option.get_type_name() + "|") {
    if (c == '|') {
      words.push_back(word);
      word.clear();
    } else if (c != '.' && c != '[' && c != ']') {
      word += c;
    }
  }
  return words;
}

bool is_value(const std::string& word) {
  return !word.empty() && std::none_of(word.begin(), word.end(), [](unsigned char c) {
    return std::isupper(c) != 0 || c == ',';
  });
}

}  // namespace

std::vector<CLI::App*> commands_of(const CLI::App& app) {
  std::vector<CLI::App*> apps;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    apps.push_back(const_cast<CLI::App*>(sub));
  }
  return apps;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : commands_of(app)) names.push_back(sub->get_name());
  return names;
}

std::vector<CLI::App*> all_commands(CLI::App& root) {
  std::vector<CLI::App*> all;
  for (CLI::App* app : commands_of(root)) {
    all.push_back(app);
    for (CLI::App* below : all_commands(*app)) all.push_back(below);
  }
  return all;
}

std::string command_path(const CLI::App& app, bool with_program) {
  std::string path = app.get_name();
  for (const CLI::App* a = app.get_parent(); a != nullptr; a = a->get_parent()) {
    if (with_program || a->get_parent() != nullptr) path = a->get_name() + " " + path;
  }
  return path;
}

std::string see_help(const CLI::App& app) {
  return fmt::format("see '{} --help'", command_path(app, true));
}

std::vector<const CLI::Option*> flags_of(const CLI::App& app) {
  return app.get_options([](const CLI::Option* o) { return !o->get_lnames().empty(); });
}

std::vector<const CLI::Option*> positionals_of(const CLI::App& app) {
  return app.get_options([](const CLI::Option* o) { return o->get_positional(); });
}

std::string flag_name(const CLI::Option& option) {
  return option.get_lnames().empty() ? option.get_name() : "--" + option.get_lnames().front();
}

std::vector<std::string> flag_names(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& s : option.get_snames()) names.push_back("-" + s);
  for (const std::string& l : option.get_lnames()) names.push_back("--" + l);
  return names;
}

std::vector<std::string> long_flags(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : flags_of(app)) {
    for (const std::string& l : option->get_lnames()) names.push_back("--" + l);
  }
  return names;
}

bool is_switch(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

bool is_value_optional(const CLI::Option& option) {
  return !is_switch(option) && option.get_expected_min() == 0;
}

bool takes_many(const CLI::Option& option) { return option.get_items_expected_max() > 1; }

std::vector<std::string> choices_of(const CLI::Option& option) {
  std::vector<std::string> choices;
  for (const std::string& word : type_words(option)) {
    if (is_value(word)) choices.push_back(word);
  }
  return choices;
}

ValueKind value_kind(const CLI::Option& option) {
  ValueKind kind = ValueKind::kText;
  for (const std::string& word : type_words(option)) {
    for (const char* file : {"FILE", "PATH", "IN", "OUT", "BASE"}) {
      if (word == file) return ValueKind::kFile;  // files and folders
    }
    if (word == "DIR" || word == "FOLDER" || word == "MODEL") kind = ValueKind::kFolder;
  }
  return kind;
}

bool is_setting(const CLI::Option& option) {
  const std::string name = flag_name(option);
  return !option.get_lnames().empty() && name != "--help" && name != "--help-all" &&
         name != "--version";
}

bool is_shared_setting(const CLI::App& app, const CLI::Option& option) {
  const std::string command = command_path(app, false);
  return flag_name(option) != "--dtype" || (command != "tokenize" && command != "convert");
}

std::vector<std::vector<const CLI::Option*>> needs_of(const CLI::App& app,
                                                      const CLI::Option& option) {
  std::vector<std::vector<const CLI::Option*>> needs;
  for (const CLI::Option* other : option.get_needs()) needs.push_back({other});
  if (flag_name(option) == "--logprobs" && command_path(app, false) == "generate") {
    needs.push_back({app.get_option("--json"), app.get_option("--jsonl")});
  }
  return needs;
}

std::vector<std::string> environment_names(const CLI::App& app, const CLI::Option& option) {
  if (!is_setting(option)) return {};
  std::vector<std::string> names = {
      "MAMBA_CPP_" + upper_snake(command_path(app, false) + " " + option.get_lnames().front())};
  if (is_shared_setting(app, option))
    names.push_back("MAMBA_CPP_" + upper_snake(flag_name(option)));
  return names;
}

}  // namespace mamba::cli
