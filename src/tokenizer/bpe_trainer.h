// SPDX-License-Identifier: Apache-2.0
// Learns a byte-level BPE vocabulary from text, with GPT-2's words and no normalisation, so that
// every text comes back byte for byte.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/bpe_tokenizer.h"

namespace mamba {

struct BpeTrainOptions {
  int64_t vocab_size = 0;                 // special tokens and the 256 bytes included
  int64_t min_frequency = 2;              // pairs that occur less often are not merged
  std::vector<std::string> special = {};  // ids 0, 1, ...; the first ends a text
};

// Ids: the special tokens, the 256 bytes in the order of the characters they are written as, then
// one for each merge. The next merge is the pair that occurs most often within words; among equals
// the one whose left id is smaller, then whose right id is. So the result depends on the counts of
// words alone: not on their order, nor on how the text was cut into files.
class BpeTrainer {
 public:
  // Throws invalid_argument naming the option.
  explicit BpeTrainer(const BpeTrainOptions& options);

  // Counts the words of a text that comes in pieces.
  void add(std::string_view piece);
  // Ends a text: the next piece begins another.
  void end_text();

  int64_t distinct_words() const { return static_cast<int64_t>(counts_.size()); }
  // Learns, and returns the text of the tokenizer.json. Throws bad_file if no word was counted.
  // `progress` gets the size of the vocabulary so far and stops the learning by returning false
  // (error cancelled).
  std::string train(const std::function<bool(int64_t)>& progress);
  // Tokens of the vocabulary that was learned; fewer than asked for where the text has no more.
  int64_t vocab_size() const { return static_cast<int64_t>(written_.size()); }

 private:
  struct Word {
    size_t begin;     // into symbols_
    uint32_t length;  // symbols left
    int64_t frequency;
  };
  struct Pair {
    int64_t count = 0;
    std::vector<uint32_t> words;  // that may have it, some of them twice
    bool merged = false;
  };
  struct StringHash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  struct PairHash {
    size_t operator()(uint64_t pair) const;
  };

  void count_words(std::string_view text);
  void lay_out_words();
  void change(int32_t left, int32_t right, int64_t by, uint32_t word);
  void merge(int32_t left, int32_t right, int32_t result, std::vector<uint32_t>* words);
  int32_t result_of(int32_t left, int32_t right);
  std::string to_json() const;

  BpeTrainOptions options_;
  std::unique_ptr<BpeTokenizer> cutter_;  // of bytes and the special tokens: knows where to cut
  std::unique_ptr<AddedTokenMatcher> special_matcher_;
  std::string held_;
  std::unordered_map<std::string, int64_t, StringHash, std::equal_to<>> counts_;

  std::vector<int32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Pair, PairHash> pairs_;
  std::vector<uint64_t> grown_;       // pairs whose count grew by the current merge
  std::vector<std::string> written_;  // id -> as the file has it
  std::unordered_map<std::string, int32_t> id_of_;
  std::vector<std::pair<int32_t, int32_t>> merges_;
};

}  // namespace mamba
