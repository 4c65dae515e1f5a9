// SPDX-License-Identifier: Apache-2.0
// Cuts a stream of tokens into windows.
#include "eval/windows.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace mamba {
namespace {

constexpr int64_t kMaxWindow = int64_t{1} << 24;

// The tokens of one window and what they stand for.
struct Tokens {
  std::vector<int32_t> ids, bytes;

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  // Reads until `count` tokens are there or the source ends; returns how many came.
  int64_t fill(const TokenSource& source, int64_t count) {
    const int64_t before = size();
    while (size() < count) {
      const int64_t at = size();
      ids.resize(static_cast<size_t>(count));
      bytes.resize(static_cast<size_t>(count));
      const int64_t got = source(ids.data() + at, bytes.data() + at, count - at);
      MAMBA_CHECK(got >= 0 && got <= count - at);
      ids.resize(static_cast<size_t>(at + got));
      bytes.resize(static_cast<size_t>(at + got));
      if (got == 0) break;
    }
    return size() - before;
  }
  void drop_front(int64_t count) {
    ids.erase(ids.begin(), ids.begin() + count);
    bytes.erase(bytes.begin(), bytes.begin() + count);
  }
  Window window(int64_t first_target, bool fresh) const {
    return {ids.data(), bytes.data(), size(), first_target, fresh};
  }
};

int64_t visit_carried(const TokenSource& source, const PerplexityOptions& options,
                      const std::function<void(const Window&)>& visit) {
  Tokens tokens;
  int64_t total = 0;
  for (bool fresh = true;; fresh = false) {
    // The last token of a chunk is a target there and the first input of the next chunk.
    const int64_t got = tokens.fill(source, options.chunk + 1);
    total += got;
    if (got == 0 || tokens.size() < 2) break;
    visit(tokens.window(1, fresh));
    tokens.drop_front(tokens.size() - 1);
  }
  return total;
}

int64_t visit_separate(const TokenSource& source, const PerplexityOptions& options,
                       const std::function<void(const Window&)>& visit) {
  Tokens tokens;
  int64_t total = 0;
  int64_t first_target = 1;  // of the window: all before it is scored already
  for (int64_t windows = 0; options.max_windows == 0 || windows < options.max_windows; ++windows) {
    const int64_t got = tokens.fill(source, options.window);
    total += got;
    // A window without new tokens has nothing to score; one of a single token has no target.
    if (got == 0 || tokens.size() < 2) break;
    if (options.drop_tail && tokens.size() < options.window) break;
    visit(tokens.window(first_target, true));
    if (tokens.size() < options.window) break;
    tokens.drop_front(options.stride);
    first_target = std::max<int64_t>(1, options.window - options.stride);
  }
  return total;
}

}  // namespace

int64_t visit_windows(const TokenSource& source, const PerplexityOptions& options,
                      const char* where, const std::function<void(const Window&)>& visit) {
  const auto expect = [where](const char* what, int64_t low, int64_t high, int64_t got) {
    if (got >= low && got <= high) return;
    fail(ErrorCode::kInvalidArgument, "[{}] expected {} in {}..{}, got {}", where, what, low, high,
         got);
  };
  if (options.carry_state) {
    expect("chunk", 1, kMaxWindow, options.chunk);
  } else {
    expect("window", 2, kMaxWindow, options.window);
    expect("stride", 1, options.window, options.stride);
    expect("max_windows", 0, INT64_MAX, options.max_windows);
  }
  const int64_t total = options.carry_state ? visit_carried(source, options, visit)
                                            : visit_separate(source, options, visit);
  const int64_t least = options.drop_tail && !options.carry_state ? options.window : 2;
  if (total < least) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a text of at least {} tokens, got {}; give a longer text", where, least,
         total);
  }
  return total;
}

void report_progress(const PerplexityOptions& options, const char* where, int64_t scored) {
  if (!options.progress || options.progress(scored)) return;
  fail(ErrorCode::kCancelled, "[{}] stopped after {} tokens", where, scored);
}

}  // namespace mamba
