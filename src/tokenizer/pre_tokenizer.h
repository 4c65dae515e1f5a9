// SPDX-License-Identifier: Apache-2.0
// What cuts text into the words within which BPE merges: the "pre_tokenizer" of a tokenizer.json.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "tokenizer/regex.h"
#include "tokenizer/split_pattern.h"

namespace mamba {

// Immutable: any number of threads may use one.
class PreTokenizer {
 public:
  // ByteLevel with GPT-2's pattern.
  static PreTokenizer gpt2();
  // Of a file. Throws bad_file for what is malformed and unsupported for what this version does not
  // have, naming `where`.
  static PreTokenizer of_json(const Json& json, const std::string& where);

  // A text that does not begin with a space gets one.
  bool adds_prefix_space() const { return prefix_space_ && before_.empty(); }
  // Not kOther: the words are those of this pattern, and piece_end() finds them.
  SplitPattern fast_pattern() const { return fast_; }
  // True if a text may be cut between a letter or digit and white space, both ASCII.
  bool cuts_at_spaces() const { return cuts_at_spaces_; }

  // The words of `text`, not empty and in order: views of `text` or of strings in `storage`. A
  // prefix space has been added already.
  void split(std::string_view text, std::deque<std::string>* storage,
             std::vector<std::string_view>* words) const;

  // The same text for pre-tokenizers that do the same.
  std::string describe() const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Stage {
    enum Kind { kPattern, kRegex, kDigits, kPunctuation } kind;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    SplitPattern pattern = SplitPattern::kOther;
    std::shared_ptr<const Regex> regex;
    std::string text;  // of the regular expression
  };
  struct Part {
    size_t begin, end;
    bool matched;
  };

  void add_json(const Json& json, const std::string& where);
  void add_split(const Json& json, const std::string& where);
  void add_byte_level(const Json& json, const std::string& where);
  void finish(const std::string& where);
  static Behavior behavior_of(const Json& json, const std::string& where);
  static std::vector<Part> find(const Stage& stage, std::string_view text);
  static void apply(const Stage& stage, std::string_view text, std::vector<std::string_view>* out);
  static void apply_all(const std::vector<Stage>& stages, std::string_view text,
                        std::vector<std::string_view>* out);
  static std::string describe(const std::vector<Stage>& stages);

  std::vector<Stage> before_, after_;  // of ByteLevel, which writes bytes as characters
  bool has_byte_level_ = false, prefix_space_ = false, use_regex_ = true;
  SplitPattern fast_ = SplitPattern::kOther;
  bool cuts_at_spaces_ = false;
};

}  // namespace mamba
