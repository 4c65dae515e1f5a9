// SPDX-License-Identifier: Apache-2.0
// The windows in which a text is scored, read from a source once at constant memory.
#pragma once

#include <cstdint>
#include <functional>

#include "mamba/evaluate.h"

namespace mamba {

// Tokens to run: all but the last are inputs, and the targets are first_target..length - 1.
struct Window {
  const int32_t* ids = nullptr;    // (length)
  const int32_t* bytes = nullptr;  // (length) bytes of text of each
  int64_t length = 0;              // >= 2
  int64_t first_target = 1;        // 1..length; those before it are scored already
  bool fresh = true;               // false: the state goes on from the window before
};

// Calls visit(window) for each window of the text; returns the tokens read. `where` begins
// messages. Throws invalid_argument for options out of range and for a text without a target.
int64_t visit_windows(const TokenSource& source, const PerplexityOptions& options,
                      const char* where, const std::function<void(const Window&)>& visit);

// Throws cancelled if the caller's progress function says to stop.
void report_progress(const PerplexityOptions& options, const char* where, int64_t scored);

}  // namespace mamba
