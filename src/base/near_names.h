// SPDX-License-Identifier: Apache-2.0
// What a mistyped name may have meant.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

// Letters to add, drop or change to make b of a (Levenshtein).
size_t edit_distance(std::string_view a, std::string_view b);

// Up to three of `names` that look most like `name`, printable, "a, b, c"; "" if there are none.
std::string near_names(std::string_view name, const std::vector<std::string_view>& names);

}  // namespace mamba
