// SPDX-License-Identifier: Apache-2.0
// One line about the progress of a long command on standard error: redrawn in place on a terminal,
// a line of its own every five seconds otherwise.
#pragma once

#include <chrono>
#include <functional>
#include <string>

namespace mamba::cli {

class StatusLine {
 public:
  explicit StatusLine(bool terminal);
  ~StatusLine() { clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  // Calls `text` only when it is time to show it.
  void update(const std::function<std::string()>& text);
  void clear();  // takes a drawn line away

 private:
  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace mamba::cli
