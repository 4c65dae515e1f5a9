// SPDX-License-Identifier: Apache-2.0
// Writes help from the tree of commands: flags in groups with defaults and environment variables,
// examples, and where more is to be found.
#include "cli/help.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "cli/args.h"
#include "cli/option_groups.h"
#include "cli/option_info.h"
#include "cli/style.h"

namespace mamba::cli {
namespace {

constexpr size_t kTitleWidth = 26;  // a longer title has a line of its own

// Words at most so wide; a list without blanks is broken behind its commas.
std::vector<std::string> words_of(const std::string& text, size_t width) {
  std::vector<std::string> pieces;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    while (word.size() > width) {
      const size_t comma = word.rfind(',', width - 1);
      if (comma == std::string::npos) break;
      pieces.push_back(word.substr(0, comma + 1));
      word.erase(0, comma + 1);
    }
    pieces.push_back(word);
  }
  return pieces;
}

class HelpWriter {
 public:
  explicit HelpWriter(const HelpOptions& options) : options_(options) {}

  std::string text() && { return std::move(text_); }
  void line(const std::string& text) { text_ += text + "\n"; }
  void heading(const std::string& text) {
    line("\n" + styled(Style::kHeading, text, options_.colored));
  }

  // Words into lines, the first of which begins behind `title`; `faint` comes last, in one piece.
  void entry(const std::string& title, const std::string& text, const std::string& faint) {
    const std::string margin(kTitleWidth + 2, ' ');
    std::string row = "  " + title;
    if (title.size() + 4 > margin.size()) {
      line(row);
      row = margin;
    }
    row.resize(margin.size(), ' ');
    size_t used = row.size();
    const auto add = [&](const std::string& word, bool is_faint) {
      const size_t space = used == margin.size() ? 0 : 1;
      if (space == 1 && used + 1 + word.size() > static_cast<size_t>(options_.columns)) {
        line(row);
        row = margin;
        used = row.size();
      } else if (space == 1) {
        row += " ";
        ++used;
      }
      row += is_faint ? styled(Style::kFaint, word, options_.colored) : word;
      used += word.size();
    };
    for (const std::string& word :
         words_of(text, static_cast<size_t>(options_.columns) - margin.size())) {
      add(word, false);
    }
    if (!faint.empty()) add(faint, true);
    line(row);
  }

  // Lines behind the first begin with a margin where the text is one line of a command.
  void paragraph(const std::string& text, const std::string& margin = "") {
    std::string row;
    for (const std::string& word : words_of(text, static_cast<size_t>(options_.columns))) {
      if (!row.empty() && row.size() + 1 + word.size() > static_cast<size_t>(options_.columns)) {
        line(row);
        row = margin;
      }
      row += (row.empty() || row == margin ? "" : " ") + word;
    }
    line(row);
  }

 private:
  const HelpOptions& options_;
  std::string text_;
};

// True for a command that does something without one of the commands below it.
bool has_own_work(const CLI::App& app) {
  return app.get_parent() != nullptr && app.get_require_subcommand_min() == 0;
}

std::string description_of(const CLI::Option& option) {
  std::string text = option.get_description();
  const std::string value = option.get_default_str();
  const bool said = text.find("if not given") != std::string::npos;
  if (option.get_required()) {
    text += " (required)";
  } else if (!value.empty() && !said && !is_switch(option)) {
    text += fmt::format(" (default {})", value);
  }
  return text;
}

std::string bracketed_environment(const CLI::App& app, const CLI::Option& option) {
  const std::vector<std::string> names = environment_names(app, option);
  return names.empty() ? "" : "[" + names.back() + "]";
}

void write_commands(HelpWriter& out, const CLI::App& app) {
  for (const CommandGroup& group : command_groups(app)) {
    out.heading(group.name);
    for (const CLI::App* command : group.commands) {
      out.entry(command->get_name(), command->get_description(), "");
    }
  }
}

void write_flags(HelpWriter& out, const CLI::App& app, bool all) {
  for (const FlagGroup& group : groups_of(app)) {
    std::vector<const CLI::Option*> shown = group.flags;
    if (!all) std::erase_if(shown, [&](const CLI::Option* o) { return is_rare(app, *o); });
    if (shown.empty()) continue;
    out.heading(group.name);
    for (const CLI::Option* option : shown) {
      out.entry(flag_title(*option, all), description_of(*option),
                bracketed_environment(app, *option));
    }
  }
}

bool has_rare_flags(const CLI::App& app) {
  const std::vector<const CLI::Option*> flags = flags_of(app);
  return std::any_of(flags.begin(), flags.end(),
                     [&](const CLI::Option* o) { return is_rare(app, *o); });
}

void write_end(HelpWriter& out, const CLI::App& app, bool all) {
  if (!commands_of(app).empty()) {
    out.line(fmt::format("\n'{} COMMAND --help' shows the flags of a command.",
                         command_path(app, true)));
    if (!has_own_work(app)) return;
  }
  out.line("");
  if (!all && has_rare_flags(app)) {
    out.paragraph(fmt::format("'{} --help-all' shows every flag.", command_path(app, true)));
  }
  if (all) {
    const CLI::Option* config = app.get_option_no_throw("--config");
    if (config == nullptr) return;
    std::string own = environment_names(app, *config).front();
    own.resize(own.size() - std::string("CONFIG").size());
    out.paragraph(fmt::format(
        "A flag counts before its variable in the environment, and that before the --config file. "
        "MAMBA_CPP_... is read by every command that has the flag; {}... by this one alone, and "
        "first.",
        own));
  }
}

}  // namespace

std::string usage_line(const CLI::App& app) {
  std::string line = command_path(app, true);
  if (!commands_of(app).empty()) {
    return line + (has_own_work(app) ? " [COMMAND] [FLAGS]" : " COMMAND [FLAGS]");
  }
  for (const CLI::Option* option : flags_of(app)) {
    if (option->get_required()) line += " " + flag_name(*option) + " " + option->get_type_name();
  }
  line += " [FLAGS]";
  for (const CLI::Option* option : positionals_of(app)) {
    const std::string& name = option->get_type_name();
    line += option->get_required() ? " " + name : " [" + name + "]";
  }
  return line;
}

std::string flag_title(const CLI::Option& option, bool all_names) {
  const std::vector<std::string>& shorts = option.get_snames();
  std::string title = shorts.empty() ? "    " : "-" + shorts.front() + ", ";
  title += flag_name(option);
  if (all_names) {
    for (size_t i = 1; i < shorts.size(); ++i) title += ", -" + shorts[i];
    for (size_t i = 1; i < option.get_lnames().size(); ++i) {
      title += ", --" + option.get_lnames()[i];
    }
  }
  return is_switch(option) ? title : title + " " + option.get_type_name();
}

std::vector<CommandGroup> command_groups(const CLI::App& app) {
  std::vector<CommandGroup> groups;
  for (const CLI::App* command : commands_of(app)) {
    const std::string group =
        command->get_group() == "Subcommands" ? "Commands" : command->get_group();
    auto at = std::find_if(groups.begin(), groups.end(),
                           [&](const CommandGroup& g) { return g.name == group; });
    if (at == groups.end()) at = groups.insert(groups.end(), {group, {}});
    at->commands.push_back(command);
  }
  return groups;
}

std::string help_text(const CLI::App& app, const HelpOptions& options) {
  HelpWriter out(options);
  out.paragraph("Usage: " + usage_line(app), "    ");
  out.line("");
  out.paragraph(app.get_description() + ".");
  write_commands(out, app);
  const std::vector<const CLI::Option*> positionals = positionals_of(app);
  if (!positionals.empty()) out.heading("Arguments");
  for (const CLI::Option* option : positionals) {
    out.entry(option->get_type_name(), option->get_description(), "");
  }
  write_flags(out, app, options.all);
  const std::vector<Example> examples = examples_of(app);
  if (!examples.empty()) out.heading("Examples");
  for (const Example& e : examples) out.line(fmt::format("  # {}\n  {}", e.text, e.command));
  write_end(out, app, options.all);
  return std::move(out).text();
}

std::string help_text(const CLI::App& app, bool all, int descriptor) {
  return help_text(app, {all, is_colored(descriptor), text_columns(descriptor)});
}

}  // namespace mamba::cli
