// SPDX-License-Identifier: Apache-2.0
// The tree of commands as a whole: every flag is described, grouped and has a variable of its own,
// every command has examples, and every example parses; and the files of settings.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "cli/args.h"
#include "cli/bracketed_paste.h"
#include "cli/command_line.h"
#include "cli/config_file.h"
#include "cli/help.h"
#include "cli/option_groups.h"
#include "cli/option_info.h"
#include "cli/program.h"
#include "support/expect_error.h"

namespace mamba::cli {
namespace {

std::vector<CLI::App*> leaves(CLI::App& root) {
  std::vector<CLI::App*> apps = all_commands(root);
  std::erase_if(apps, [](const CLI::App* app) { return !commands_of(*app).empty(); });
  return apps;
}

// The words of an example up to what the shell takes for itself; quotes as in a shell.
std::vector<std::string> shell_words(const std::string& line) {
  std::vector<std::string> words;
  std::string word;
  char quote = 0;
  for (const char c : line + " ") {
    if (quote != 0 ? c == quote : c == '\'' || c == '"') {
      quote = quote == 0 ? c : 0;
    } else if (c == ' ' && quote == 0) {
      if (word == ">" || word == "|" || word == "&&") return words;
      if (!word.empty()) words.push_back(word);
      word.clear();
    } else {
      word += c;
    }
  }
  return words;
}

TEST(CommandTree, EveryFlagIsDescribedAndHasAGroup) {
  const Program program = make_program();
  int flags = 0;
  for (const CLI::App* app : all_commands(*program.app)) {
    for (const CLI::Option* option : flags_of(*app)) {
      const std::string name = command_path(*app, false) + " " + flag_name(*option);
      EXPECT_FALSE(option->get_description().empty()) << name;
      EXPECT_NE(group_of(*app, *option), kOtherFlags)
          << name << ": add it to the table of option_groups.cpp, or give it a group of its own";
      EXPECT_TRUE(is_switch(*option) || !option->get_type_name().empty()) << name;
      ++flags;
    }
  }
  EXPECT_GT(flags, 100);
}

// All that have a result; the rest print text for a person or a shell.
TEST(CommandTree, CommandsPrintJson) {
  const Program program = make_program();
  for (const CLI::App* app : leaves(*program.app)) {
    const std::string name = command_path(*app, false);
    const bool text = name == "help" || name == "completion" || name == "man";
    EXPECT_EQ(app->get_option_no_throw("--json") == nullptr, text) << name;
  }
}

TEST(CommandTree, EveryFlagHasAVariableThatIsItsAlone) {
  const Program program = make_program();
  std::map<std::string, std::string> owner;  // of a variable: the flag that it sets
  for (const CLI::App* app : all_commands(*program.app)) {
    for (const CLI::Option* option : flags_of(*app)) {
      if (flag_name(*option) == "--help" || flag_name(*option) == "--help-all") continue;
      const std::vector<std::string> names = environment_names(*app, *option);
      const std::string flag = flag_name(*option);
      ASSERT_EQ(names.size(), is_shared_setting(*app, *option) ? 2 : 1) << flag;
      const std::string& own = names.front();
      EXPECT_TRUE(owner.emplace(own, command_path(*app, false) + " " + flag).second) << own;
      if (names.size() == 1) continue;
      const auto at = owner.emplace(names.back(), flag).first;
      EXPECT_EQ(at->second, flag) << names.back() << " means two flags";
    }
  }
}

TEST(CommandTree, HelpShowsEveryFlagWithItsVariable) {
  const Program program = make_program();
  for (const CLI::App* app : leaves(*program.app)) {
    const std::string text = help_text(*app, {true, false, 80});
    for (const CLI::Option* option : flags_of(*app)) {
      for (const std::string& name : flag_names(*option)) {
        EXPECT_NE(text.find(name), std::string::npos) << command_path(*app, false) << " " << name;
      }
      const std::vector<std::string> variables = environment_names(*app, *option);
      if (variables.empty()) continue;  // --help
      EXPECT_NE(text.find(variables.back()), std::string::npos) << flag_name(*option);
    }
    EXPECT_NE(text.find("Usage: " + command_path(*app, true)), std::string::npos);
    EXPECT_LE(help_text(*app, {false, false, 80}).size(), text.size());
  }
}

TEST(CommandTree, HelpFitsItsColumns) {
  const Program program = make_program();
  for (const CLI::App* app : leaves(*program.app)) {
    std::string text = help_text(*app, {true, false, 80});
    text = text.substr(0, text.find("\nExamples"));  // which are not broken
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      const std::string line = text.substr(at, end - at);
      const bool title = line.find(", --") != std::string::npos;  // all the names of a flag
      EXPECT_TRUE(title || line.size() <= 80) << line;
      at = end + 1;
    }
  }
}

TEST(CommandTree, EveryCommandHasExamplesThatParse) {
  for (size_t i = 0;; ++i) {
    const Program names = make_program();
    const std::vector<CLI::App*> apps = leaves(*names.app);
    if (i == apps.size()) break;
    const std::vector<Example> examples = examples_of(*apps[i]);
    EXPECT_FALSE(examples.empty()) << command_path(*apps[i], true);
    for (const Example& example : examples) {
      EXPECT_TRUE(example.command.starts_with(command_path(*apps[i], true) + " ") ||
                  example.command.starts_with("mamba-cpp " + apps[i]->get_name()))
          << example.command;
      const Program program = make_program();
      std::vector<std::string> words = shell_words(example.command);
      words.erase(words.begin());
      try {
        const CommandLine line = read_command_line(*program.app, words);
        EXPECT_EQ(command_path(*line.app, true), command_path(*apps[i], true));
        std::vector<std::string> last_first(line.words.rbegin(), line.words.rend());
        program.app->parse(last_first);
      } catch (const std::exception& e) {
        // Settings of a file stand for what is missing.
        if (example.command.find("--config") == std::string::npos) {
          ADD_FAILURE() << example.command << ": " << e.what();
        }
      }
    }
  }
}

TEST(CommandTree, WordsKeepTheirMeaning) {
  const Program program = make_program();
  const CommandLine line =
      read_command_line(*program.app, {"generate", "--max_new_tokens=3", "-p", "--weird_text",
                                       "--temp", "-1", "--", "--not_a_flag"});
  EXPECT_EQ(line.app->get_name(), "generate");
  EXPECT_EQ(line.words,
            (std::vector<std::string>{"generate", "--max-new-tokens=3", "-p", "--weird_text",
                                      "--temp", "-1", "--", "--not_a_flag"}));
  EXPECT_EQ(line.value("--prompt", ""), "--weird_text");
  EXPECT_EQ(line.value("--tokens", ""), "3");
  EXPECT_FALSE(line.has("--seed"));
  EXPECT_TRUE(
      test::fails_with(ErrorCode::kInvalidArgument, {"got '-temp' (did you mean '--temp'?)"}, [&] {
        read_command_line(*program.app, {"generate", "-temp", "1"});
      }));
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"did you mean 'eval'"},
                               [&] { read_command_line(*program.app, {"evla"}); }));
}

TEST(PasteFilter, PartsWhatIsPastedFromWhatIsTyped) {
  const std::string all =
      "a\x1f\033[A\033[200~one\r\ntwo\rthree\t\a\n\n\033[201~b\033[200~\033[201~";
  for (size_t step = 1; step <= all.size(); ++step) {  // wherever the blocks end
    PasteFilter filter;
    std::string typed;
    for (size_t at = 0; at < all.size(); at += step) typed += filter.push(all.substr(at, step));
    EXPECT_EQ(typed,
              "a\033[A\x1f"
              "b\x1f")
        << step;
    EXPECT_EQ(filter.take(), "one\ntwo\nthree\t") << step;
    EXPECT_EQ(filter.take(), "") << step;
    EXPECT_EQ(filter.take(), "") << step;
  }
  PasteFilter cut;
  EXPECT_EQ(cut.push("\033[200~no end"), "");
  EXPECT_EQ(cut.push("\003x"), "\003x");
  EXPECT_EQ(cut.push("\033[200~\xff\033[201~"), "\x1f");
  EXPECT_EQ(cut.take(), "\xEF\xBF\xBD");
}

TEST(ConfigFile, ReadsTomlAndIni) {
  const std::vector<Setting> settings = parse_config_toml(
      "# all commands\r\nthreads = 2  # two\n\n[train]\nlearning-rate = 1e-3\ndtype = bf16\n"
      "data = [\"a # b\", # first\n  'c\\d',\n]\nprompt = \"x \\\"y\\\" \\u00e9\\n\"\n"
      "[eval.ppl]\nwindow=64\n[bench]\nmodel.seconds = 0\n",
      "run.toml");
  ASSERT_EQ(settings.size(), 7U);
  EXPECT_EQ(settings[0].section, "");
  EXPECT_EQ(settings[0].where, "run.toml:2");
  EXPECT_EQ(settings[0].values, std::vector<std::string>{"2"});
  EXPECT_EQ(settings[1].section, "train");
  EXPECT_EQ(settings[2].values, std::vector<std::string>{"bf16"});
  EXPECT_EQ(settings[3].values, (std::vector<std::string>{"a # b", "c\\d"}));
  EXPECT_TRUE(settings[3].is_list);
  EXPECT_EQ(settings[4].values, std::vector<std::string>{"x \"y\" \xc3\xa9\n"});
  EXPECT_EQ(settings[4].where, "run.toml:10");
  EXPECT_EQ(settings[5].section, "eval ppl");
  EXPECT_EQ(settings[6].section, "bench model");
}

TEST(ConfigFile, AnyBeginningOfAFileIsReadOrRefused) {
  const std::string whole =
      "a = \"x \\u00e9 \\\\\"\n[b.c] # d\n e.f = [ 'g', \n 1, #h\n true ]\ni=j k ; l\n";
  for (size_t n = 0; n <= whole.size(); ++n) {
    for (const char end : std::string("\n\\\"[]='#,\0", 10)) {
      const std::string text = whole.substr(0, n) + end;
      try {
        parse_config_toml(text, "f");
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ErrorCode::kBadFile) << e.what() << "\n" << text;
      }
    }
  }
}

TEST(ConfigFile, RefusesWhatItCannotRead) {
  for (const auto& [text, line] : std::map<std::string, std::string>{
           {"a", "f:1"},
           {"\na = ", "f:2"},
           {"a = \"open", "f:1"},
           {"a = \"x\" y", "f:1"},
           {"a = [1, 2", "f:1"},
           {"a = [[1]]", "f:1"},
           {"a = {b = 1}", "f:1"},
           {"[open\na = 1", "f:1"},
           {"[[twice]]", "f:1"},
           {"[]", "f:1"},
           {"a = 1\n= 2", "f:2"},
           {"a = \"\\q\"", "f:1"},
           {"a = \"\\ud800\"", "f:1"},
           {"a = \"\"\"long\"\"\"", "f:1"},
           {"a = [1 2]", "f:1"},
           {"\nb = [3 \"4\"]", "f:2"},
       }) {
    EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {line}, [&text = text] {
      parse_config_toml(text, "f");
    })) << text;
  }
}

}  // namespace
}  // namespace mamba::cli
