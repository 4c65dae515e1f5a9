// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE, step by step as Hugging Face tokenizers does it.
#include "tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/utf8.h"
#include "tokenizer/byte_chars.h"

namespace mamba {
namespace {

bool is_ascii_alnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_cut_space(char c) { return c == ' ' || c == '\n'; }

// A cache for the time of one call.
class BorrowedCache {
 public:
  explicit BorrowedCache(const BpeModel& model) : model_(model), cache_(model.borrow_cache()) {}
  ~BorrowedCache() { model_.give_back(std::move(cache_)); }
  BorrowedCache(const BorrowedCache&) = delete;
  BorrowedCache& operator=(const BorrowedCache&) = delete;
  BpeModel::Cache* get() { return cache_.get(); }

 private:
  const BpeModel& model_;
  BpeModel::CachePtr cache_;
};

class Hash {  // FNV-1a over fields with their lengths
 public:
  void add(uint64_t value) {
    for (int i = 0; i < 8; ++i) byte(static_cast<uint8_t>(value >> 8 * i));
  }
  void add(std::string_view text) {
    add(text.size());
    for (const char c : text) byte(static_cast<uint8_t>(c));
  }
  uint64_t value() const { return value_; }

 private:
  void byte(uint8_t b) { value_ = (value_ ^ b) * 0x100000001b3u; }
  uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace

BpeTokenizer::BpeTokenizer(BpeFile file)
    : file_(std::move(file)),
      model_(make_model()),
      raw_matcher_(make_matcher(false)),
      normalized_matcher_(make_matcher(true)),
      may_cut_(file_.pre_tokenizer.cuts_at_spaces() && added_tokens_allow_cuts()),
      fingerprint_(hash_all()) {}

void BpeTokenizer::place_tokens() {
  for (const BpeFile::Token& t : file_.vocabulary)
    vocab_size_ = std::max<int64_t>(vocab_size_, t.id + 1);
  for (const AddedToken& t : file_.added) vocab_size_ = std::max<int64_t>(vocab_size_, t.id + 1);
  const auto count = static_cast<size_t>(vocab_size_);
  std::vector<const std::string*> written(count);
  std::vector<const AddedToken*> added(count);
  for (const BpeFile::Token& t : file_.vocabulary) written[static_cast<size_t>(t.id)] = &t.written;
  for (const AddedToken& t : file_.added) added[static_cast<size_t>(t.id)] = &t;
  special_.assign(count, false);
  bytes_end_.reserve(count);
  file_.options.byte_id.fill(-1);
  file_.options.fallback_id.fill(-1);
  for (size_t id = 0; id < count; ++id) {
    std::string bytes;
    bool as_bytes = false;
    if (added[id] != nullptr) {
      bytes = added[id]->content;
      special_[id] = added[id]->special;
    } else if (written[id] != nullptr) {
      const std::optional<std::string> unwritten = from_byte_chars(*written[id]);
      as_bytes = unwritten.has_value();
      bytes = as_bytes ? *unwritten : *written[id];
    }
    if (!bytes.empty()) {
      const auto [at, is_new] = id_of_.try_emplace(bytes, static_cast<int32_t>(id));
      if (!is_new && as_bytes) at->second = static_cast<int32_t>(id);
    }
    bytes_ += bytes;
    bytes_end_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
  for (const std::string* content : {&file_.bos_token, &file_.eos_token}) {
    if (content->empty()) continue;
    (content == &file_.bos_token ? bos_id_ : eos_id_) = id_of(*content);
  }
}

BpeModel BpeTokenizer::make_model() {
  place_tokens();
  std::unordered_map<std::string, int32_t> words;
  for (const BpeFile::Token& token : file_.vocabulary) {
    const std::optional<std::string> bytes = from_byte_chars(token.written);
    if (file_.byte_fallback && token.written.size() == 6 && token.written.starts_with("<0x") &&
        token.written[5] == '>') {
      const std::string digits = token.written.substr(3, 2);
      if (digits.find_first_not_of("0123456789ABCDEF") == std::string::npos) {
        file_.options.fallback_id[std::stoul(digits, nullptr, 16)] = token.id;
      }
    }
    if (!bytes) continue;
    if (bytes->size() == 1) file_.options.byte_id[static_cast<uint8_t>((*bytes)[0])] = token.id;
    if (file_.options.ignore_merges) words.emplace(*bytes, token.id);
  }
  return BpeModel(file_.options, file_.merges, std::move(words));
}

AddedTokenMatcher BpeTokenizer::make_matcher(bool normalized) const {
  std::vector<AddedToken> tokens;
  std::vector<std::string> contents;
  std::string buffer;
  for (const AddedToken& token : file_.added) {
    if (token.normalized != normalized) continue;
    tokens.push_back(token);
    contents.emplace_back(normalized ? normalize(file_.normal_forms, token.content, &buffer)
                                     : std::string_view(token.content));
  }
  return AddedTokenMatcher(tokens, contents);
}

// False if an added token could reach across a cut between a letter or digit and a space, or look
// across one.
bool BpeTokenizer::added_tokens_allow_cuts() const {
  std::string buffer;
  for (const AddedToken& token : file_.added) {
    for (const std::string_view c :
         {std::string_view(token.content), normalize(file_.normal_forms, token.content, &buffer)}) {
      if (c.empty()) continue;
      if (token.rstrip && is_ascii_alnum(c.back())) return false;
      if (token.single_word && is_cut_space(c.front())) return false;
      for (size_t i = 0; i + 1 < c.size(); ++i) {
        if (is_ascii_alnum(c[i]) && is_cut_space(c[i + 1])) return false;
      }
    }
  }
  return true;
}

uint64_t BpeTokenizer::hash_all() const {
  Hash hash;
  for (const BpeFile::Token& token : file_.vocabulary) {
    hash.add(static_cast<uint64_t>(token.id));
    hash.add(token.written);
  }
  for (const Merge& m : file_.merges) {
    hash.add(static_cast<uint64_t>(m.left));
    hash.add(static_cast<uint64_t>(m.right));
  }
  for (const AddedToken& t : file_.added) {
    hash.add(static_cast<uint64_t>(t.id));
    hash.add(t.content);
    // Whether a content is looked for before or after normalisation decides nothing without one.
    const bool normalized = t.normalized && !file_.normal_forms.empty();
    hash.add(fmt::format("{}{}{}{}{}", t.special, t.lstrip, t.rstrip, t.single_word, normalized));
  }
  for (const NormalForm form : file_.normal_forms) hash.add(normal_form_name(form));
  hash.add(file_.pre_tokenizer.describe());
  const BpeOptions& o = file_.options;
  hash.add(fmt::format("{} {} {} {}", o.unknown_id, o.fuse_unknown, o.ignore_merges,
                       file_.byte_fallback));
  for (const std::vector<int32_t>* ids : {&file_.prefix_ids, &file_.suffix_ids}) {
    hash.add(ids->size());
    for (const int32_t id : *ids) hash.add(static_cast<uint64_t>(id));
  }
  return hash.value();
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  return encode_with(text, {});
}

std::vector<int32_t> BpeTokenizer::encode_with(std::string_view text,
                                               const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (options.add_special) ids = file_.prefix_ids;
  std::string valid;
  if (valid_utf8_prefix(text) < text.size()) {
    append_valid_utf8(text, true, &valid);
    text = valid;
  }
  BorrowedCache cache(model_);
  std::string buffer;
  if (raw_matcher_.empty()) {
    encode_normalized(normalize(file_.normal_forms, text, &buffer), options.parse_special,
                      cache.get(), &ids);
  } else {
    std::vector<TextPart> parts;
    raw_matcher_.split(text, options.parse_special, &parts);
    for (const TextPart& part : parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const std::string_view piece = text.substr(part.begin, part.end - part.begin);
      encode_normalized(normalize(file_.normal_forms, piece, &buffer), options.parse_special,
                        cache.get(), &ids);
    }
  }
  if (options.add_special) {
    ids.insert(ids.end(), file_.suffix_ids.begin(), file_.suffix_ids.end());
  }
  return ids;
}

void BpeTokenizer::encode_normalized(std::string_view text, bool parse_special,
                                     BpeModel::Cache* cache, std::vector<int32_t>* ids) const {
  if (normalized_matcher_.empty()) {
    encode_words(text, cache, ids);
    return;
  }
  std::vector<TextPart> parts;
  normalized_matcher_.split(text, parse_special, &parts);
  for (const TextPart& part : parts) {
    if (part.id >= 0) {
      ids->push_back(part.id);
    } else {
      encode_words(text.substr(part.begin, part.end - part.begin), cache, ids);
    }
  }
}

void BpeTokenizer::encode_words(std::string_view text, BpeModel::Cache* cache,
                                std::vector<int32_t>* ids) const {
  std::string prefixed;
  if (file_.pre_tokenizer.adds_prefix_space() && !text.empty() && text[0] != ' ') {
    prefixed = " " + std::string(text);
    text = prefixed;
  }
  const SplitPattern pattern = file_.pre_tokenizer.fast_pattern();
  if (pattern == SplitPattern::kOther) {
    std::deque<std::string> storage;
    std::vector<std::string_view> words;
    file_.pre_tokenizer.split(text, &storage, &words);
    for (const std::string_view word : words) model_.encode(word, 0, word.size(), cache, ids);
    return;
  }
  const CharTable& table = CharTable::get();
  for (size_t at = 0; at < text.size();) {
    const size_t end = piece_end(pattern, table, text, at);
    model_.encode(text, at, end, cache, ids);
    at = end;
  }
}

std::string BpeTokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size_) {
    fail(ErrorCode::kInvalidArgument,
         "[tokenizer] expected an id in 0..{}, got {}; use the tokenizer of the model",
         vocab_size_ - 1, id);
  }
  const auto at = static_cast<size_t>(id);
  const size_t begin = at == 0 ? 0 : bytes_end_[at - 1];
  return bytes_.substr(begin, bytes_end_[at] - begin);
}

int32_t BpeTokenizer::id_of(std::string_view content) const {
  const auto found = id_of_.find(std::string(content));
  return found == id_of_.end() ? -1 : found->second;
}

bool BpeTokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size_ && special_[static_cast<size_t>(id)];
}

size_t BpeTokenizer::safe_cut(std::string_view text, const EncodeOptions&) const {
  if (!may_cut_) return 0;
  const bool space_only = file_.pre_tokenizer.adds_prefix_space();
  for (size_t at = text.size(); at-- > 1;) {
    const bool space = space_only ? text[at] == ' ' : is_cut_space(text[at]);
    if (space && is_ascii_alnum(text[at - 1])) return at;
  }
  return 0;
}

}  // namespace mamba
