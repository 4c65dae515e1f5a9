// SPDX-License-Identifier: Apache-2.0
// mamba-cpp help, completion and man: what the tree of commands says about itself.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/completion.h"
#include "cli/help.h"
#include "cli/man.h"
#include "cli/option_info.h"

namespace mamba::cli {
namespace {

const CLI::App& command_named(const CLI::App& root, const std::vector<std::string>& words) {
  const CLI::App* app = &root;
  for (const std::string& word : words) {
    const std::vector<std::string> names = command_names(*app);
    if (names.empty()) {
      fail(ErrorCode::kInvalidArgument, "[help] expected no more words behind '{}', got '{}'",
           command_path(*app, true), printable(word));
    }
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      fail(ErrorCode::kInvalidArgument, "[help] expected one of the commands {}, got '{}'{}",
           fmt::join(names, ", "), printable(word), did_you_mean(word, names));
    }
    app = app->get_subcommand(word);
  }
  return *app;
}

}  // namespace

CommandRun add_help(CLI::App& parent) {
  struct Flags {
    std::vector<std::string> words;
    bool all = false;
  };
  CLI::App* app = parent.add_subcommand("help", "Show the help of a command");
  auto flags = std::make_shared<Flags>();
  app->add_option("command", flags->words, "Its name, and that of a command below it")
      ->type_name("COMMAND...");
  app->add_flag("--all", flags->all, "Every flag, as --help-all does");
  add_examples(*app, {{"All flags of a command below another", "mamba-cpp help eval ppl --all"}});
  return [flags, root = &parent] {
    std::vector<std::string> words = flags->words;
    if (words == std::vector<std::string>{"perplexity"}) words = {"eval", "ppl"};
    write_output(help_text(command_named(*root, words), flags->all, STDOUT_FILENO));
    return 0;
  };
}

CommandRun add_completion(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("completion", "Print completions for a shell");
  auto shell = std::make_shared<std::string>();
  add_choice(*app, "shell", shell.get(), {"bash", "zsh", "fish"}, "Shell that will read them")
      ->required();
  add_examples(*app, {{"For this bash alone",
                       "mamba-cpp completion bash > completion.bash && "
                       ". ./completion.bash"},
                      {"For every fish to come",
                       "mamba-cpp completion fish > ~/.config/fish/completions/mamba-cpp.fish"}});
  return [shell, root = &parent] {
    write_output(*shell == "bash"  ? bash_completion(*root)
                 : *shell == "zsh" ? zsh_completion(*root)
                                   : fish_completion(*root));
    return 0;
  };
}

CommandRun add_man(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("man", "Print the manual page");
  add_examples(*app, {{"Read it", "mamba-cpp man > mamba-cpp.1 && man ./mamba-cpp.1"}});
  return [root = &parent] {
    write_output(manual_page(*root));
    return 0;
  };
}

}  // namespace mamba::cli
