// SPDX-License-Identifier: Apache-2.0
// Lists with commas between their items, and ranges of numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba::cli {

// The items of "a, b,c": blanks around them removed, empty ones kept.
std::vector<std::string> comma_items(const std::string& text);

// Numbers in [low, high]: "7", or a range: "a-b" each from a to b, "a-b+s" in steps of s, "a-b*m"
// times m. Throws invalid_argument naming the flag, for more than 1000 numbers too.
std::vector<int64_t> parse_int_ranges(const std::string& flag, const std::string& text, int64_t low,
                                      int64_t high);

}  // namespace mamba::cli
