// SPDX-License-Identifier: Apache-2.0
// Walks the words as CLI11 will. CLI11 reports what it does not know last and without a suggestion:
// here it is said first, and more of it.
#include "cli/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/check.h"
#include "cli/args.h"
#include "cli/option_info.h"

namespace mamba::cli {
namespace {

// people of transformers type --max_new_tokens
std::string with_dashes(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// Flags of two or more letters behind one dash that people of llama.cpp type.
bool is_long_with_one_dash(const std::string& word) {
  const std::string name = word.substr(0, word.find('='));
  return name == "-pg" || name == "-ub" || name == "-npl";
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
      } else if (is_long_with_one_dash(word) && has_long("-" + word)) {
        read_long("-" + word);
      } else if (word.size() > 1 && word[0] == '-' && !is_number(word)) {
        read_short(word);
      } else {
        read_plain(word);
      }
    }
    return std::move(line_);
  }

 private:
  bool has_long(const std::string& word) const {
    return line_.app->get_option_no_throw(word.substr(0, word.find('='))) != nullptr;
  }

  // "-5" is a value, unless a command has a flag -5.
  bool is_number(const std::string& word) const {
    const bool digit = (word[1] >= '0' && word[1] <= '9') || word[1] == '.';
    return digit && line_.app->get_option_no_throw(word.substr(0, 2)) == nullptr;
  }

  void read_plain(const std::string& word) {
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
    if (option == nullptr) refuse(word.substr(0, equals));
    line_.words.push_back(name + word.substr(equals));
    if (equals + 1 < word.size()) {
      line_.given[option] = word.substr(equals + 1);
    } else {
      read_value(*option);
    }
  }

  // "-n 5", "-n5"; "-temp 1" would be -t with the value "emp": the long flag is meant.
  void read_short(const std::string& word) {
    const CLI::Option* option = line_.app->get_option_no_throw(word.substr(0, 2));
    const std::string name = with_dashes("-" + word.substr(0, word.find('=')));
    const bool is_long = word.size() > 2 && line_.app->get_option_no_throw(name) != nullptr;
    if (option == nullptr || is_long) refuse(word);
    line_.words.push_back(word);
    if (word.size() > 2) {
      line_.given[option] = is_switch(*option) ? "" : word.substr(2);
    } else {
      read_value(*option);
    }
  }

  // The value that must follow is none of our business, whatever it looks like.
  void read_value(const CLI::Option& option) {
    std::string& value = line_.given[&option];
    if (is_switch(option) || is_value_optional(option) || at_ + 1 >= words_.size()) return;
    value = words_[++at_];
    line_.words.push_back(value);
  }

  [[noreturn]] void refuse(const std::string& flag) const {
    const std::string meant = flag.starts_with("--") ? flag : "-" + flag.substr(0, flag.find('='));
    fail(ErrorCode::kInvalidArgument, "[{}] expected a known flag, got '{}'{}; {}",
         command_path(*line_.app, false), flag,
         flag.size() > 2 ? flag_meant(with_dashes(meant), long_flags(*line_.app)) : "",
         see_help(*line_.app));
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
  return best.empty() ? did_you_mean(flag, known) : fmt::format(" (did you mean '{}'?)", best);
}

CommandLine read_command_line(CLI::App& root, const std::vector<std::string>& words) {
  return WordReader(root, words).read();
}

}  // namespace mamba::cli
