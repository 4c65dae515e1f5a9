// SPDX-License-Identifier: Apache-2.0
// Merges by a flat hash of pairs; short words by scanning, long ones with a heap, so that no word
// takes quadratic time; frequent words from a cache of fixed size.
#include "tokenizer/bpe_model.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "base/utf8.h"
#include "tokenizer/byte_chars.h"

namespace mamba {
namespace {

constexpr uint64_t kNoPair = ~uint64_t{0};
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
// Up to here scanning all pairs after each merge is faster than a heap.
constexpr size_t kShortWord = 64;
constexpr size_t kCachedBytes = 15;                // longest word in the cache
constexpr size_t kCachedIds = 4;                   // most ids of a word in the cache
constexpr size_t kCacheEntries = size_t{1} << 16;  // 2 MiB: larger ones leave the L2 cache
constexpr size_t kIdleCaches = 64;                 // kept for threads to come

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t x) {
  x *= 0x9e3779b97f4a7c15u;
  return x ^ x >> 32;
}

}  // namespace

// Words of up to 15 bytes with up to 4 ids, each at the one place its hash says; a word takes the
// place of another. An entry is half a cache line.
class BpeModel::Cache {
 public:
  struct Key {
    uint64_t low = 0, high = 0;  // the word's bytes, its length in the highest byte
    bool operator==(const Key&) const = default;
  };
  struct Entry {
    Key key;  // count of ids in the highest nibble of key.high; zero: an empty entry
    int32_t ids[kCachedIds] = {};
  };

  Cache() : entries_(kCacheEntries) {}

  // Of `count` <= 15 bytes, of which 16 may be read if `readable` says so.
  static Key key_of(const char* word, size_t count, bool readable) {
    Key key;
    if (readable) {
      std::memcpy(&key, word, sizeof key);
      const uint64_t low_bits = count >= 8 ? ~uint64_t{0} : (uint64_t{1} << count * 8) - 1;
      const uint64_t high_bits = count <= 8 ? 0 : (uint64_t{1} << (count - 8) * 8) - 1;
      key.low &= low_bits;
      key.high &= high_bits;
    } else {
      std::memcpy(&key, word, count);
    }
    key.high |= static_cast<uint64_t>(count) << 56;
    return key;
  }
  Entry& entry(const Key& key) {
    return entries_[mix(key.low ^ std::rotl(key.high, 29) * 0xd6e8feb86659fd93u) &
                    (kCacheEntries - 1)];
  }

  std::vector<int32_t> symbols;  // scratch

 private:
  std::vector<Entry> entries_;
};
static_assert(std::endian::native == std::endian::little, "keys hold bytes from the low end up");

BpeModel::BpeModel(const BpeOptions& options, const std::vector<Merge>& merges,
                   std::unordered_map<std::string, int32_t> words)
    : options_(options), words_(std::move(words)) {
  for (const int32_t id : options_.byte_id) plain_bytes_ = plain_bytes_ && id >= 0;
  const size_t size = std::bit_ceil(std::max<size_t>(16, 2 * merges.size()));
  slots_.assign(size, {kNoPair, kNoRank, -1});
  slot_mask_ = size - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const uint64_t pair = pair_of(merge.left, merge.right);
    uint64_t at = mix(pair) & slot_mask_;
    while (slots_[at].pair != kNoPair && slots_[at].pair != pair) at = (at + 1) & slot_mask_;
    slots_[at] = {pair, static_cast<int32_t>(rank), merge.result};  // of two equal pairs the last
  }
}

void BpeModel::DropCache::operator()(Cache* cache) const { delete cache; }

BpeModel::~BpeModel() = default;

BpeModel::CachePtr BpeModel::borrow_cache() const {
  {
    const std::lock_guard lock(mutex_);
    if (!caches_.empty()) {
      CachePtr cache = std::move(caches_.back());
      caches_.pop_back();
      return cache;
    }
  }
  return CachePtr(new Cache);
}

void BpeModel::give_back(CachePtr cache) const {
  const std::lock_guard lock(mutex_);
  if (caches_.size() < kIdleCaches) caches_.push_back(std::move(cache));
}

BpeModel::Found BpeModel::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (uint64_t at = mix(pair) & slot_mask_;; at = (at + 1) & slot_mask_) {
    const Slot& slot = slots_[at];
    if (slot.pair == pair) return {slot.rank, slot.result};
    if (slot.pair == kNoPair) return {kNoRank, -1};
  }
}

void BpeModel::encode(std::string_view text, size_t begin, size_t end, Cache* cache,
                      std::vector<int32_t>* ids) const {
  const size_t count = end - begin;
  if (count > kCachedBytes) {
    encode_uncached(text.substr(begin, count), cache, ids);
    return;
  }
  Cache::Key key = Cache::key_of(text.data() + begin, count, begin + 16 <= text.size());
  Cache::Entry& entry = cache->entry(key);
  constexpr uint64_t kCountBits = uint64_t{15} << 60;
  if (entry.key.low == key.low && (entry.key.high & ~kCountBits) == key.high) {
    const size_t n = static_cast<size_t>(entry.key.high >> 60);
    ids->insert(ids->end(), entry.ids, entry.ids + n);
    return;
  }
  const size_t before = ids->size();
  encode_uncached(text.substr(begin, count), cache, ids);
  const size_t n = ids->size() - before;
  if (n > kCachedIds) return;
  key.high |= static_cast<uint64_t>(n) << 60;
  entry.key = key;
  std::copy(ids->begin() + static_cast<std::ptrdiff_t>(before), ids->end(), entry.ids);
}

void BpeModel::start(std::string_view word, std::vector<int32_t>* symbols) const {
  symbols->clear();
  if (plain_bytes_) {
    for (const char c : word) symbols->push_back(options_.byte_id[static_cast<uint8_t>(c)]);
    return;
  }
  bool after_unknown = false;
  for (const char c : word) {
    const auto byte = static_cast<uint8_t>(c);
    bool unknown = false;
    if (options_.byte_id[byte] >= 0) {
      symbols->push_back(options_.byte_id[byte]);
    } else {
      // Byte fallback writes the UTF-8 of the character that stands for the byte.
      std::string written;
      append_utf8(char_of_byte(byte), &written);
      const bool all = std::all_of(written.begin(), written.end(), [&](char w) {
        return options_.fallback_id[static_cast<uint8_t>(w)] >= 0;
      });
      for (const char w : all ? written : "") {
        symbols->push_back(options_.fallback_id[static_cast<uint8_t>(w)]);
      }
      unknown = !all && options_.unknown_id >= 0;
      if (unknown && !(after_unknown && options_.fuse_unknown)) {
        symbols->push_back(options_.unknown_id);
      }
    }
    after_unknown = unknown;
  }
}

void BpeModel::encode_uncached(std::string_view word, Cache* cache,
                               std::vector<int32_t>* ids) const {
  if (options_.ignore_merges) {
    const auto found = words_.find(std::string(word));
    if (found != words_.end()) {
      ids->push_back(found->second);
      return;
    }
  }
  std::vector<int32_t>& symbols = cache->symbols;
  start(word, &symbols);
  if (symbols.size() <= kShortWord) {
    merge_short(&symbols);
  } else {
    merge_long(&symbols);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
}

void BpeModel::merge_short(std::vector<int32_t>* symbols) const {
  int32_t* s = symbols->data();
  size_t count = symbols->size();
  if (count < 2) return;
  Found pairs[kShortWord];  // pairs[i]: of s[i] and s[i + 1]
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = find(s[i], s[i + 1]);
  for (;;) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (count < 2 || pairs[best].rank == kNoRank) break;
    s[best] = pairs[best].result;
    std::copy(s + best + 2, s + count, s + best + 1);
    std::copy(pairs + best + 1, pairs + count - 1, pairs + best);
    --count;
    if (best > 0) pairs[best - 1] = find(s[best - 1], s[best]);
    if (best + 1 < count) pairs[best] = find(s[best], s[best + 1]);
  }
  symbols->resize(count);
}

void BpeModel::merge_long(std::vector<int32_t>* symbols) const {
  struct Candidate {
    int32_t rank;
    uint32_t at;          // of the left symbol
    int32_t left, right;  // as they were: a candidate whose symbols changed is stale
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  std::vector<int32_t>& s = *symbols;  // a symbol that was merged into its left one is -1
  const auto count = static_cast<uint32_t>(s.size());
  std::vector<uint32_t> next(count), before(count);
  std::vector<Candidate> heap;
  const auto candidate = [&](uint32_t left, uint32_t right) {
    return Candidate{find(s[left], s[right]).rank, left, s[left], s[right]};
  };
  const auto push = [&](uint32_t left, uint32_t right) {
    const Candidate c = candidate(left, right);
    if (c.rank == kNoRank) return;
    heap.push_back(c);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  for (uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    before[i] = i - 1;  // of the first one: wraps, and is never used
    if (i + 1 == count) break;
    const Candidate c = candidate(i, i + 1);
    if (c.rank != kNoRank) heap.push_back(c);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    const Candidate c = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    const uint32_t right = next[c.at];
    if (s[c.at] != c.left || right >= count || s[right] != c.right) continue;
    s[c.at] = find(c.left, c.right).result;
    s[right] = -1;
    next[c.at] = next[right];
    if (next[c.at] < count) {
      before[next[c.at]] = c.at;
      push(c.at, next[c.at]);
    }
    if (c.at > 0) push(before[c.at], c.at);
  }
  s.erase(std::remove(s.begin(), s.end(), -1), s.end());
}

}  // namespace mamba
