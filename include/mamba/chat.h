// SPDX-License-Identifier: Apache-2.0
// Conversations: a session whose context is a state that is never read again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mamba/chat_template.h"
#include "mamba/generate.h"
#include "mamba/model.h"
#include "mamba/tokenizer.h"

namespace mamba {

struct ChatSettings {
  std::string system;                         // the system prompt; empty: none
  int64_t now = 0;                            // of strftime_now, the same for the whole session
  int64_t max_undo_bytes = int64_t{1} << 30;  // states kept for undo() and regenerate()
};

struct ChatOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 512;
  std::vector<std::string> stop;  // beside the template's own
  bool ignore_eos = false;
  std::function<bool()> interrupted;              // as in GenerateOptions
  std::function<void(std::string_view)> on_text;  // the answer as it comes, in whole characters
};

struct ChatAnswer {
  std::string text;
  FinishReason finish_reason = FinishReason::kLength;
  bool dropped = false;       // interrupted before its first token: the turn does not count
  int64_t prompt_tokens = 0;  // read for this turn
  // Tokens that the state held but the template now writes otherwise, more than by spaces at the
  // ends of an answer: read again with the prompt.
  int64_t reread_tokens = 0;
  int64_t generated_tokens = 0;
  double prompt_seconds = 0, generate_seconds = 0;
};

// One conversation. Each turn reads only the tokens that it adds; states of earlier points are kept
// for undo and regenerate. Text of messages never becomes a special token, whatever it says.
// Borrows model and tokenizer.
class ChatSession {
 public:
  ChatSession(Model& model, const Tokenizer& tokenizer, ChatTemplate chat_template,
              ChatSettings settings = {});

  // Adds a message of the user and answers it. Bytes that are no UTF-8 become U+FFFD.
  ChatAnswer send(const std::string& text, const ChatOptions& options);
  // Drops the last answer and draws another: with the seed plus the number of attempts before.
  // Throws invalid_argument if there is none.
  ChatAnswer regenerate(const ChatOptions& options);
  // Forgets the last message of the user and its answer; false if there is none.
  bool undo();
  // Forgets all but the system prompt.
  void reset();
  // Another system prompt ("": none) for the same messages, which the next turn reads again.
  void set_system(const std::string& text);

  std::vector<ChatMessage> messages() const;
  int64_t turns() const;  // messages of the user
  int64_t context_tokens() const { return now_.session.tokens; }
  int64_t state_bytes() const { return now_.session.state.bytes_per_sequence(); }
  int64_t kept_bytes() const;                          // of all states kept for undo and regenerate
  uint64_t seed() const { return now_.session.seed; }  // of the last answer
  const ChatTemplate& chat_template() const { return template_; }
  // Whether the next turn goes on from the state; false where it reads messages again, as after
  // set_system() and under another template than that of a loaded conversation.
  bool goes_on() const;
  // The name of the template that the loaded conversation was held with; "" without one.
  const std::string& loaded_template() const { return loaded_template_; }

  // Messages, state, and the states that undo and regenerate need for the last turn: one
  // safetensors file, written atomically, tied to the model by its fingerprint and dtype.
  void save(const std::string& path) const;
  // Replaces the conversation by a saved one. Throws bad_file, and then changes nothing.
  void load(const std::string& path);

 private:
  struct Message {
    std::string role, content;
    std::string raw;  // the bytes of an answer, where they are no UTF-8; else empty
  };
  struct Checkpoint {
    std::shared_ptr<const Session> session;
    size_t length;  // bytes of context_ that it has read
  };
  struct Rendered;
  // Everything that a turn changes: what an interrupted or failed one goes back to.
  struct Conversation {
    std::vector<Message> messages;
    Session session;
    // The text that session stands behind, as the template writes it; spaces at the ends of answers
    // are in the state as the model wrote them.
    std::string context;
    std::vector<Checkpoint> checkpoints;  // in order of length, each a start of context
    uint64_t attempts = 0;  // answers drawn for the last message before the present one
  };

  Rendered render(const std::vector<Message>& conversation, bool add_generation_prompt) const;
  std::string next_text() const;
  // Runs one turn on the conversation as it stands; goes back to `before` if it does not count.
  ChatAnswer turn(const Conversation& before, const ChatOptions& options);
  ChatAnswer answer(const ChatOptions& options);
  void start_over();
  void keep();
  void back_to(size_t length);
  void restore(size_t checkpoint);
  bool read(const Rendered& target, const ChatOptions& options, ChatAnswer* answer);
  void settle(std::string bytes, const std::string& text);
  size_t written_end(const std::string& prompt, const std::string& bytes,
                     const std::string& content, const std::string& written) const;
  bool cuts_cleanly(const Rendered& target, size_t at) const;

  Model* model_;
  const Tokenizer* tokenizer_;
  Generator generator_;
  ChatTemplate template_;
  ChatSettings settings_;
  std::vector<std::pair<std::string, int32_t>> specials_;  // longest first
  Conversation now_;
  std::string loaded_template_;
};

}  // namespace mamba
