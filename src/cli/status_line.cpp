// SPDX-License-Identifier: Apache-2.0
// One line about the progress of a long command.
#include "cli/status_line.h"

#include <cstdio>

namespace mamba::cli {
namespace {

constexpr std::chrono::milliseconds kRedraw{100}, kLine{5000};

void put(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace

StatusLine::StatusLine(bool terminal)
    : terminal_(terminal), last_(std::chrono::steady_clock::now()) {}

void StatusLine::update(const std::function<std::string()>& text) {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < (terminal_ ? kRedraw : kLine)) return;
  last_ = now;
  drawn_ = terminal_;
  put(terminal_ ? "\r\033[K" + text() : text() + "\n");
}

void StatusLine::clear() {
  if (drawn_) put("\r\033[K");
  drawn_ = false;
}

}  // namespace mamba::cli
