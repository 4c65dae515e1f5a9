// SPDX-License-Identifier: Apache-2.0
// Writes the manual page from the tree of commands.
#include "cli/man.h"

#include <fmt/format.h>

#include "cli/args.h"
#include "cli/help.h"
#include "cli/option_groups.h"
#include "cli/option_info.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

// Text as roff prints it: backslashes and dashes as they are, no request at the start of a line.
std::string roff(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if (c == '\'') {
      out += "\\(aq";
    } else if (c == '|') {
      out += "|\\:";  // where a list of values may be broken
    } else if (c == '~') {
      out += "\\(ti";
    } else {
      out += c;
    }
  }
  return out.starts_with('.') ? "\\&" + out : out;
}

std::string capitals(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

void add_entry(std::string* page, const std::string& title, const std::string& text) {
  *page += ".TP\n.B " + roff(title) + "\n" + roff(text) + "\n";
}

std::string flag_text(const CLI::App& app, const CLI::Option& option) {
  std::string text = option.get_description() + ".";
  if (option.get_required()) {
    text += " Required.";
  } else if (!option.get_default_str().empty() && !is_switch(option)) {
    text += " Default: " + option.get_default_str() + ".";
  }
  const std::vector<std::string> variables = environment_names(app, option);
  return variables.empty() ? text
                           : fmt::format("{} Environment: {}.", text, fmt::join(variables, ", "));
}

void add_command(std::string* page, const CLI::App& app) {
  *page += ".SS " + roff(command_path(app, true)) + "\n";
  *page += roff(app.get_description()) + ".\n.PP\n.nf\n" + roff(usage_line(app)) + "\n.fi\n";
  for (const CLI::Option* option : positionals_of(app)) {
    add_entry(page, option->get_type_name(), option->get_description() + ".");
  }
  for (const FlagGroup& group : groups_of(app)) {
    if (group.name == "Program") continue;  // said once for all commands
    *page += ".PP\n.I " + roff(group.name) + "\n";
    for (const CLI::Option* option : group.flags) {
      std::string title = flag_title(*option, true);
      title.erase(0, title.find('-'));
      add_entry(page, title, flag_text(app, *option));
    }
  }
  for (const Example& e : examples_of(app)) {
    *page += ".PP\n" + roff(e.text) + ":\n.PP\n.nf\n.RS\n" + roff(e.command) + "\n.RE\n.fi\n";
  }
}

constexpr const char* kEnd = R"(.SH OUTPUT
Results go to standard output, everything else to standard error. With
.B \-\-json
a command prints JSON, and an error is also printed as
.RS
.nf
{"error": {"message": "...", "type": "bad_file", "code": 3}}
.fi
.RE
.SH SETTINGS
A flag counts before its variable in the environment, that before the file of
.BR \-\-config ,
that before the default. The variable MAMBA_CPP_THREADS sets
.B \-\-threads
of every command, MAMBA_CPP_TRAIN_THREADS that of
.B train
alone, and before the other. Flags without a value take 1, true, on, enabled or 0, false, off,
disabled. An empty variable is none.
.PP
The file is TOML, INI or, by its name, JSON. Its names are those of the long flags, with dashes or
underscores; what stands before the first section is for every command, a section
.B [train]
or
.B [eval.ppl]
for one of them.
.SH ENVIRONMENT
.TP
.B NO_COLOR
If not empty, no colours, unless
.B \-\-color
asks for them.
.TP
.B OMP_WAIT_POLICY, GOMP_SPINCOUNT, OMP_PROC_BIND
How threads wait and where they run. If none of them is set, waits are kept short.
.SH EXIT STATUS
.TP
.B 0
Success.
.TP
.B 1
The work was done and its result is bad, as with
.BR verify ,
or training diverged.
.TP
.B 2
Wrong usage.
.TP
.B 3
A wrong or missing file, or one that could not be written.
.TP
.B 4
Too little memory, or a device that is not there.
.TP
.B 70
A bug in this program.
.TP
.B 130, 143
Interrupted by Ctrl-C, or ended.
)";

}  // namespace

std::string manual_page(CLI::App& root) {
  std::string page = fmt::format(
      ".TH MAMBA\\-CPP 1 \"\" \"mamba\\-cpp {}\" \"User Commands\"\n.SH NAME\nmamba\\-cpp \\- {}\n"
      ".SH SYNOPSIS\n.B mamba\\-cpp\n.I COMMAND\n.RI [ FLAGS ]\n.SH DESCRIPTION\n{}.\n",
      MAMBA_VERSION, roff(root.get_description()), roff(root.get_description()));
  for (const CommandGroup& group : command_groups(root)) {
    page += ".SH " + roff(capitals(group.name)) + "\n";
    for (const CLI::App* command : group.commands) {
      add_command(&page, *command);
      for (const CLI::App* below : all_commands(const_cast<CLI::App&>(*command))) {
        add_command(&page, *below);
      }
    }
  }
  page += ".SH FLAGS OF EVERY COMMAND\n";
  add_entry(&page, "-h, --help", "The common flags of a command, and examples.");
  add_entry(&page, "--help-all", "Every flag of a command.");
  add_entry(&page, "--config FILE", "Settings, see below.");
  add_entry(&page, "--color auto|always|never", "Colours; auto: on a terminal alone.");
  return page + kEnd;
}

}  // namespace mamba::cli
