// SPDX-License-Identifier: Apache-2.0
// GPT-2's words, those of Llama 3 and Qwen 2, and Falcon's, by the names of llama.cpp.
#include "tokenizer/gguf_words.h"

#include <algorithm>
#include <string_view>

#include "base/check.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/split_pattern.h"

namespace mamba {
namespace {

enum class Words { kGpt2, kLlama3, kQwen2, kFalcon };

struct Entry {
  const char* name;
  Words words;
  bool ignore_merges;
};
// The first of equal ones is the name that is written.
constexpr Entry kNames[] = {
    {"gpt-2", Words::kGpt2, false},      {"olmo", Words::kGpt2, false},
    {"mpt", Words::kGpt2, false},        {"jais", Words::kGpt2, false},
    {"phi-2", Words::kGpt2, false},      {"gpt-neox", Words::kGpt2, false},
    {"llama-bpe", Words::kLlama3, true}, {"llama3", Words::kLlama3, true},
    {"llama-v3", Words::kLlama3, true},  {"falcon3", Words::kLlama3, true},
    {"dbrx", Words::kLlama3, false},     {"smaug-bpe", Words::kLlama3, false},
    {"qwen2", Words::kQwen2, false},     {"deepseek-r1-qwen", Words::kQwen2, false},
    {"falcon", Words::kFalcon, false},
};

Json split(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json sequence(std::initializer_list<Json> parts) {
  return {{"type", "Sequence"}, {"pretokenizers", Json(parts)}};
}

Json json_of(Words words) {
  switch (words) {
    case Words::kGpt2:
      return byte_level(true);
    case Words::kLlama3:
      return sequence({split(pattern_text(SplitPattern::kLlama3)), byte_level(false)});
    case Words::kQwen2:
      return sequence({split(pattern_text(SplitPattern::kQwen2)), byte_level(false)});
    case Words::kFalcon:
      return sequence({Json{{"type", "Punctuation"}, {"behavior", "Contiguous"}}, byte_level(true),
                       Json{{"type", "Digits"}, {"individual_digits", false}},
                       split("[0-9][0-9][0-9]")});
  }
  return nullptr;
}

}  // namespace

GgufWords words_of_gguf(const std::string& name, const std::string& where) {
  if (name.empty() || name == "default") return {json_of(Words::kGpt2), false};
  std::string known;
  for (const Entry& entry : kNames) {
    if (name == entry.name) return {json_of(entry.words), entry.ignore_merges};
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  fail(ErrorCode::kUnsupported,
       "[{}] expected tokenizer.ggml.pre as one of {}; got \"{}\"; give the folder of the original "
       "tokenizer",
       where, known, printable(name));
}

std::string gguf_words_name(const Json& tokenizer_json, bool ignore_merges) {
  const Json* given =
      has_member(tokenizer_json, "pre_tokenizer") ? &tokenizer_json.at("pre_tokenizer") : nullptr;
  if (given == nullptr) return "";
  const std::string meant = PreTokenizer::of_json(*given, "tokenizer.json").describe();
  for (const Entry& entry : kNames) {
    if (entry.ignore_merges != ignore_merges) continue;
    if (PreTokenizer::of_json(json_of(entry.words), entry.name).describe() == meant) {
      return entry.name;
    }
  }
  return "";
}

}  // namespace mamba
