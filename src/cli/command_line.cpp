// SPDX-License-Identifier: Apache-2.0
// Walks the words as CLI11 will. CLI11 reports what it does not know last and without a suggestion:
// here it is said first, and more of it.
#include "cli/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/foreign_flags.h"
#include "cli/option_info.h"

namespace mamba::cli {
namespace {

// people of transformers type --max_new_tokens
std::string with_dashes(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// Flags of llama.cpp with one dash and more letters, and the long ones that they stand for.
constexpr std::pair<const char*, const char*> kShortNames[] = {
    {"-ngl", "--gpu-layers"},  {"-ub", "--ubatch-size"},   {"-np", "--parallel"},
    {"-dev", "--device"},      {"-cb", "--cont-batching"}, {"-pg", "--pg"},
    {"-npl", "--batch-sizes"}, {"-oe", "--output-err"},
};

// Flags of other programs that have no flag here in their place, and why.
constexpr std::pair<const char*, const char*> kNotNeeded[] = {
    {"--do-sample", ": tokens are drawn anyway, and --temp 0 takes the most likely"},
    {"-fa", ": these models have no attention, so leave it out"},
    {"--flash-attn", ": these models have no attention, so leave it out"},
};

// "5", "-0.5", "+1": what may stand right behind the letter of a flag.
bool begins_number(const std::string& text) {
  const size_t digit = text.find_first_not_of("+-.");
  return digit != std::string::npos && text[digit] >= '0' && text[digit] <= '9';
}

class WordReader {
 public:
  WordReader(CLI::App& root, const std::vector<std::string>& words) : words_(words) {
    line_.app = &root;
  }

  CommandLine read() && {
    for (; at_ < words_.size(); ++at_) {
      const std::string& word = words_[at_];
      if (word == "--") {
        line_.words.insert(line_.words.end(), words_.begin() + static_cast<std::ptrdiff_t>(at_),
                           words_.end());
        break;
      }
      if (word.size() > 2 && word.starts_with("--")) {
        read_long(word);
      } else if (word.size() > 1 && word[0] == '-' && !is_number(word)) {
        read_short(word);
      } else {
        read_plain(word);
      }
    }
    return std::move(line_);
  }

 private:
  // "-5" is a value, unless a command has a flag -5.
  bool is_number(const std::string& word) const {
    const bool digit = (word[1] >= '0' && word[1] <= '9') || word[1] == '.';
    return digit && line_.app->get_option_no_throw(word.substr(0, 2)) == nullptr;
  }

  void read_plain(const std::string& word) {
    if (line_.app->get_parent() == nullptr && word == "perplexity") {  // llama.cpp's name of it
      read_plain("eval");
      return read_plain("ppl");
    }
    line_.words.push_back(word);
    const std::vector<std::string> names = command_names(*line_.app);
    if (word.empty() || names.empty()) return;
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      fail(ErrorCode::kInvalidArgument, "[{}] expected one of the commands {}, got '{}'{}",
           command_path(*line_.app, false), fmt::join(names, ", "), word,
           did_you_mean(word, names));
    }
    line_.app = line_.app->get_subcommand(word);
    line_.settings_at = line_.words.size();
  }

  void read_long(const std::string& word) {
    const size_t equals = std::min(word.find('='), word.size());
    std::string name = word.substr(0, equals);
    const CLI::Option* option = line_.app->get_option_no_throw(name);
    if (option == nullptr) {
      name = with_dashes(name);
      option = line_.app->get_option_no_throw(name);
    }
    if (option == nullptr && take_foreign(word)) return;
    if (option == nullptr) refuse(word.substr(0, equals));
    line_.words.push_back(name + word.substr(equals));
    if (equals + 1 < word.size()) {
      line_.given[option] = word.substr(equals + 1);
    } else {
      read_value(*option);
    }
  }

  // "-n 5", "-n=5", "-n5", "-ngl 5" and "-ngl5". A value of letters must stand alone: "-temp 1"
  // would be -t with the value "emp", "-nx" is a flag of another program.
  void read_short(const std::string& word) {
    if (take_foreign(word)) return;
    const size_t equals = std::min(word.find('='), word.size());
    const std::string name = word.substr(0, equals);
    for (const auto& [known, long_name] : kShortNames) {
      const CLI::Option* option = line_.app->get_option_no_throw(long_name);
      if (option == nullptr || !name.starts_with(known)) continue;
      const std::string rest = name.substr(std::string(known).size());
      if (rest.empty()) return read_long(long_name + word.substr(equals));
      if (is_switch(*option) || !begins_number(rest)) continue;
      return read_long(long_name + ("=" + word.substr(std::string(known).size())));
    }
    const CLI::Option* option = line_.app->get_option_no_throw(word.substr(0, 2));
    if (option == nullptr) refuse(word);
    if (word.size() == 2) {
      line_.words.push_back(word);
      return read_value(*option);
    }
    const bool with_equals = equals == 2 && !is_switch(*option);
    if (!with_equals && (is_switch(*option) || !begins_number(word.substr(2)))) refuse(word);
    const std::string value = word.substr(with_equals ? 3 : 2);
    line_.words.insert(line_.words.end(), {word.substr(0, 2), value});
    line_.given[option] = value;
  }

  // A flag of llama.cpp that means nothing here: gone with its value where that asks for nothing.
  bool take_foreign(const std::string& word) {
    const std::string command = command_path(*line_.app, false);
    const size_t equals = std::min(word.find('='), word.size());
    const std::string name = with_dashes(word.substr(0, equals));
    const ForeignFlag* flag = foreign_flag(command, name);
    if (flag == nullptr) return false;
    std::string value = equals < word.size() ? word.substr(equals + 1) : "";
    const bool next = flag->takes_value && equals == word.size() && at_ + 1 < words_.size();
    if (next && !is_flag(words_[at_ + 1])) value = words_[++at_];
    expect_harmless(*flag, command, name, value);
    return true;
  }

  // The value that must follow is none of our business, whatever it looks like; but a flag is no
  // number.
  void read_value(const CLI::Option& option) {
    std::string& value = line_.given[&option];
    if (is_switch(option) || is_value_optional(option) || at_ + 1 >= words_.size()) return;
    value = words_[++at_];
    const std::string type = option.get_type_name();
    if ((type == "N" || type == "X") && is_flag(value)) {
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected a number, got the flag '{}' behind '{}'; give {} its number or leave it "
           "out",
           flag_name(option), printable(value), printable(words_[at_ - 1]), flag_name(option));
    }
    line_.words.push_back(value);
  }

  // Whether a word is a flag of the command, be it with a value: "--temp=1", "-n5", "-ngl".
  bool is_flag(const std::string& word) const {
    if (word.size() < 2 || word[0] != '-' || is_number(word)) return false;
    const std::string name = word.substr(0, word.find('='));
    if (name.starts_with("--")) {
      return line_.app->get_option_no_throw(name) != nullptr ||
             line_.app->get_option_no_throw(with_dashes(name)) != nullptr;
    }
    const bool short_name = line_.app->get_option_no_throw(name.substr(0, 2)) != nullptr;
    if (short_name && (name.size() == 2 || begins_number(name.substr(2)))) return true;
    return std::any_of(std::begin(kShortNames), std::end(kShortNames), [&](const auto& entry) {
      return name.starts_with(entry.first) &&
             line_.app->get_option_no_throw(entry.second) != nullptr;
    });
  }

  // For a flag that other commands have: what these are.
  std::string flag_of_others(const std::string& flag) const {
    const CLI::App* root = line_.app;
    while (root->get_parent() != nullptr) root = root->get_parent();
    std::vector<std::string> others;
    for (const CLI::App* app : commands_of(*root)) {
      if (app->get_option_no_throw(flag) != nullptr) others.push_back("'" + app->get_name() + "'");
    }
    if (others.empty()) return "";
    const std::string of = fmt::format(", a flag of {}", fmt::join(others, ", "));
    const bool talks = std::find(others.begin(), others.end(), "'chat'") != others.end();
    if (line_.app->get_name() != "generate" || !talks) return of;
    return of +
           "; for an answer in a conversation use 'mamba-cpp chat', to which a message may be "
           "piped";
  }

  [[noreturn]] void refuse(const std::string& flag) const {
    for (const auto& [name, why] : kNotNeeded) {
      if (with_dashes(flag.substr(0, flag.find('='))) != name) continue;
      fail(ErrorCode::kInvalidArgument, "[{}] expected a known flag, got '{}'{}; {}",
           command_path(*line_.app, false), flag, why, see_help(*line_.app));
    }
    std::string meant = flag.starts_with("--") ? flag : "-" + flag.substr(0, flag.find('='));
    for (const auto& [known, long_name] : kShortNames) {
      if (flag == known) meant = long_name;
    }
    const std::string name = with_dashes(meant.substr(0, meant.find('=')));
    std::string hint = flag.starts_with("--") ? flag_of_others(name) : "";
    if (hint.empty() || hint.find("'chat'") == std::string::npos) {
      const std::string near =
          flag.size() > 2 ? flag_meant(with_dashes(meant), long_flags(*line_.app)) : "";
      if (!near.empty()) hint = near;
    }
    fail(ErrorCode::kInvalidArgument, "[{}] expected a known flag, got '{}'{}; {}",
         command_path(*line_.app, false), flag, hint, see_help(*line_.app));
  }

  const std::vector<std::string>& words_;
  size_t at_ = 0;
  CommandLine line_;
};

}  // namespace

bool CommandLine::has(const std::string& flag) const {
  const CLI::Option* option = app->get_option_no_throw(flag);
  return option != nullptr && given.contains(option);
}

std::string CommandLine::value(const std::string& flag, const std::string& otherwise) const {
  return has(flag) ? given.at(app->get_option_no_throw(flag)) : otherwise;
}

// The beginning of a longer flag is more likely meant than another flag of similar letters.
std::string flag_meant(const std::string& flag, const std::vector<std::string>& known) {
  std::string best;
  for (const std::string& k : known) {
    if (flag.size() > 2 && k.starts_with(flag) && (best.empty() || k.size() < best.size())) {
      best = k;
    }
  }
  if (best.empty()) {  // dashes are no likeness
    const auto letters = [](const std::string& name) {
      return name.substr(std::min(name.find_first_not_of('-'), name.size()));
    };
    std::vector<std::string> names;
    for (const std::string& k : known) names.push_back(letters(k));
    const std::string near = closest(letters(flag), names);
    const auto at = std::find(names.begin(), names.end(), near);
    if (!near.empty()) best = known[static_cast<size_t>(at - names.begin())];
  }
  return best.empty() ? "" : fmt::format(" (did you mean '{}'?)", best);
}

CommandLine read_command_line(CLI::App& root, const std::vector<std::string>& words) {
  return WordReader(root, words).read();
}

}  // namespace mamba::cli
