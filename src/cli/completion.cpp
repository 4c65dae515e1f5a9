// SPDX-License-Identifier: Apache-2.0
// Writes the completion scripts from the tree of commands.
#include "cli/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/option_info.h"
#include "formats/hf_config.h"
#include "mamba/chat_template.h"
#include "mamba/evaluate.h"
#include "mamba/quantize.h"

namespace mamba::cli {
namespace {

std::vector<CLI::App*> with_root(CLI::App& root) {
  std::vector<CLI::App*> apps = all_commands(root);
  apps.insert(apps.begin(), &root);
  return apps;
}

// "" for the program itself, "bench model" for a command below another.
std::string path_of(const CLI::App& app) {
  return app.get_parent() == nullptr ? "" : command_path(app, false);
}

// The words that may be a value, also of lists and of positionals whose names stand for them.
std::vector<std::string> proposals_of(const CLI::App& app, const CLI::Option& option) {
  const std::string type = option.get_type_name();
  if (type == "TYPE") return quantize_types();
  if (type == "NAME|TEXT") return ChatTemplate::names();
  if (type == "FILE|PRESET") return list_presets();
  if (type == "COMMAND...") return command_names(*app.get_parent());
  if (type != "NAME,...") return choices_of(option);
  std::vector<std::string> names = task_names();
  names.emplace_back("all");
  return names;
}

// What stands for a value in the generated tables: its words, or how to complete file names.
std::string value_of(const CLI::App& app, const CLI::Option& option) {
  const std::vector<std::string> choices = proposals_of(app, option);
  const ValueKind kind = value_kind(option);
  return fmt::format("{}{}{}", fmt::join(choices, " "), choices.empty() ? "" : " ",
                     kind == ValueKind::kFile     ? "@files"
                     : kind == ValueKind::kFolder ? "@folders"
                                                  : "");
}

std::vector<std::string> all_flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : flags_of(app)) {
    for (std::string& name : flag_names(*option)) names.push_back(std::move(name));
  }
  return names;
}

// One piece of text as a word in single quotes of bash and zsh.
std::string shell_word(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "'\\''" : std::string(1, c);
  return out + "'";
}

// The first line of a description, for the lists of zsh and fish.
std::string short_text(const CLI::Option& option) { return option.get_description(); }

constexpr const char* kBashHead =
    R"(# bash completion of mamba-cpp, written by 'mamba-cpp completion bash'
_mamba_cpp_values() {
  local word words=()
  for word in $1; do
    case $word in
      @files)
        compopt -o filenames
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")
        ;;
      @folders)
        compopt -o filenames
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$cur")
        ;;
      *) words+=("$word") ;;
    esac
  done
  if [ ${#words[@]} -gt 0 ]; then
    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "${words[*]}" -- "$cur")
  fi
}

_mamba_cpp() {
  local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} path="" i
  COMPREPLY=()
  if [ "$cur" = "=" ]; then  # --flag=value comes as three words
    cur=""
  elif [ "$previous" = "=" ]; then
    previous=${COMP_WORDS[COMP_CWORD-2]}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$path ${COMP_WORDS[i]}" in
)";

}  // namespace

std::string bash_completion(CLI::App& root) {
  std::string script = kBashHead;
  for (const CLI::App* app : all_commands(root)) {
    const std::string parent = path_of(*app->get_parent());
    script += fmt::format("      {}) path={} ;;\n", shell_word(parent + " " + app->get_name()),
                          shell_word(path_of(*app)));
  }
  script += "    esac\n  done\n  case \"$path $previous\" in\n";
  for (const CLI::App* app : with_root(root)) {
    for (const CLI::Option* option : flags_of(*app)) {
      if (is_switch(*option)) continue;
      std::vector<std::string> patterns;
      for (const std::string& name : flag_names(*option)) {
        patterns.push_back(shell_word(path_of(*app) + " " + name));
      }
      // Without a value to propose, nothing: the flag still wants one.
      script += fmt::format("    {}) _mamba_cpp_values '{}'; return ;;\n", fmt::join(patterns, "|"),
                            value_of(*app, *option));
    }
  }
  script += "  esac\n  case \"$path\" in\n";
  for (const CLI::App* app : with_root(root)) {
    std::string plain = fmt::format("{}", fmt::join(command_names(*app), " "));
    for (const CLI::Option* option : positionals_of(*app)) {
      plain += (plain.empty() ? "" : " ") + value_of(*app, *option);
    }
    script += fmt::format(
        "    '{}')\n      case $cur in\n        -*) _mamba_cpp_values '{}' ;;\n"
        "        *) _mamba_cpp_values '{}' ;;\n      esac ;;\n",
        path_of(*app), fmt::join(all_flag_names(*app), " "), plain);
  }
  return script + "  esac\n}\ncomplete -F _mamba_cpp mamba-cpp\n";
}

namespace {

// Text within [...] or :...: of a specification of _arguments.
std::string zsh_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string zsh_action(const CLI::App& app, const CLI::Option& option) {
  const std::vector<std::string> choices = proposals_of(app, option);
  if (!choices.empty()) return fmt::format("({})", fmt::join(choices, " "));
  const ValueKind kind = value_kind(option);
  return kind == ValueKind::kFile ? "_files" : kind == ValueKind::kFolder ? "_files -/" : " ";
}

std::string zsh_flag(const CLI::App& app, const CLI::Option& option) {
  const std::vector<std::string> names = flag_names(option);
  std::string text;
  for (const std::string& name : names) {
    std::string spec = takes_many(option) ? "*" : fmt::format("({})", fmt::join(names, " "));
    spec += name;
    if (!is_switch(option) && name.starts_with("--")) spec += "=";
    spec += "[" + zsh_text(short_text(option)) + "]";
    if (!is_switch(option)) {
      spec += fmt::format("{}{}:{}", is_value_optional(option) ? "::" : ":",
                          zsh_text(option.get_type_name()), zsh_action(app, option));
    }
    text += "    " + shell_word(spec) + "\n";
  }
  return text;
}

std::string zsh_function(const CLI::App& app) {
  std::string name = "_mamba_cpp " + path_of(app);
  std::replace(name.begin(), name.end(), ' ', '_');
  if (app.get_parent() == nullptr) name = "_mamba_cpp";
  const std::vector<CLI::App*> commands = commands_of(app);
  std::string text = name +
                     "() {\n  local context state state_descr line\n"
                     "  typeset -A opt_args\n  local -a flags commands\n  flags=(\n";
  for (const CLI::Option* option : flags_of(app)) text += zsh_flag(app, *option);
  if (commands.empty()) {
    for (const CLI::Option* option : positionals_of(app)) {
      text += "    " +
              shell_word(fmt::format("{}:{}:{}", takes_many(*option) ? "*" : "",
                                     zsh_text(option->get_type_name()), zsh_action(app, *option))) +
              "\n";
    }
    return text + "  )\n  _arguments -s -S $flags\n}\n\n";
  }
  text +=
      "  )\n  _arguments -C $flags '1:command:->command' '*::argument:->argument'\n"
      "  case $state in\n    command)\n      commands=(\n";
  for (const CLI::App* command : commands) {
    text += "        " + shell_word(command->get_name() + ":" + command->get_description()) + "\n";
  }
  text += "      )\n      _describe command commands ;;\n    argument)\n      case $line[1] in\n";
  for (const CLI::App* command : commands) {
    text += fmt::format("        {}) {}_{} ;;\n", command->get_name(), name, command->get_name());
  }
  return text + "      esac ;;\n  esac\n}\n\n";
}

}  // namespace

std::string zsh_completion(CLI::App& root) {
  std::string script =
      "#compdef mamba-cpp\n# zsh completion of mamba-cpp, written by 'mamba-cpp completion "
      "zsh'\n\n";
  for (const CLI::App* app : with_root(root)) script += zsh_function(*app);
  return script +
         "if [ \"$funcstack[1]\" = _mamba_cpp ] || [ \"$funcstack[1]\" = _mamba-cpp ]; "
         "then\n  _mamba_cpp \"$@\"\nelse\n  compdef _mamba_cpp mamba-cpp\nfi\n";
}

namespace {

std::string fish_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out + "'";
}

std::string fish_values(const CLI::App& app, const CLI::Option& option) {
  const std::vector<std::string> choices = proposals_of(app, option);
  const ValueKind kind = value_kind(option);
  std::string text;
  if (kind == ValueKind::kFile) text += " -F";
  std::string words = fmt::format("{}", fmt::join(choices, " "));
  if (kind == ValueKind::kFolder) words += " (__fish_complete_directories)";
  if (!words.empty())
    text += " -a " + (kind == ValueKind::kFolder ? "\"" + words + "\"" : fish_quoted(words));
  return text;
}

constexpr const char* kFishHead =
    R"(# fish completion of mamba-cpp, written by 'mamba-cpp completion fish'
function __mamba_cpp_at
    set -l path
    for word in (commandline -opc)[2..-1]
        switch "$path $word"
            case )";

}  // namespace

std::string fish_completion(CLI::App& root) {
  std::vector<std::string> paths;
  for (const CLI::App* app : all_commands(root)) {
    paths.push_back(fish_quoted(path_of(*app->get_parent()) + " " + app->get_name()));
  }
  std::string script = kFishHead;
  script += fmt::format(
      "{}\n                set path (string trim \"$path $word\")\n        end\n    end\n"
      "    test \"$path\" = \"$argv\"\nend\ncomplete -c mamba-cpp -f\n",
      fmt::join(paths, " "));
  for (const CLI::App* app : with_root(root)) {
    const std::string start =
        fmt::format("complete -c mamba-cpp -n {}",
                    fish_quoted(fmt::format("__mamba_cpp_at {}", fish_quoted(path_of(*app)))));
    for (const CLI::App* command : commands_of(*app)) {
      script += fmt::format("{} -a {} -d {}\n", start, command->get_name(),
                            fish_quoted(command->get_description()));
    }
    for (const CLI::Option* option : positionals_of(*app)) {
      const std::string values = fish_values(*app, *option);
      if (!values.empty()) script += start + values + "\n";
    }
    for (const CLI::Option* option : flags_of(*app)) {
      script += start;
      for (const std::string& s : option->get_snames()) script += " -s " + s;
      for (const std::string& l : option->get_lnames()) script += " -l " + l;
      if (!is_switch(*option)) script += " -r" + fish_values(*app, *option);
      script += " -d " + fish_quoted(short_text(*option)) + "\n";
    }
  }
  return script;
}

}  // namespace mamba::cli
