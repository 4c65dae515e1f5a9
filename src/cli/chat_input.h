// SPDX-License-Identifier: Apache-2.0
// Messages of the user of chat: a line editor with history on a terminal, lines otherwise.
#pragma once

#include <memory>
#include <string>

namespace mamba::cli {

class ChatInput {
 public:
  enum class Result { kText, kEnd, kInterrupted };

  virtual ~ChatInput() = default;
  // One line without its end.
  virtual Result line(const std::string& prompt, std::string* text) = 0;
  virtual bool is_terminal() const = 0;

  // One message: a line that ends in "\" goes on with the next one, and one that begins with """
  // up to a line that ends so.
  Result message(std::string* text);
};

// `history`: its file, empty for none.
std::unique_ptr<ChatInput> open_chat_input(const std::string& history, bool color);

// The default file of the history: $XDG_STATE_HOME or ~/.local/state, empty without either.
std::string default_history_file();

}  // namespace mamba::cli
