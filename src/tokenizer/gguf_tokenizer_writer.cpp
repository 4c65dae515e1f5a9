// SPDX-License-Identifier: Apache-2.0
// Writing a tokenizer as GGUF metadata.
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "base/mapped_file.h"
#include "tokenizer/byte_chars.h"
#include "tokenizer/files.h"
#include "tokenizer/gguf_keys.h"
#include "tokenizer/gguf_tokenizer.h"
#include "tokenizer/gguf_words.h"
#include "tokenizer/tokenizer_file.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr JsonLimits kLimits{size_t{256} << 20, 64};

// The tokenizer.json of `path`, or, for GPT-2's two files, what it would say beside the vocabulary.
Json rest_of(const std::string& path) {
  std::error_code ignored;
  const std::string file =
      fs::is_directory(path, ignored) ? (fs::path(path) / "tokenizer.json").string() : path;
  if (!fs::exists(file, ignored)) {
    return {{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}}};
  }
  return read_json_file(file, kLimits);
}

std::string chat_template_of(const std::string& path) {
  std::error_code ignored;
  const fs::path folder =
      fs::is_directory(path, ignored) ? fs::path(path) : fs::path(path).parent_path();
  const std::string own = (folder / "chat_template.jinja").string();
  if (fs::is_regular_file(own, ignored)) {
    const MappedFile file(own);
    return {reinterpret_cast<const char*>(file.data()), file.size()};
  }
  const std::string config = (folder / "tokenizer_config.json").string();
  if (!fs::is_regular_file(config, ignored)) return "";
  const Json json = read_json_file(config);
  if (!has_member(json, "chat_template")) return "";
  const Json& value = json.at("chat_template");
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return "";
  for (const Json& entry : value) {
    if (entry.value("name", Json()) == "default" && has_member(entry, "template") &&
        entry.at("template").is_string()) {
      return entry.at("template").get<std::string>();
    }
  }
  return "";
}

struct Tokens {
  std::vector<std::string> texts;
  std::vector<int64_t> types;
  explicit Tokens(int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) texts.push_back(fmt::format("[PAD{}]", i));
    types.assign(static_cast<size_t>(rows), kGgufUnused);
  }
  void set(int64_t id, const std::string& text, int64_t type) {
    texts[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
  }
};

void put_tokens(Tokens tokens, std::vector<std::string> merges, const std::string& words,
                GgufMetadata* m) {
  (*m)[kGgufModel] = GgufValue::string("gpt2");
  (*m)["tokenizer.ggml.pre"] = GgufValue::string(words);
  (*m)[kGgufTokens] = GgufValue::strings(std::move(tokens.texts));
  (*m)[kGgufTokenTypes] = GgufValue::i32_list(std::move(tokens.types));
  (*m)[kGgufMerges] = GgufValue::strings(std::move(merges));
}

void put_id(const char* name, int64_t id, GgufMetadata* m) {
  if (id >= 0) (*m)[std::string("tokenizer.ggml.") + name] = GgufValue::u32(id);
}

void put_bytes(const Config& config, GgufMetadata* m) {
  Tokens tokens(config.vocab_size);
  for (int64_t i = 0; i < 256; ++i) {
    tokens.set(i, to_byte_chars(std::string(1, static_cast<char>(i))), kGgufNormal);
  }
  put_tokens(std::move(tokens), {}, "gpt-2", m);
  (*m)["tokenizer.ggml.add_bos_token"] = GgufValue::boolean(false);
}

void put_bpe(const std::string& path, const BpeTokenizer& tokenizer, const BpeFile& file,
             const Config& config, GgufMetadata* m) {
  Json rest = rest_of(path);
  const std::string words = gguf_words_name(rest, file.options.ignore_merges);
  if (words.empty()) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected a tokenizer that cuts words as GPT-2, Llama 3, Qwen 2 or Falcon do, which "
         "GGUF has names for, got another; use --no-tokenizer and give --tokenizer when running",
         path);
  }
  Tokens tokens(config.vocab_size);
  std::vector<std::string> written(static_cast<size_t>(tokenizer.vocab_size()));
  for (const BpeFile::Token& token : file.vocabulary) {
    written[static_cast<size_t>(token.id)] = token.written;
    tokens.set(token.id, token.written, kGgufNormal);
  }
  std::vector<std::string> merges;
  for (const Merge& merge : file.merges) {
    merges.push_back(written[static_cast<size_t>(merge.left)] + " " +
                     written[static_cast<size_t>(merge.right)]);
  }
  Json kept = Json::object();
  for (const AddedToken& token : file.added) {
    if (!written[static_cast<size_t>(token.id)].empty()) {
      kept[written[static_cast<size_t>(token.id)]] = token.id;
    }
    tokens.set(token.id, token.content, token.special ? kGgufControl : kGgufUserDefined);
  }
  put_tokens(std::move(tokens), std::move(merges), words, m);
  if (has_member(rest, "model")) {
    rest["model"]["vocab"] = kept;
    rest["model"].erase("merges");
    (*m)[kGgufRest] = GgufValue::string(rest.dump());
  }
  const auto is_only = [](const std::vector<int32_t>& ids, int64_t id) {
    return id >= 0 && ids.size() == 1 && ids[0] == id;
  };
  const int64_t bos = config.bos_token_id >= 0 ? config.bos_token_id : tokenizer.bos_id();
  const int64_t eos = config.eos_token_id >= 0 ? config.eos_token_id : tokenizer.eos_id();
  put_id("bos_token_id", bos, m);
  put_id("eos_token_id", eos, m);
  put_id("padding_token_id", config.pad_token_id, m);
  put_id("unknown_token_id", file.options.unknown_id, m);
  (*m)["tokenizer.ggml.add_bos_token"] = GgufValue::boolean(is_only(file.prefix_ids, bos));
  (*m)["tokenizer.ggml.add_eos_token"] = GgufValue::boolean(is_only(file.suffix_ids, eos));
}

}  // namespace

void add_tokenizer_metadata(const std::string& path, const Config& config, GgufMetadata* metadata) {
  std::error_code ignored;
  const std::string chat_template = path == "bytes" ? "" : chat_template_of(path);
  if (!chat_template.empty()) (*metadata)[kGgufTemplate] = GgufValue::string(chat_template);
  if (path == "bytes" || says_bytes(path)) return put_bytes(config, metadata);
  const BpeFile file = read_bpe_file(path);
  const BpeTokenizer tokenizer(file);
  if (tokenizer.vocab_size() > config.vocab_size) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a tokenizer of at most the {} ids of the model, got {}; is it another "
         "model's?",
         path, config.vocab_size, tokenizer.vocab_size());
  }
  put_bpe(path, tokenizer, file, config, metadata);
}

}  // namespace mamba
