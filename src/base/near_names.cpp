// SPDX-License-Identifier: Apache-2.0
// What a mistyped name may have meant.
#include "base/near_names.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/json.h"

namespace mamba {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string near_names(std::string_view name, const std::vector<std::string_view>& names) {
  constexpr size_t kLongest = 200;  // bounds the work for hostile names; real ones are shorter
  std::vector<std::pair<size_t, std::string_view>> ranked;
  for (const std::string_view other : names) {
    ranked.emplace_back(edit_distance(name.substr(0, kLongest), other.substr(0, kLongest)), other);
  }
  const size_t count = std::min<size_t>(3, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count),
                    ranked.end());
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    out += (i == 0 ? "" : ", ") + printable(ranked[i].second, kLongest);
  }
  return out;
}

}  // namespace mamba
