// SPDX-License-Identifier: Apache-2.0
// Byte pair encoding of one word: symbols for its bytes, then merges of neighbours, the merge
// learned first before the others. What cuts text into words is pre_tokenizer.h.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mamba {

struct Merge {
  int32_t left, right, result;
};

// What a file says about its BPE model.
struct BpeOptions {
  int32_t unknown_id = -1;             // for bytes that have no token; -1: such bytes vanish
  bool fuse_unknown = false;           // one unknown token for a run of such bytes
  bool ignore_merges = false;          // a word that is a token is that token, whatever the merges
  std::array<int32_t, 256> byte_id{};  // the token of each byte, -1 if there is none
  std::array<int32_t, 256> fallback_id{};  // the token <0xNN> with byte_fallback, else -1
};

// Immutable, but for caches that no result depends on: any number of threads may use one.
class BpeModel {
 public:
  // `merges` in the order in which they were learned; `words` (for ignore_merges) by their bytes.
  BpeModel(const BpeOptions& options, const std::vector<Merge>& merges,
           std::unordered_map<std::string, int32_t> words);
  ~BpeModel();

  class Cache;  // of words seen before
  struct DropCache {
    void operator()(Cache* cache) const;
  };
  using CachePtr = std::unique_ptr<Cache, DropCache>;
  // A cache for one thread, to be given back.
  CachePtr borrow_cache() const;
  void give_back(CachePtr cache) const;

  // Appends the ids of the word text[begin, end), which is not empty.
  void encode(std::string_view text, size_t begin, size_t end, Cache* cache,
              std::vector<int32_t>* ids) const;

 private:
  struct Slot {
    uint64_t pair;  // left and right id, or kNoPair
    int32_t rank;
    int32_t result;
  };
  struct Found {
    int32_t rank, result;  // rank kNoRank: no such merge
  };

  Found find(int32_t left, int32_t right) const;
  // The symbols before any merge.
  void start(std::string_view word, std::vector<int32_t>* symbols) const;
  void encode_uncached(std::string_view word, Cache* cache, std::vector<int32_t>* ids) const;
  void merge_short(std::vector<int32_t>* symbols) const;
  void merge_long(std::vector<int32_t>* symbols) const;

  BpeOptions options_;
  bool plain_bytes_ = true;  // every byte has a token
  std::unordered_map<std::string, int32_t> words_;
  std::vector<Slot> slots_;  // open addressing, a power of two
  uint64_t slot_mask_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<CachePtr> caches_;
};

}  // namespace mamba
