// SPDX-License-Identifier: Apache-2.0
// Reading tokenizer files: everything is checked here, and what this version would get wrong is
// refused by its name.
#include "tokenizer/tokenizer_file.h"

#include <algorithm>
#include <filesystem>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/mapped_file.h"

namespace mamba {
namespace {

constexpr JsonLimits kLimits{size_t{256} << 20, 64};
constexpr int64_t kMaxId = (int64_t{1} << 21) - 1;  // the largest known vocabularies have 2^18 ids
constexpr size_t kMaxContentBytes = 1 << 14;        // of an added token
constexpr size_t kMaxAroundIds = 64;                // that a post-processor adds

using IdOf = std::unordered_map<std::string, int32_t>;

[[noreturn]] void refuse(const std::string& where, const char* what, const char* known,
                         const std::string& got) {
  fail(ErrorCode::kUnsupported,
       "[{}] expected the {} {}, got '{}'; this version reads byte-level BPE only", where, what,
       known, printable(got));
}

const Json& list_of(const Json& json, const char* key, const std::string& where) {
  const Json& list = get_member(json, key, where);
  if (!list.is_array()) {
    fail(ErrorCode::kBadFile, "[{}] expected \"{}\" to be a list, got {}; correct the file", where,
         key, printable_json(list));
  }
  return list;
}

const Json* member_or_null(const Json& json, const char* key) {
  if (!has_member(json, key) || json.at(key).is_null()) return nullptr;
  return &json.at(key);
}

int32_t id_in(const Json& json, const char* key, const std::string& where) {
  return static_cast<int32_t>(get_int(json, key, 0, kMaxId, where));
}

IdOf read_vocabulary(const Json& vocab, const std::string& where, BpeFile* file) {
  if (!vocab.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected \"vocab\" to be an object, got {}; correct the file",
         where, printable_json(vocab));
  }
  IdOf id_of;
  id_of.reserve(vocab.size());
  std::vector<bool> used(static_cast<size_t>(kMaxId + 1));
  for (const auto& [written, value] : vocab.items()) {
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{kMaxId};
    if (!fits) {
      fail(ErrorCode::kBadFile, "[{}] expected the id of '{}' in 0..{}, got {}; correct the file",
           where, printable(written), kMaxId, printable_json(value));
    }
    const auto id = value.get<int32_t>();
    if (used[static_cast<size_t>(id)]) {
      fail(ErrorCode::kBadFile, "[{}] expected ids that differ, got {} again for '{}'", where, id,
           printable(written));
    }
    used[static_cast<size_t>(id)] = true;
    id_of.emplace(written, id);
    file->vocabulary.push_back({id, written});
  }
  std::sort(file->vocabulary.begin(), file->vocabulary.end(),
            [](const BpeFile::Token& a, const BpeFile::Token& b) { return a.id < b.id; });
  return id_of;
}

// `number` counts merges from 0, for messages.
void add_merge(const std::string& left, const std::string& right, size_t number, const IdOf& id_of,
               const std::string& where, BpeFile* file) {
  const std::string both = left + right;
  int32_t ids[3];
  int32_t* id = ids;
  for (const std::string* token : {&left, &right, &both}) {
    const auto found = id_of.find(*token);
    if (found != id_of.end()) {
      *id++ = found->second;
      continue;
    }
    fail(ErrorCode::kBadFile,
         "[{}] expected merge {} ('{}' '{}') to be of tokens of the vocabulary, got none called "
         "'{}'; fetch the file again",
         where, number, printable(left), printable(right), printable(*token));
  }
  file->merges.push_back({ids[0], ids[1], ids[2]});
}

void add_merge(std::string_view line, size_t number, const IdOf& id_of, const std::string& where,
               BpeFile* file) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
    fail(ErrorCode::kBadFile, "[{}] expected merge {} to be two tokens with a space, got '{}'",
         where, number, printable(line));
  }
  add_merge(std::string(line.substr(0, space)), std::string(line.substr(space + 1)), number, id_of,
            where, file);
}

void read_merges(const Json& merges, const IdOf& id_of, const std::string& where, BpeFile* file) {
  size_t number = 0;
  for (const Json& merge : merges) {
    if (merge.is_string()) {
      add_merge(merge.get_ref<const std::string&>(), number, id_of, where, file);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      add_merge(merge[0].get<std::string>(), merge[1].get<std::string>(), number, id_of, where,
                file);
    } else {
      fail(ErrorCode::kBadFile,
           "[{}] expected merge {} to be \"a b\" or [\"a\", \"b\"], got {}; correct the file",
           where, number, printable_json(merge));
    }
    ++number;
  }
}

bool flag_of(const Json& json, const char* key, const std::string& where) {
  return member_or_null(json, key) != nullptr && get_bool(json, key, where);
}

IdOf read_model(const Json& model, const std::string& where, BpeFile* file) {
  const Json* type = member_or_null(model, "type");
  if (type != nullptr && *type != "BPE") {
    refuse(where, "model", "BPE", get_string(model, "type", where));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (member_or_null(model, key) == nullptr || model.at(key) == "") continue;
    fail(ErrorCode::kUnsupported, "[{}] expected no \"{}\", got {}", where, key,
         printable_json(model.at(key)));
  }
  if (member_or_null(model, "dropout") != nullptr &&
      get_number(model, "dropout", 0, 1, where) > 0) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected no \"dropout\", got {}: ids would differ from call to call; set it to null",
         where, printable_json(model.at("dropout")));
  }
  const IdOf id_of = read_vocabulary(get_member(model, "vocab", where), where, file);
  read_merges(list_of(model, "merges", where), id_of, where, file);
  file->options.fuse_unknown = flag_of(model, "fuse_unk", where);
  file->options.ignore_merges = flag_of(model, "ignore_merges", where);
  file->byte_fallback = flag_of(model, "byte_fallback", where);
  if (member_or_null(model, "unk_token") != nullptr) {
    const auto found = id_of.find(get_string(model, "unk_token", where));
    if (found == id_of.end()) {
      fail(ErrorCode::kBadFile,
           "[{}] expected \"unk_token\" to be a token of the vocabulary, got {}; correct the file",
           where, printable_json(model.at("unk_token")));
    }
    file->options.unknown_id = found->second;
  }
  return id_of;
}

void read_added(const Json& list, const IdOf& id_of, const std::string& where, BpeFile* file) {
  std::unordered_set<int32_t> ids;
  std::unordered_set<std::string> contents;
  std::unordered_set<int32_t> taken;
  for (const BpeFile::Token& token : file->vocabulary) taken.insert(token.id);
  for (const Json& json : list) {
    AddedToken token;
    token.id = id_in(json, "id", where);
    token.content = get_string(json, "content", where);
    token.special = flag_of(json, "special", where);
    token.lstrip = flag_of(json, "lstrip", where);
    token.rstrip = flag_of(json, "rstrip", where);
    token.single_word = flag_of(json, "single_word", where);
    token.normalized = member_or_null(json, "normalized") == nullptr
                           ? !token.special
                           : get_bool(json, "normalized", where);
    if (token.content.size() > kMaxContentBytes) {
      fail(ErrorCode::kBadFile, "[{}] expected added tokens of at most {} bytes, got {} ('{}')",
           where, kMaxContentBytes, token.content.size(), printable(token.content));
    }
    const auto known = id_of.find(token.content);
    const bool same_token = known != id_of.end() && known->second == token.id;
    if ((known != id_of.end() && !same_token) || (taken.contains(token.id) && !same_token) ||
        !ids.insert(token.id).second || !contents.insert(token.content).second) {
      fail(
          ErrorCode::kBadFile,
          "[{}] expected added tokens with ids of their own, got id {} for '{}', which is taken or "
          "named twice; correct the file",
          where, token.id, printable(token.content));
    }
    file->added.push_back(std::move(token));
  }
}

void read_normalizer(const Json& json, const std::string& where, BpeFile* file) {
  const std::string type = get_string(json, "type", where);
  if (type == "Sequence") {
    for (const Json& part : list_of(json, "normalizers", where)) read_normalizer(part, where, file);
    return;
  }
  for (const NormalForm form :
       {NormalForm::kNfc, NormalForm::kNfd, NormalForm::kNfkc, NormalForm::kNfkd}) {
    if (type != normal_form_name(form)) continue;
    file->normal_forms.push_back(form);
    return;
  }
  refuse(where, "normalizers", "NFC, NFD, NFKC, NFKD or Sequence", type);
}

// The ids of a special token that a template names.
void add_template_ids(const Json& piece, const Json& json, const std::string& where,
                      std::vector<int32_t>* ids) {
  const std::string name = get_string(piece, "id", where);
  const Json& known = get_member(json, "special_tokens", where);
  for (const Json& id : list_of(get_member(known, name.c_str(), where), "ids", where)) {
    const bool fits = id.is_number_unsigned() && id.get<uint64_t>() <= uint64_t{kMaxId};
    if (!fits || ids->size() >= kMaxAroundIds) {
      fail(ErrorCode::kBadFile, "[{}] expected at most {} ids in 0..{} around a text, got {}",
           where, kMaxAroundIds, kMaxId, printable_json(id));
    }
    ids->push_back(id.get<int32_t>());
  }
}

void read_post_processor(const Json& json, const std::string& where, BpeFile* file) {
  const std::string type = get_string(json, "type", where);
  if (type == "ByteLevel") return;  // moves offsets alone
  if (type == "Sequence") {
    for (const Json& part : list_of(json, "processors", where)) {
      read_post_processor(part, where, file);
    }
    return;
  }
  if (type != "TemplateProcessing") {
    refuse(where, "post-processors", "ByteLevel, TemplateProcessing or Sequence", type);
  }
  std::vector<int32_t> before, after;
  bool behind = false;
  for (const Json& piece : list_of(json, "single", where)) {
    if (has_member(piece, "Sequence")) {
      if (behind) {
        fail(ErrorCode::kUnsupported, "[{}] expected one sequence in \"single\", got two", where);
      }
      behind = true;
    } else {
      add_template_ids(get_member(piece, "SpecialToken", where), json, where,
                       behind ? &after : &before);
    }
  }
  file->prefix_ids.insert(file->prefix_ids.begin(), before.begin(), before.end());
  file->suffix_ids.insert(file->suffix_ids.end(), after.begin(), after.end());
}

void check_decoder(const Json& json, const std::string& where) {
  const std::string type = get_string(json, "type", where);
  if (type == "Sequence") {
    for (const Json& part : list_of(json, "decoders", where)) check_decoder(part, where);
    return;
  }
  if (type != "ByteLevel") refuse(where, "decoder", "ByteLevel", type);
}

// Ids that exist, or the model would be asked for rows that it does not have.
void check_around_ids(const BpeFile& file, const std::string& where) {
  std::unordered_set<int32_t> known;
  for (const BpeFile::Token& token : file.vocabulary) known.insert(token.id);
  for (const AddedToken& token : file.added) known.insert(token.id);
  for (const std::vector<int32_t>* ids : {&file.prefix_ids, &file.suffix_ids}) {
    for (const int32_t id : *ids) {
      if (known.contains(id)) continue;
      fail(ErrorCode::kBadFile, "[{}] expected a post-processor with ids of tokens, got {}", where,
           id);
    }
  }
}

std::string token_content(const Json& config, const char* key) {
  const Json* token = member_or_null(config, key);
  if (token != nullptr && token->is_object()) token = member_or_null(*token, "content");
  return token != nullptr && token->is_string() ? token->get<std::string>() : "";
}

// BOS and EOS as the files beside name them.
void read_config(const std::filesystem::path& folder, BpeFile* file) {
  for (const char* name : {"special_tokens_map.json", "tokenizer_config.json"}) {
    const std::string path = (folder / name).string();
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) continue;
    const Json config = read_json_file(path);
    for (const auto& [key, content] :
         {std::pair("bos_token", &file->bos_token), std::pair("eos_token", &file->eos_token)}) {
      const std::string found = token_content(config, key);
      if (!found.empty()) *content = found;
    }
  }
}

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

}  // namespace

BpeFile parse_tokenizer_json(std::string_view text, const std::string& where) {
  return bpe_file_of(parse_json(text, where, kLimits), where);
}

BpeFile bpe_file_of(const Json& json, const std::string& where) {
  BpeFile file;
  file.name = where;
  const IdOf id_of = read_model(get_member(json, "model", where), where, &file);
  if (member_or_null(json, "added_tokens") != nullptr) {
    read_added(list_of(json, "added_tokens", where), id_of, where, &file);
  }
  if (file.vocabulary.empty() && file.added.empty()) {
    fail(ErrorCode::kBadFile, "[{}] expected a vocabulary, got an empty one", where);
  }
  if (const Json* j = member_or_null(json, "normalizer")) read_normalizer(*j, where, &file);
  const Json* pre_tokenizer = member_or_null(json, "pre_tokenizer");
  file.pre_tokenizer =
      PreTokenizer::of_json(pre_tokenizer == nullptr ? Json(nullptr) : *pre_tokenizer, where);
  if (const Json* j = member_or_null(json, "post_processor")) read_post_processor(*j, where, &file);
  if (const Json* j = member_or_null(json, "decoder")) check_decoder(*j, where);
  check_around_ids(file, where);
  return file;
}

BpeFile parse_gpt2_files(std::string_view vocabulary, std::string_view merges,
                         const std::string& where) {
  BpeFile file;
  file.name = where;
  const IdOf id_of = read_vocabulary(parse_json(vocabulary, where, kLimits), where, &file);
  size_t number = 0;
  while (!merges.empty()) {
    const size_t end = std::min(merges.find('\n'), merges.size());
    std::string_view line = merges.substr(0, end);
    merges.remove_prefix(std::min(end + 1, merges.size()));
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    add_merge(line, number++, id_of, where, &file);
  }
  // The one special token of GPT-2, which its class names and these files do not.
  constexpr const char* kEnd = "<|endoftext|>";
  const auto end = id_of.find(kEnd);
  if (end != id_of.end()) {
    AddedToken token;
    token.id = end->second;
    token.content = kEnd;
    token.special = true;
    file.added.push_back(token);
    file.bos_token = file.eos_token = kEnd;
  }
  if (file.vocabulary.empty()) {
    fail(ErrorCode::kBadFile, "[{}] expected a vocabulary, got an empty one", where);
  }
  return file;
}

BpeFile read_bpe_file(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path given(path);
  const bool is_folder = fs::is_directory(given, ignored);
  const auto has = [&](const char* name) { return fs::exists(given / name, ignored); };
  BpeFile file;
  if (!fs::exists(given, ignored)) {
    fail(ErrorCode::kBadFile,
         "[tokenizer] expected 'bytes', a folder with a tokenizer.json or that file, got '{}', "
         "which "
         "does not exist; check the path",
         printable(path, 200));
  }
  if (is_folder && !has("tokenizer.json") && has("vocab.json") && has("merges.txt")) {
    if (has("added_tokens.json")) {
      fail(ErrorCode::kUnsupported,
           "[{}] expected vocab.json and merges.txt alone, got an added_tokens.json as well; save "
           "the tokenizer as a tokenizer.json",
           path);
    }
    const MappedFile vocabulary((given / "vocab.json").string());
    const MappedFile merges((given / "merges.txt").string());
    file = parse_gpt2_files(text_of(vocabulary), text_of(merges), path);
  } else if (is_folder && !has("tokenizer.json")) {
    fail(has("tokenizer.model") ? ErrorCode::kUnsupported : ErrorCode::kBadFile,
         "[{}] expected a tokenizer.json, or vocab.json and merges.txt, got {}; save the tokenizer "
         "in that form",
         path, has("tokenizer.model") ? "a tokenizer.model of SentencePiece" : "none of them");
  } else {
    const MappedFile json(is_folder ? (given / "tokenizer.json").string() : path);
    file = parse_tokenizer_json(text_of(json), json.path());
  }
  read_config(is_folder ? given : given.parent_path(), &file);
  file.name = path;
  return file;
}

}  // namespace mamba
