// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE: added tokens, normal form, words, merges; and what a file must say to make one.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "mamba/tokenizer.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe_model.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"

namespace mamba {

// The content of a tokenizer's files, checked.
struct BpeFile {
  struct Token {
    int32_t id;
    std::string written;  // as the vocabulary has it
  };
  std::string name;               // the path given
  std::vector<Token> vocabulary;  // ids differ, and so do the written forms
  std::vector<Merge> merges;      // ids of the vocabulary
  BpeOptions options;             // its byte_id and fallback_id are found from the vocabulary
  bool byte_fallback = false;
  std::vector<AddedToken> added;  // ids differ
  std::vector<NormalForm> normal_forms;
  PreTokenizer pre_tokenizer = PreTokenizer::gpt2();
  std::vector<int32_t> prefix_ids, suffix_ids;
  std::string bos_token, eos_token;  // contents; empty: none
};

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeFile file);

  const std::string& name() const override { return file_.name; }
  int64_t vocab_size() const override { return vocab_size_; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::vector<int32_t> encode_with(std::string_view text,
                                   const EncodeOptions& options) const override;
  std::string token_bytes(int32_t id) const override;
  int32_t id_of(std::string_view content) const override;
  bool is_special(int32_t id) const override;
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }
  std::vector<int32_t> prefix_ids() const override { return file_.prefix_ids; }
  std::vector<int32_t> suffix_ids() const override { return file_.suffix_ids; }
  uint64_t fingerprint() const override { return fingerprint_; }
  size_t safe_cut(std::string_view text, const EncodeOptions& options) const override;

 private:
  void place_tokens();
  BpeModel make_model();
  AddedTokenMatcher make_matcher(bool normalized) const;
  bool added_tokens_allow_cuts() const;
  uint64_t hash_all() const;
  void encode_normalized(std::string_view text, bool parse_special, BpeModel::Cache* cache,
                         std::vector<int32_t>* ids) const;
  void encode_words(std::string_view text, BpeModel::Cache* cache, std::vector<int32_t>* ids) const;

  BpeFile file_;
  int64_t vocab_size_ = 0;
  std::string bytes_;                               // of all tokens, one behind the other
  std::vector<uint32_t> bytes_end_;                 // (vocab_size) their ends in bytes_
  std::vector<bool> special_;                       // (vocab_size)
  std::unordered_map<std::string, int32_t> id_of_;  // by bytes
  int32_t bos_id_ = -1, eos_id_ = -1;
  BpeModel model_;
  AddedTokenMatcher raw_matcher_, normalized_matcher_;
  bool may_cut_ = false;
  uint64_t fingerprint_ = 0;
};

}  // namespace mamba
