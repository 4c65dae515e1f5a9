// SPDX-License-Identifier: Apache-2.0
// The classes of characters, unpacked once from the ranges.
#include "tokenizer/char_class.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <span>

namespace mamba {
namespace {

struct CodeRange {
  uint32_t first, last;
};

#include "tokenizer/unicode_ranges.inc"

void mark(std::span<const CodeRange> ranges, CharClass as, std::vector<uint8_t>* all) {
  for (const CodeRange& range : ranges) {
    for (uint32_t c = range.first; c <= range.last; ++c) (*all)[c] |= as;
  }
}

}  // namespace

CharTable::CharTable() {
  std::vector<uint8_t> all(0x110000);
  mark(kLetterRanges, kLetter, &all);
  mark(kNumberRanges, kNumber, &all);
  mark(kSpaceRanges, kSpace, &all);
  mark(kWordRanges, kWord, &all);
  mark(kPunctuationRanges, kPunctuation, &all);
  std::map<std::vector<uint8_t>, uint16_t> known;
  for (size_t block = 0; block < block_of_.size(); ++block) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(block * 256);
    const auto [found, is_new] = known.try_emplace(std::vector<uint8_t>(begin, begin + 256),
                                                   static_cast<uint16_t>(known.size()));
    block_of_[block] = found->second;
    if (is_new) blocks_.insert(blocks_.end(), begin, begin + 256);
  }
}

const CharTable& CharTable::get() {
  static const CharTable table;
  return table;
}

}  // namespace mamba
