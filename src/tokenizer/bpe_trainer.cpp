// SPDX-License-Identifier: Apache-2.0
// Learning of merges: counts of pairs are kept up to date word by word, and a heap whose entries
// may be out of date (they are corrected when they come up) finds the most frequent pair.
#include "tokenizer/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <set>

#include "base/check.h"
#include "base/utf8.h"
#include "tokenizer/byte_chars.h"

namespace mamba {
namespace {

constexpr int64_t kMaxVocabulary = int64_t{1} << 20;
constexpr size_t kBlock = size_t{1} << 20;  // bytes held before they are cut and counted
constexpr int64_t kProgressEvery = 64;      // merges

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

struct Candidate {
  int64_t count;
  uint64_t pair;
  // The largest count comes first, among equals the smallest pair.
  bool operator<(const Candidate& o) const {
    return count != o.count ? count < o.count : pair > o.pair;
  }
};

// The 256 bytes in the order of the characters that stand for them.
std::vector<uint8_t> bytes_in_order() {
  std::vector<uint8_t> bytes(256);
  for (size_t i = 0; i < 256; ++i) bytes[i] = static_cast<uint8_t>(i);
  std::sort(bytes.begin(), bytes.end(),
            [](uint8_t a, uint8_t b) { return char_of_byte(a) < char_of_byte(b); });
  return bytes;
}

void check(const BpeTrainOptions& options) {
  const int64_t least = 256 + static_cast<int64_t>(options.special.size());
  if (options.vocab_size < least || options.vocab_size > kMaxVocabulary) {
    fail(ErrorCode::kInvalidArgument,
         "[--vocab-size] expected {}..{} (256 bytes and {} special tokens at least), got {}", least,
         kMaxVocabulary, options.special.size(), options.vocab_size);
  }
  std::set<std::string> seen;
  for (const std::string& token : options.special) {
    const bool valid =
        !token.empty() && token.size() <= 1000 && valid_utf8_prefix(token) == token.size();
    if (!valid || !seen.insert(token).second) {
      fail(ErrorCode::kInvalidArgument,
           "[--special] expected different texts of 1 to 1000 bytes of UTF-8, got '{}'",
           printable(token));
    }
    const std::optional<std::string> byte = from_byte_chars(token);
    if (byte && byte->size() == 1) {
      fail(ErrorCode::kInvalidArgument,
           "[--special] expected more than the one character '{}', which stands for a byte",
           printable(token));
    }
  }
}

}  // namespace

size_t BpeTrainer::PairHash::operator()(uint64_t pair) const {
  pair *= 0x9e3779b97f4a7c15u;
  return pair ^ pair >> 32;
}

BpeTrainer::BpeTrainer(const BpeTrainOptions& options) : options_(options) {
  check(options);
  BpeFile file;
  std::vector<std::string> contents = options.special;
  for (const std::string& token : options.special) {
    AddedToken added;
    added.id = static_cast<int32_t>(written_.size());
    added.content = token;
    added.special = true;
    added.normalized = false;
    file.added.push_back(added);
    written_.push_back(token);
  }
  for (const uint8_t byte : bytes_in_order()) {
    const char c = static_cast<char>(byte);
    file.vocabulary.push_back({static_cast<int32_t>(written_.size()), to_byte_chars({&c, 1})});
    written_.push_back(file.vocabulary.back().written);
  }
  for (size_t id = 0; id < written_.size(); ++id) id_of_[written_[id]] = static_cast<int32_t>(id);
  special_matcher_ = std::make_unique<AddedTokenMatcher>(file.added, contents);
  cutter_ = std::make_unique<BpeTokenizer>(std::move(file));
}

void BpeTrainer::add(std::string_view piece) {
  held_ += piece;
  if (held_.size() < kBlock) return;
  const size_t cut = cutter_->safe_cut(held_, {});
  count_words(std::string_view(held_).substr(0, cut));
  held_.erase(0, cut);
}

void BpeTrainer::end_text() {
  count_words(held_);
  held_.clear();
}

void BpeTrainer::count_words(std::string_view text) {
  std::string valid;
  if (valid_utf8_prefix(text) < text.size()) {
    append_valid_utf8(text, true, &valid);
    text = valid;
  }
  const CharTable& table = CharTable::get();
  std::vector<TextPart> parts;
  special_matcher_->split(text, true, &parts);
  for (const TextPart& part : parts) {
    if (part.id >= 0) continue;
    const std::string_view piece = text.substr(part.begin, part.end - part.begin);
    for (size_t at = 0; at < piece.size();) {
      const size_t end = gpt2_piece_end(table, piece, at);
      const std::string_view word = piece.substr(at, end - at);
      const auto found = counts_.find(word);
      if (found != counts_.end()) {
        ++found->second;
      } else {
        counts_.emplace(word, 1);
      }
      at = end;
    }
  }
}

void BpeTrainer::lay_out_words() {
  const auto first_byte = static_cast<int32_t>(options_.special.size());
  std::array<int32_t, 256> id_of_byte;
  const std::vector<uint8_t> order = bytes_in_order();
  for (size_t i = 0; i < order.size(); ++i) {
    id_of_byte[order[i]] = first_byte + static_cast<int32_t>(i);
  }
  for (const auto& [word, count] : counts_) {
    const auto index = static_cast<uint32_t>(words_.size());
    words_.push_back({symbols_.size(), static_cast<uint32_t>(word.size()), count});
    for (const char c : word) symbols_.push_back(id_of_byte[static_cast<uint8_t>(c)]);
    const int32_t* s = symbols_.data() + words_.back().begin;
    for (size_t i = 0; i + 1 < word.size(); ++i) change(s[i], s[i + 1], count, index);
  }
  grown_.clear();
}

void BpeTrainer::change(int32_t left, int32_t right, int64_t by, uint32_t word) {
  const uint64_t key = pair_of(left, right);
  Pair& pair = pairs_[key];
  pair.count += by;
  if (by <= 0) return;
  if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
  grown_.push_back(key);
}

int32_t BpeTrainer::result_of(int32_t left, int32_t right) {
  const std::string both =
      written_[static_cast<size_t>(left)] + written_[static_cast<size_t>(right)];
  const auto [found, is_new] = id_of_.try_emplace(both, static_cast<int32_t>(written_.size()));
  if (is_new) written_.push_back(both);
  return found->second;
}

// Merges the pair in each word that may have it, and adjusts the counts around.
void BpeTrainer::merge(int32_t left, int32_t right, int32_t result, std::vector<uint32_t>* words) {
  std::sort(words->begin(), words->end());
  words->erase(std::unique(words->begin(), words->end()), words->end());
  for (const uint32_t index : *words) {
    Word& word = words_[index];
    int32_t* s = symbols_.data() + word.begin;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < word.length; ++i) {
      if (i + 1 >= word.length || s[i] != left || s[i + 1] != right) {
        s[kept++] = s[i];
        continue;
      }
      if (kept > 0) {
        change(s[kept - 1], left, -word.frequency, index);
        change(s[kept - 1], result, word.frequency, index);
      }
      if (i + 2 < word.length) {
        change(right, s[i + 2], -word.frequency, index);
        change(result, s[i + 2], word.frequency, index);
      }
      s[kept++] = result;
      ++i;
    }
    word.length = kept;
  }
}

std::string BpeTrainer::train(const std::function<bool(int64_t)>& progress) {
  if (counts_.empty()) {
    fail(ErrorCode::kBadFile, "[--data] expected text to learn from, got none; give a larger file");
  }
  lay_out_words();
  std::priority_queue<Candidate> heap;
  for (const auto& [key, pair] : pairs_) heap.push({pair.count, key});
  int64_t steps = 0;
  while (vocab_size() < options_.vocab_size && !heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Pair& pair = pairs_[top.pair];
    if (pair.count != top.count) {
      if (pair.count > 0) heap.push({pair.count, top.pair});
      continue;
    }
    if (top.count < std::max<int64_t>(1, options_.min_frequency)) break;
    if (steps++ % kProgressEvery == 0 && progress && !progress(vocab_size())) {
      fail(ErrorCode::kCancelled, "interrupted");
    }
    const auto left = static_cast<int32_t>(top.pair >> 32);
    const auto right = static_cast<int32_t>(top.pair & 0xffffffffu);
    const int32_t result = result_of(left, right);
    // A pair comes up again where another merge made its left or right token a second way.
    if (!pair.merged) merges_.emplace_back(left, right);
    pair.merged = true;
    std::vector<uint32_t> words = std::move(pair.words);
    pair.words.clear();
    grown_.clear();
    merge(left, right, result, &words);
    pairs_[top.pair].count = 0;
    std::sort(grown_.begin(), grown_.end());
    grown_.erase(std::unique(grown_.begin(), grown_.end()), grown_.end());
    for (const uint64_t key : grown_) {
      const int64_t count = pairs_[key].count;
      if (count > 0) heap.push({count, key});
    }
  }
  return to_json();
}

std::string BpeTrainer::to_json() const {
  using Out = nlohmann::ordered_json;
  const Out byte_level = {{"type", "ByteLevel"},
                          {"add_prefix_space", false},
                          {"trim_offsets", true},
                          {"use_regex", true}};
  Out added = Out::array(), merges = Out::array();
  for (size_t id = 0; id < options_.special.size(); ++id) {
    added.push_back({{"id", id},
                     {"content", options_.special[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  for (const auto& [left, right] : merges_) {
    merges.push_back(written_[static_cast<size_t>(left)] + " " +
                     written_[static_cast<size_t>(right)]);
  }
  // An object of this library keeps its order by searching all keys for each new one.
  std::string vocabulary = "{";
  for (size_t id = 0; id < written_.size(); ++id) {
    vocabulary += fmt::format("{}{}:{}", id == 0 ? "" : ",", Out(written_[id]).dump(), id);
  }
  vocabulary += "}";
  const Out file = {{"version", "1.0"},
                    {"truncation", nullptr},
                    {"padding", nullptr},
                    {"added_tokens", added},
                    {"normalizer", nullptr},
                    {"pre_tokenizer", byte_level},
                    {"post_processor", byte_level},
                    {"decoder", byte_level},
                    {"model",
                     {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false},
                      {"vocab", "@"},
                      {"merges", merges}}}};
  std::string text = file.dump();
  const std::string mark = "\"vocab\":\"@\"";
  text.replace(text.rfind(mark), mark.size(), "\"vocab\":" + vocabulary);
  return text + "\n";
}

}  // namespace mamba
