// SPDX-License-Identifier: Apache-2.0
// Whole conversations -> ids as chat has them, and which of them the assistant says.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "mamba/chat_template.h"
#include "mamba/tokenizer.h"
#include "tokenizer/chat_text.h"

namespace mamba {

// Some ids of a document, and whether they have a loss.
struct ScoredIds {
  std::vector<int32_t> ids;
  bool scored = true;
};

// The value of "messages": a list of {"role": "system", "user" or "assistant", "content": text},
// with an answer of the assistant among them; other keys are ignored. Throws bad_file with `where`.
std::vector<ChatMessage> parse_messages(const Json& list, const std::string& where);

// Any number of threads may use one. Borrows the tokenizer.
class ConversationEncoder {
 public:
  // `folder` and `choice` are those of ChatTemplate::load(). Without a choice the folder's template
  // is read when it is first needed.
  ConversationEncoder(const Tokenizer& tokenizer, const std::string& folder,
                      const std::string& choice);

  // The conversation in pieces, not empty ones. An answer is scored from where chat begins to write
  // it up to what ends it there (chat_template().stops()), and is encoded apart from what is before
  // and behind it. Where the text ends with an answer that its template does not end by a mark,
  // the EOS ends it, or without one what would come next ("User:"). Throws bad_file with `where` if
  // the template refuses the conversation or leaves out all its answers.
  std::vector<ScoredIds> encode(const std::vector<ChatMessage>& messages,
                                const std::string& where) const;
  const ChatTemplate& chat_template() const;
  // Whether a conversation was encoded: only then does the template matter.
  bool used() const { return used_; }

 private:
  struct Span {
    size_t begin, end;
    std::string missing;  // of what ends it, where the text ends before
  };
  std::vector<Span> answers(const jinja::Text& written,
                            const std::vector<ChatMessage>& messages) const;
  Span whole_answer(const jinja::Text& written, size_t begin, size_t content_end) const;

  const Tokenizer* tokenizer_;
  std::string folder_, choice_;
  SpecialNames names_;
  mutable std::atomic<bool> used_ = false;
  mutable std::once_flag loaded_;
  mutable std::optional<ChatTemplate> template_;
};

}  // namespace mamba
