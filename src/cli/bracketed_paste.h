// SPDX-License-Identifier: Apache-2.0
// What a terminal says is pasted, apart from what is typed: several lines of it are no answers to
// prompts but one text.
#pragma once

#include <deque>
#include <string>
#include <string_view>

namespace mamba::cli {

// Asks a terminal to mark what is pasted, and to leave off.
inline constexpr std::string_view kPasteMarksOn = "\033[?2004h", kPasteMarksOff = "\033[?2004l";

class PasteFilter {
 public:
  // Stands in typed text where a paste ended: Ctrl-_, which is taken out where it is typed.
  static constexpr char kKey = '\x1f';

  // Takes bytes of the terminal and gives those that are typed. What may be the beginning of a mark
  // waits for the next ones. Ctrl-C ends a paste whose end does not come, and drops it.
  std::string push(std::string_view bytes);
  // The text of the first paste whose key is not dealt with, as whole UTF-8 with lines that end in
  // \n, without those behind it and without control characters other than tabs; "" if there is
  // none.
  std::string take();

 private:
  void give(std::string_view bytes, std::string* typed);

  std::string held_;   // the beginning of a mark
  std::string paste_;  // that has begun
  bool pasting_ = false;
  std::deque<std::string> pastes_;
};

}  // namespace mamba::cli
