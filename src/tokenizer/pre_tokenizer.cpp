// SPDX-License-Identifier: Apache-2.0
// Pre-tokenizers: stages that cut pieces into smaller ones, with ByteLevel as one of them.
#include "tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "tokenizer/byte_chars.h"

namespace mamba {
namespace {

constexpr size_t kMaxStages = 16;

bool bool_or(const Json& json, const char* key, bool fallback, const std::string& where) {
  return has_member(json, key) ? get_bool(json, key, where) : fallback;
}

}  // namespace

PreTokenizer PreTokenizer::gpt2() {
  PreTokenizer made;
  made.has_byte_level_ = true;
  made.finish("gpt2");
  return made;
}

PreTokenizer PreTokenizer::of_json(const Json& json, const std::string& where) {
  PreTokenizer made;
  if (!json.is_null()) made.add_json(json, where);
  made.finish(where);
  return made;
}

void PreTokenizer::add_json(const Json& json, const std::string& where) {
  const std::string type = get_string(json, "type", where);
  if (type == "Sequence") {
    const Json& list = get_member(json, "pretokenizers", where);
    if (!list.is_array()) {
      fail(ErrorCode::kBadFile, "[{}] expected \"pretokenizers\" to be a list, got {}; correct it",
           where, printable_json(list));
    }
    for (const Json& member : list) add_json(member, where);
    return;
  }
  if (before_.size() + after_.size() >= kMaxStages) {
    fail(ErrorCode::kUnsupported, "[{}] expected at most {} pre-tokenizers, got more", where,
         kMaxStages);
  }
  std::vector<Stage>& stages = has_byte_level_ ? after_ : before_;
  if (type == "ByteLevel") {
    add_byte_level(json, where);
  } else if (type == "Split") {
    add_split(json, where);
  } else if (type == "Digits") {
    const bool individual = bool_or(json, "individual_digits", false, where);
    stages.push_back({Stage::kDigits, individual ? Behavior::kIsolated : Behavior::kContiguous,
                      false, SplitPattern::kOther, nullptr, ""});
  } else if (type == "Punctuation") {
    stages.push_back(
        {Stage::kPunctuation, behavior_of(json, where), false, SplitPattern::kOther, nullptr, ""});
  } else {
    fail(ErrorCode::kUnsupported,
         "[{}] expected the pre-tokenizers ByteLevel, Split, Digits, Punctuation or Sequence, got "
         "'{}'; this version reads byte-level BPE only",
         where, printable(type));
  }
}

void PreTokenizer::add_byte_level(const Json& json, const std::string& where) {
  if (has_byte_level_) {
    fail(ErrorCode::kUnsupported, "[{}] expected the pre-tokenizer ByteLevel once, got it twice",
         where);
  }
  has_byte_level_ = true;
  prefix_space_ = bool_or(json, "add_prefix_space", true, where);
  use_regex_ = bool_or(json, "use_regex", true, where);
}

void PreTokenizer::add_split(const Json& json, const std::string& where) {
  const Json& pattern = get_member(json, "pattern", where);
  Stage stage{Stage::kRegex,
              behavior_of(json, where),
              bool_or(json, "invert", false, where),
              SplitPattern::kOther,
              nullptr,
              ""};
  if (has_member(pattern, "String")) {
    stage.text = Regex::quoted(get_string(pattern, "String", where));
  } else {
    stage.text = get_string(pattern, "Regex", where);
  }
  stage.pattern = pattern_of(stage.text);
  if (stage.pattern != SplitPattern::kOther) {
    // These patterns leave nothing between their matches.
    const bool whole = !stage.invert && stage.behavior == Behavior::kIsolated;
    const bool inverted = stage.invert && stage.behavior == Behavior::kRemoved;
    if (whole || inverted) stage.kind = Stage::kPattern;
  }
  if (stage.kind == Stage::kRegex) stage.regex = std::make_shared<Regex>(stage.text, where);
  (has_byte_level_ ? after_ : before_).push_back(std::move(stage));
}

PreTokenizer::Behavior PreTokenizer::behavior_of(const Json& json, const std::string& where) {
  constexpr std::pair<const char*, Behavior> kNames[] = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous},
  };
  const std::string name =
      has_member(json, "behavior") ? get_string(json, "behavior", where) : "Isolated";
  for (const auto& [known, behavior] : kNames) {
    if (name == known) return behavior;
  }
  fail(ErrorCode::kBadFile,
       "[{}] expected \"behavior\" to be Removed, Isolated, MergedWithPrevious, MergedWithNext or "
       "Contiguous, got '{}'; correct the file",
       where, printable(name));
}

void PreTokenizer::finish(const std::string& where) {
  if (!has_byte_level_) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected the pre-tokenizer ByteLevel, got none; this version reads byte-level BPE "
         "only",
         where);
  }
  if (before_.empty() && use_regex_ && after_.empty()) fast_ = SplitPattern::kGpt2;
  if (before_.size() == 1 && before_[0].kind == Stage::kPattern && !use_regex_ && after_.empty() &&
      !prefix_space_) {
    fast_ = before_[0].pattern;
  }
  // A border between a letter or digit and white space is made by each of the known patterns; what
  // comes before them looks at single characters, what comes after at single pieces.
  if (prefix_space_ && !before_.empty()) return;  // each piece gets its own space
  for (const Stage& stage : before_) {
    if (stage.kind == Stage::kPattern) {
      cuts_at_spaces_ = true;
      return;
    }
    const bool local =
        (stage.kind == Stage::kDigits || stage.kind == Stage::kPunctuation) &&
        (stage.behavior == Behavior::kIsolated || stage.behavior == Behavior::kContiguous ||
         stage.behavior == Behavior::kRemoved);
    if (!local) return;
  }
  cuts_at_spaces_ = use_regex_;
}

std::vector<PreTokenizer::Part> PreTokenizer::find(const Stage& stage, std::string_view text) {
  std::vector<Part> parts;
  size_t done = 0;
  const auto add = [&](size_t begin, size_t end) {
    if (begin > done) parts.push_back({done, begin, stage.invert});
    parts.push_back({begin, end, !stage.invert});
    done = end;
  };
  if (stage.kind == Stage::kRegex) {
    for (const RegexMatch& match : stage.regex->find_all(text)) add(match.begin, match.end);
  } else {
    const CharTable& table = CharTable::get();
    const uint8_t kind = stage.kind == Stage::kDigits ? kNumber : kPunctuation;
    uint32_t length;
    for (size_t at = 0; at < text.size(); at += length) {
      if ((table.at(text.data() + at, &length) & kind) != 0) add(at, at + length);
    }
  }
  if (done < text.size()) parts.push_back({done, text.size(), stage.invert});
  return parts;
}

void PreTokenizer::apply(const Stage& stage, std::string_view text,
                         std::vector<std::string_view>* out) {
  if (stage.kind == Stage::kPattern) {
    const CharTable& table = CharTable::get();
    for (size_t at = 0; at < text.size();) {
      const size_t end = piece_end(stage.pattern, table, text, at);
      out->push_back(text.substr(at, end - at));
      at = end;
    }
    return;
  }
  std::vector<Part> parts = find(stage, text);
  std::vector<Part> kept;
  bool after_match = false;
  switch (stage.behavior) {
    case Behavior::kIsolated:
      kept = std::move(parts);
      break;
    case Behavior::kRemoved:
      for (const Part& p : parts) {
        if (!p.matched) kept.push_back(p);
      }
      break;
    case Behavior::kContiguous:
      for (const Part& p : parts) {
        if (!kept.empty() && kept.back().matched == p.matched) {
          kept.back().end = p.end;
        } else {
          kept.push_back(p);
        }
      }
      break;
    case Behavior::kMergedWithPrevious:
      for (const Part& p : parts) {
        if (p.matched && !after_match && !kept.empty()) {
          kept.back().end = p.end;
        } else {
          kept.push_back(p);
        }
        after_match = p.matched;
      }
      break;
    case Behavior::kMergedWithNext:
      for (auto p = parts.rbegin(); p != parts.rend(); ++p) {
        if (p->matched && !after_match && !kept.empty()) {
          kept.back().begin = p->begin;
        } else {
          kept.push_back(*p);
        }
        after_match = p->matched;
      }
      std::reverse(kept.begin(), kept.end());
      break;
  }
  for (const Part& p : kept) {
    if (p.end > p.begin) out->push_back(text.substr(p.begin, p.end - p.begin));
  }
}

void PreTokenizer::apply_all(const std::vector<Stage>& stages, std::string_view text,
                             std::vector<std::string_view>* out) {
  std::vector<std::string_view> pieces{text}, next;
  for (const Stage& stage : stages) {
    next.clear();
    for (const std::string_view piece : pieces) apply(stage, piece, &next);
    pieces.swap(next);
  }
  out->insert(out->end(), pieces.begin(), pieces.end());
}

void PreTokenizer::split(std::string_view text, std::deque<std::string>* storage,
                         std::vector<std::string_view>* words) const {
  static const Stage kGpt2Stage{
      Stage::kPattern, Behavior::kIsolated, false, SplitPattern::kGpt2, nullptr, ""};
  words->clear();
  if (text.empty()) return;
  std::vector<std::string_view> pieces, cut;
  apply_all(before_, text, &pieces);
  for (std::string_view piece : pieces) {
    if (prefix_space_ && !before_.empty() && piece[0] != ' ') {
      piece = storage->emplace_back(" " + std::string(piece));
    }
    if (use_regex_) {
      apply(kGpt2Stage, piece, &cut);
    } else {
      cut.push_back(piece);
    }
  }
  if (after_.empty()) {
    words->swap(cut);
    return;
  }
  for (const std::string_view piece : cut) {
    const std::string written = to_byte_chars(piece);
    std::vector<std::string_view> smaller;
    apply_all(after_, written, &smaller);
    // Pieces of the written form stand for pieces of the bytes, one character for each.
    for (const std::string_view part : smaller) {
      words->push_back(storage->emplace_back(*from_byte_chars(part)));
    }
  }
}

std::string PreTokenizer::describe(const std::vector<Stage>& stages) {
  std::string out;
  for (const Stage& s : stages) {
    out += fmt::format("{}:{}:{}:{}:{};", static_cast<int>(s.kind), static_cast<int>(s.behavior),
                       s.kind == Stage::kPattern ? false : s.invert, s.text.size(), s.text);
  }
  return out;
}

std::string PreTokenizer::describe() const {
  return fmt::format("{}|{}{}|{}", describe(before_), prefix_space_, use_regex_, describe(after_));
}

}  // namespace mamba
