// SPDX-License-Identifier: Apache-2.0
// Turns environment variables and files of settings into words of the command line, so that every
// value takes the same way and meets the same checks as one that was typed.
#include "cli/settings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/option_info.h"

namespace mamba::cli {
namespace {

std::optional<bool> boolean_of(const std::string& text) {
  for (const char* yes : {"1", "true", "on", "enabled"}) {
    if (text == yes) return true;
  }
  for (const char* no : {"0", "false", "off", "disabled"}) {
    if (text == no) return false;
  }
  return std::nullopt;
}

// The flag that is given and that this one excludes, or null.
const CLI::Option* excluded_by(const CLI::Option& option, const CommandLine& line) {
  for (const CLI::Option* other : option.get_excludes()) {
    if (line.given.contains(other)) return other;
  }
  return nullptr;
}

// A variable has one value, or for a flag that takes several a JSON list of them, in which text may
// hold whatever else could part one from the next.
std::vector<std::string> values_of(const CLI::Option& option, const std::string& value) {
  if (!takes_many(option) || !value.starts_with("[")) return {value};
  const Json json = Json::parse(value, nullptr, false);
  if (!json.is_array() || json.empty()) return {value};  // a pattern like [0-3]*
  std::vector<std::string> values;
  for (const Json& item : json) {
    if (!item.is_string() && !item.is_number()) return {value};
    values.push_back(item.is_string() ? item.get<std::string>() : item.dump());
  }
  return values;
}

// "n" is -n where the command has no --n.
const CLI::Option* flag_of(const CLI::App& app, const std::string& key) {
  std::string name = "--" + key;
  std::replace(name.begin(), name.end(), '_', '-');
  const CLI::Option* option = app.get_option_no_throw(name);
  if (option == nullptr && key.size() == 1) option = app.get_option_no_throw("-" + key);
  return option == nullptr || !is_setting(*option) ? nullptr : option;
}

CLI::App* command_of(CLI::App& root, const std::string& path) {
  for (CLI::App* app : all_commands(root)) {
    if (command_path(*app, false) == path) return app;
  }
  return nullptr;
}

std::vector<std::string> keys_of(const std::vector<CLI::App*>& apps) {
  std::set<std::string> keys;
  for (const CLI::App* app : apps) {
    for (const CLI::Option* option : flags_of(*app)) {
      if (!is_setting(*option)) continue;
      for (const std::string& name : option->get_lnames()) keys.insert(name);
    }
  }
  return {keys.begin(), keys.end()};
}

// A letter may be one flag with a dash and another one with two.
void expect_clear(const CLI::App& app, const Setting& setting) {
  if (setting.key.size() != 1) return;
  const CLI::Option* one = app.get_option_no_throw("-" + setting.key);
  const CLI::Option* two = app.get_option_no_throw("--" + setting.key);
  if (one == nullptr || two == nullptr || one == two) return;
  fail(
      ErrorCode::kInvalidArgument,
      "[{}] expected '{}' (-{}) or '{}' (--{}) of '{}', got '{}', which may mean either; write one "
      "of the two",
      setting.where, one->get_lnames().front(), setting.key, two->get_lnames().back(), setting.key,
      command_path(app, false), setting.key);
}

// A setting may be of another command than the one that runs, but not of none.
void expect_known(CLI::App& root, const Setting& setting) {
  const std::vector<CLI::App*> all = all_commands(root);
  std::vector<CLI::App*> apps = all;
  if (!setting.section.empty()) {
    CLI::App* command = command_of(root, setting.section);
    if (command == nullptr) {
      std::vector<std::string> names;
      for (const CLI::App* app : all) names.push_back(command_path(*app, false));
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected a section of the name of a command, got "
           "'{}'{}; see 'mamba-cpp --help'",
           setting.where, printable(setting.section), did_you_mean(setting.section, names));
    }
    apps = {command};
    expect_clear(*command, setting);
  }
  const bool known = std::any_of(apps.begin(), apps.end(), [&](const CLI::App* app) {
    return flag_of(*app, setting.key) != nullptr;
  });
  if (known) return;
  std::string word = setting.key;
  std::replace(word.begin(), word.end(), '_', '-');
  fail(ErrorCode::kInvalidArgument, "[{}] expected the name of a flag{}, got '{}'{}; see {}",
       setting.where, setting.section.empty() ? "" : " of '" + setting.section + "'",
       printable(setting.key), did_you_mean(word, keys_of(apps)),
       setting.section.empty() ? "'mamba-cpp COMMAND --help-all'"
                               : fmt::format("'mamba-cpp {} --help-all'", setting.section));
}

void expect_once(const std::vector<Setting>& settings) {
  std::set<std::pair<std::string, std::string>> seen;
  for (const Setting& s : settings) {
    if (seen.emplace(s.section, s.key).second) continue;
    fail(ErrorCode::kInvalidArgument, "[{}] expected '{}' once, got it twice; leave one out",
         s.where, printable(s.key));
  }
}

// Whether a flag stands in a text as a word, or as the name of its option ("top_k" for --top-k).
bool mentions(const std::string& text, const std::string& flag) {
  std::string option = flag.substr(2);
  std::replace(option.begin(), option.end(), '-', '_');
  const auto in_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_';
  };
  for (const std::string& word : {flag, option}) {
    if (word == option && option.find('_') == std::string::npos) continue;  // a word of English
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
      const size_t after = at + word.size();
      if ((at == 0 || !in_word(text[at - 1])) && (after == text.size() || !in_word(text[after]))) {
        return true;
      }
    }
  }
  return false;
}

// The setting as it would be typed.
std::vector<std::string> words_of(const CLI::Option& option, const Setting& setting) {
  if (setting.values.size() != 1 && !takes_many(option)) {
    fail(ErrorCode::kInvalidArgument, "[{}] expected one value of '{}', got a list of {}",
         setting.where, printable(setting.key), setting.values.size());
  }
  const std::string flag = flag_name(option);
  std::vector<std::string> words;
  for (const std::string& value : setting.values) {
    const std::optional<bool> truth = boolean_of(value);
    if (is_switch(option) && !truth.has_value()) {
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected one of 1, true, on, enabled, 0, false, off, disabled, got '{}'",
           setting.where, printable(value));
    }
    if (is_switch(option) || (is_value_optional(option) && truth.has_value())) {
      if (*truth) words.push_back(flag);
    } else if (is_value_optional(option)) {
      words.push_back(flag + "=" + value);
    } else {
      words.push_back(flag);
      words.push_back(value);
    }
  }
  return words;
}

// So that what an alias or a script gives can be changed by typing it again. Tests of bench may be
// lists.
void take_last_values(const CLI::App& app) {
  if (command_path(app, false).starts_with("bench")) return;
  for (const CLI::Option* option : flags_of(app)) {
    if (!takes_many(*option)) const_cast<CLI::Option*>(option)->take_last();
  }
}

}  // namespace

void add_program_flags(CLI::App& root) {
  const auto add_color = [](CLI::App& app) {
    app.add_option("--color", "Colours; auto: on a terminal, unless NO_COLOR is set")
        ->type_name("auto|always|never")
        ->default_str("auto")
        ->take_last();
  };
  add_color(root);
  for (CLI::App* app : all_commands(root)) {
    add_color(*app);
    if (app->get_require_subcommand_min() > 0) continue;
    take_last_values(*app);
    app->add_option("--config", "Settings of this command: TOML, INI or JSON by names of flags")
        ->type_name("FILE")
        ->take_last();
  }
}

void Settings::put(CommandLine* line, const CLI::Option* option, const Setting& setting,
                   Place place) {
  if (line->given.contains(option) || settled_.contains(option)) return;
  if (const CLI::Option* other = excluded_by(*option, *line); other != nullptr) {
    const auto same = std::find_if(taken_.begin(), taken_.end(), [&](const Taken& taken) {
      return taken.option == other && taken.place == place;
    });
    if (same == taken_.end() || words_of(*option, setting).empty()) return;
    fail(ErrorCode::kInvalidArgument, "[{}] expected {} or {}, got both ({}); leave one out",
         setting.where, flag_name(*option), flag_name(*other), same->where);
  }
  settled_.insert(option);
  origin_[flag_name(*option)] = setting.where;
  std::vector<std::string> words = words_of(*option, setting);
  if (words.empty()) return;  // a switch that is off: as if it were not there
  line->given[option] = is_switch(*option) ? "" : setting.values.back();
  taken_.push_back({option, place, setting.where, std::move(words)});
}

// A setting is for every run: one that needs a flag which this run does not have is not for it.
void Settings::drop_unneeded(CommandLine* line) {
  const auto missing_of = [&](const Taken& taken) -> std::string {
    for (const std::vector<const CLI::Option*>& some : needs_of(*line->app, *taken.option)) {
      std::vector<std::string> names;
      for (const CLI::Option* other : some) names.push_back(flag_name(*other));
      const bool given = std::any_of(some.begin(), some.end(), [&](const CLI::Option* other) {
        return line->given.contains(other);
      });
      if (!given) return fmt::format("{}", fmt::join(names, " or "));
    }
    return "";
  };
  for (auto at = taken_.begin(); at != taken_.end();) {
    const std::string missing = missing_of(*at);
    if (missing.empty()) {
      ++at;
      continue;
    }
    warnings_.push_back(
        fmt::format("[{}] changes nothing without {}", printable(at->where, 200), missing));
    line->given.erase(at->option);
    origin_.erase(flag_name(*at->option));
    taken_.erase(at);
    at = taken_.begin();  // others may have needed it
  }
}

void Settings::apply_environment(CommandLine* line) {
  for (const Place place : {Place::kOwnVariable, Place::kSharedVariable}) {
    for (const CLI::Option* option : flags_of(*line->app)) {
      const std::vector<std::string> names = environment_names(*line->app, *option);
      const size_t at = place == Place::kOwnVariable ? 0 : 1;
      const char* value = at < names.size() ? std::getenv(names[at].c_str()) : nullptr;
      if (value == nullptr || *value == '\0') continue;
      const std::vector<std::string> values = values_of(*option, value);
      put(line, option, {"", names[at], values, values.size() > 1, names[at]}, place);
    }
  }
}

void Settings::apply_file(CLI::App& root, CommandLine* line, const std::string& path) {
  const std::vector<Setting> settings = read_config_file(path);
  for (const Setting& setting : settings) expect_known(root, setting);
  expect_once(settings);
  const std::string own = command_path(*line->app, false);
  for (const bool in_section : {true, false}) {  // a section counts before what is for all
    for (const Setting& setting : settings) {
      if (setting.section != (in_section ? own : "")) continue;
      expect_clear(*line->app, setting);
      const CLI::Option* option = flag_of(*line->app, setting.key);
      if (option == nullptr || !(in_section || is_shared_setting(*line->app, *option))) continue;
      put(line, option, setting, in_section ? Place::kSection : Place::kWholeFile);
    }
  }
}

void Settings::apply(CLI::App& root, CommandLine* line) {
  apply_environment(line);
  const std::string path = line->value("--config", "");
  if (!path.empty()) apply_file(root, line, path);
  drop_unneeded(line);
  for (const Taken& taken : taken_) {
    line->words.insert(line->words.begin() + static_cast<std::ptrdiff_t>(line->settings_at),
                       taken.words.begin(), taken.words.end());
  }
}

std::string Settings::attributed(const std::string& message) const {
  std::string text = message;
  const size_t end = message.find(']');
  std::string first;
  if (message.starts_with("[--") && end != std::string::npos) first = message.substr(1, end - 1);
  if (const auto found = origin_.find(first); found != origin_.end()) {
    text = "[" + found->second + "]" + message.substr(end + 1);
  }
  for (const auto& [flag, where] : origin_) {
    if (flag != first && mentions(message, flag)) text += fmt::format(" ({}: {})", flag, where);
  }
  return text;
}

}  // namespace mamba::cli
