// SPDX-License-Identifier: Apache-2.0
// Reading the tokenizer of a GGUF file as a tokenizer.json.
#include "tokenizer/gguf_tokenizer.h"

#include <algorithm>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/utf8.h"
#include "tokenizer/bpe_tokenizer.h"
#include "tokenizer/byte_chars.h"
#include "tokenizer/files.h"
#include "tokenizer/gguf_keys.h"
#include "tokenizer/gguf_words.h"
#include "tokenizer/tokenizer_file.h"

namespace mamba {
namespace {

// "[PAD50277]" for id 50277: rows of the model that no text uses.
bool is_padding(const std::string& token, int64_t id, int64_t type) {
  return type == kGgufUnused || (type == kGgufUserDefined && token == fmt::format("[PAD{}]", id));
}

// The 256 bytes in order and nothing to merge; rows behind them are padding.
bool is_bytes(const GgufFile& file) {
  const GgufValue* merges = file.find_value(kGgufMerges);
  if (merges != nullptr && !file.get_strings(kGgufMerges).empty()) return false;
  const std::vector<std::string>& tokens = file.get_strings(kGgufTokens);
  const std::vector<int64_t>& types = file.get_ints(kGgufTokenTypes);
  if (tokens.size() < 256 || types.size() != tokens.size()) return false;
  for (size_t i = 256; i < tokens.size(); ++i) {
    if (!is_padding(tokens[i], static_cast<int64_t>(i), types[i])) return false;
  }
  for (size_t i = 0; i < 256; ++i) {
    if (tokens[i] != to_byte_chars(std::string(1, static_cast<char>(i)))) return false;
  }
  return true;
}

void expect_bpe(const GgufFile& file) {
  const std::string& model = file.get_string(kGgufModel);
  if (model == "gpt2") return;
  fail(ErrorCode::kUnsupported,
       "[{}] expected tokenizer.ggml.model \"gpt2\" (byte-level BPE), got \"{}\"; this version "
       "reads no other",
       file.where(), printable(model));
}

// The id that a key names, or -1.
int64_t special_id(const GgufFile& file, const std::string& key) {
  const int64_t count = static_cast<int64_t>(file.get_strings(kGgufTokens).size());
  const GgufValue* value = file.find_value(key);
  const bool none = value == nullptr || value->integer == -1 || value->integer == 0xffffffff;
  return none ? -1 : file.get_int(key, 0, count - 1);
}

struct Vocabulary {
  Json tokens = Json::object();  // written form -> id
  Json added = Json::array();
};

Vocabulary read_vocabulary(const GgufFile& file) {
  const std::vector<std::string>& tokens = file.get_strings(kGgufTokens);
  const std::vector<int64_t>& types = file.get_ints(kGgufTokenTypes);
  if (!types.empty() && types.size() != tokens.size()) {
    fail(ErrorCode::kBadFile, "[{}] expected {} types of tokens, got {}; the file is damaged",
         file.where(), tokens.size(), types.size());
  }
  Vocabulary v;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int64_t type = types.empty() ? kGgufNormal : types[i];
    if (valid_utf8_prefix(tokens[i]) != tokens[i].size()) {
      fail(ErrorCode::kBadFile, "[{}] expected token {} in UTF-8, got \"{}\"; the file is damaged",
           file.where(), i, printable(tokens[i]));
    }
    if (is_padding(tokens[i], static_cast<int64_t>(i), type)) continue;
    if (type == kGgufNormal || type == kGgufByte) {
      if (!v.tokens.emplace(tokens[i], i).second) {
        fail(ErrorCode::kBadFile, "[{}] expected tokens that differ, got \"{}\" again as token {}",
             file.where(), printable(tokens[i]), i);
      }
      continue;
    }
    const bool special = type != kGgufUserDefined;
    v.added.push_back({{"id", i},
                       {"content", tokens[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", !special},
                       {"special", special}});
  }
  return v;
}

// More than one byte, each of which is one letter here.
bool is_merged(const std::string& token) {
  const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; };
  return std::count_if(token.begin(), token.end(), begins) > 1;
}

Json read_merges(const GgufFile& file, const Vocabulary& vocabulary) {
  Json merges = Json::array();
  if (file.find_value(kGgufMerges) == nullptr) {
    for (const auto& [token, id] : vocabulary.tokens.items()) {
      if (!is_merged(token)) continue;
      fail(ErrorCode::kBadFile,
           "[{}] expected the key \"{}\" beside tokens of several bytes like \"{}\", found none; "
           "texts cannot be read without it, convert the model again",
           file.where(), kGgufMerges, printable(token));
    }
    return merges;
  }
  const std::vector<std::string>& list = file.get_strings(kGgufMerges);
  for (size_t i = 0; i < list.size(); ++i) {
    if (valid_utf8_prefix(list[i]) != list[i].size()) {
      fail(ErrorCode::kBadFile, "[{}] expected merge {} in UTF-8, got \"{}\"; the file is damaged",
           file.where(), i, printable(list[i]));
    }
    merges.push_back(list[i]);
  }
  return merges;
}

// "special_tokens" and "single" of a post-processor that puts BOS and EOS around a text.
Json around(const GgufFile& file) {
  const std::vector<std::string>& tokens = file.get_strings(kGgufTokens);
  Json single = Json::array(), special = Json::object();
  const auto add = [&](const char* flag, const char* key) {
    const int64_t id = file.get_bool(flag, false) ? special_id(file, key) : -1;
    if (id < 0) return;
    const std::string& token = tokens[static_cast<size_t>(id)];
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    special[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
  };
  add("tokenizer.ggml.add_bos_token", kGgufBos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  add("tokenizer.ggml.add_eos_token", kGgufEos);
  if (special.empty()) return nullptr;
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", Json::array()},
          {"special_tokens", special}};
}

std::string token_named(const GgufFile& file, const char* key) {
  const int64_t id = special_id(file, key);
  if (id < 0) return "";
  const std::string& token = file.get_strings(kGgufTokens)[static_cast<size_t>(id)];
  return valid_utf8_prefix(token) == token.size() ? token : "";
}

}  // namespace

bool has_gguf_tokenizer(const GgufFile& file) {
  const std::string model = file.get_string(kGgufModel, "none");
  return model != "none" && model != "no_vocab";
}

Json tokenizer_json_of(const GgufFile& file) {
  expect_bpe(file);
  const Vocabulary vocabulary = read_vocabulary(file);
  if (file.find_value(kGgufRest) != nullptr) {
    // One of ours: everything else is as the original said it.
    Json json = parse_json(file.get_string(kGgufRest), file.where() + " " + kGgufRest);
    Json& model = json["model"];
    if (!model.is_object() || !model["vocab"].is_object()) {
      fail(ErrorCode::kBadFile,
           "[{}] expected \"{}\" with an object model.vocab, got {}; the file is damaged",
           file.where(), kGgufRest, printable_json(model));
    }
    model["vocab"].update(vocabulary.tokens);
    model["merges"] = read_merges(file, vocabulary);
    return json;
  }
  const GgufWords words = words_of_gguf(file.get_string("tokenizer.ggml.pre", ""), file.where());
  return {{"version", "1.0"},
          {"added_tokens", vocabulary.added},
          {"normalizer", nullptr},
          {"pre_tokenizer", words.pre_tokenizer},
          {"post_processor", around(file)},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"ignore_merges", words.ignore_merges},
            {"vocab", vocabulary.tokens},
            {"merges", read_merges(file, vocabulary)}}}};
}

Json tokenizer_config_of(const GgufFile& file) {
  Json config = Json::object();
  if (has_gguf_tokenizer(file)) {
    expect_bpe(file);
    if (is_bytes(file)) {
      config["tokenizer_class"] = kByteTokenizerClass;
    } else {
      config["tokenizer_class"] = "PreTrainedTokenizerFast";
      for (const auto& [name, key] :
           {std::pair("bos_token", kGgufBos), std::pair("eos_token", kGgufEos)}) {
        const std::string token = token_named(file, key);
        if (!token.empty()) config[name] = token;
      }
    }
  }
  const std::string text = file.get_string(kGgufTemplate, "");
  if (!text.empty() && valid_utf8_prefix(text) == text.size()) config["chat_template"] = text;
  return config;
}

std::unique_ptr<Tokenizer> load_gguf_tokenizer(const GgufFile& file) {
  expect_bpe(file);
  if (is_bytes(file)) return make_tokenizer("bytes");
  BpeFile bpe = bpe_file_of(tokenizer_json_of(file), file.where());
  bpe.name = file.where();
  bpe.bos_token = token_named(file, kGgufBos);
  bpe.eos_token = token_named(file, kGgufEos);
  return std::make_unique<BpeTokenizer>(std::move(bpe));
}

void write_tokenizer_files(const GgufFile& file, const std::string& folder) {
  if (has_gguf_tokenizer(file) && !is_bytes(file)) {
    write_file_atomic(folder + "/tokenizer.json", json_text(tokenizer_json_of(file)));
  }
  const Json config = tokenizer_config_of(file);
  if (!config.empty()) {
    write_file_atomic(folder + "/tokenizer_config.json", json_text(config));
  }
}

}  // namespace mamba
