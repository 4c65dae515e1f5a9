// SPDX-License-Identifier: Apache-2.0
// Reads lists and ranges of numbers.
#include "cli/number_lists.h"

#include <algorithm>

#include "base/check.h"
#include "cli/args.h"

namespace mamba::cli {

std::vector<std::string> comma_items(const std::string& text) {
  std::vector<std::string> items;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    size_t first = at, end = comma;
    while (first < end && text[first] == ' ') ++first;
    while (first < end && text[end - 1] == ' ') --end;
    items.push_back(text.substr(first, end - first));
    at = comma + 1;
  }
  return items;
}

std::vector<int64_t> parse_int_ranges(const std::string& flag, const std::string& text, int64_t low,
                                      int64_t high) {
  constexpr size_t kMost = 1000;
  std::vector<int64_t> values;
  const auto add = [&](int64_t value) {
    if (values.size() == kMost) {
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected at most {} numbers, got more with '{}'; take larger steps", flag, kMost,
           text);
    }
    values.push_back(value);
  };
  for (const std::string& item : comma_items(text)) {
    const size_t dash = item.find('-', 1);
    if (dash == std::string::npos) {
      add(parse_int(flag, item, low, high));
      continue;
    }
    const size_t sign = std::min(item.find_first_of("+*", dash), item.size());
    const int64_t first = parse_int(flag, item.substr(0, dash), low, high);
    const int64_t last = parse_int(flag, item.substr(dash + 1, sign - dash - 1), low, high);
    const bool times = sign < item.size() && item[sign] == '*';
    const int64_t by =
        sign < item.size() ? parse_int(flag, item.substr(sign + 1), times ? 2 : 1, high) : 1;
    if (last < first || (times && first == 0)) {
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected a range from a smaller number{} to a larger one, got '{}'", flag,
           times ? " above 0" : "", item);
    }
    for (int64_t v = first; v <= last;) {
      add(v);
      if (times ? v > last / by : v > last - by) break;
      v = times ? v * by : v + by;
    }
  }
  return values;
}

}  // namespace mamba::cli
