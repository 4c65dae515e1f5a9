// SPDX-License-Identifier: Apache-2.0
// Finds the answers in the text of a conversation.
#include "tokenizer/conversation.h"

#include <algorithm>
#include <string_view>

#include "base/check.h"
#include "tokenizer/chat_template.h"

namespace mamba {
namespace {

// Of strftime_now: data must be the same at every start of a run.
constexpr int64_t kNow = 0;

// Every answer takes one more rendering of all that is before it.
constexpr size_t kMaxMessages = 1000;

bool ends_by_stop(const std::string& text, const std::vector<std::string>& stops) {
  return std::any_of(stops.begin(), stops.end(),
                     [&](const std::string& stop) { return text.ends_with(stop); });
}

}  // namespace

std::vector<ChatMessage> parse_messages(const Json& list, const std::string& where) {
  if (!list.is_array()) {
    fail(ErrorCode::kBadFile,
         "[{}] expected \"messages\" to be a list of {{\"role\", \"content\"}}, got {}", where,
         printable_json(list));
  }
  if (list.size() > kMaxMessages) {
    fail(ErrorCode::kBadFile, "[{}] expected at most {} messages, got {}; cut the conversation",
         where, kMaxMessages, list.size());
  }
  std::vector<ChatMessage> messages;
  bool answered = false;
  for (const Json& entry : list) {
    const std::string place = fmt::format("{}, message {}", where, messages.size() + 1);
    if (!entry.is_object()) {
      fail(ErrorCode::kBadFile, "[{}] expected an object with role and content, got {}", place,
           printable_json(entry));
    }
    ChatMessage message{get_string(entry, "role", place), get_string(entry, "content", place)};
    const bool assistant = message.role == "assistant";
    if (!assistant && message.role != "system" && message.role != "user") {
      fail(ErrorCode::kBadFile,
           "[{}] expected \"role\" to be system, user or assistant, got '{}'; rename it or leave "
           "the message out",
           place, printable(message.role));
    }
    answered = answered || assistant;
    messages.push_back(std::move(message));
  }
  if (!answered) {
    fail(ErrorCode::kBadFile,
         "[{}] expected an answer of the assistant among the messages, got {} without one; leave "
         "the line out",
         where, messages.size());
  }
  return messages;
}

ConversationEncoder::ConversationEncoder(const Tokenizer& tokenizer, const std::string& folder,
                                         const std::string& choice)
    : tokenizer_(&tokenizer), folder_(folder), choice_(choice), names_(special_names(tokenizer)) {
  if (!choice_.empty()) chat_template();
}

const ChatTemplate& ConversationEncoder::chat_template() const {
  std::call_once(loaded_, [this] { template_ = ChatTemplate::load(folder_, choice_); });
  return *template_;
}

// An answer up to where chat stops. A template may write what makes it stop only between turns, or
// end answers by what chat does not know: then the last one has all that the template adds to it.
ConversationEncoder::Span ConversationEncoder::whole_answer(const jinja::Text& written,
                                                            size_t begin,
                                                            size_t content_end) const {
  // Before the mark behind an answer without a word a template may write its spaces all the same.
  for (size_t at = content_end; at <= written.size(); ++at) {
    const std::string_view tail = std::string_view(written.bytes()).substr(at);
    for (const std::string& stop : chat_template().stops()) {
      if (tail.starts_with(stop)) return {begin, at + stop.size(), ""};
      if (stop.starts_with(tail)) return {begin, written.size(), stop.substr(tail.size())};
    }
    if (begin < content_end || tail.empty() || !written.from_template(at) ||
        !jinja::is_space(static_cast<unsigned char>(tail[0]))) {
      break;
    }
  }
  size_t end = content_end;
  while (end < written.size() && written.from_template(end)) ++end;
  return {begin, end == written.size() ? end : content_end, ""};
}

std::vector<ConversationEncoder::Span> ConversationEncoder::answers(
    const jinja::Text& written, const std::vector<ChatMessage>& messages) const {
  // Where chat would begin to write each answer, as far as the text goes on from there.
  std::vector<size_t> begins;
  std::vector<Span> contents;
  std::vector<ChatMessage> before;
  for (const ChatMessage& message : messages) {
    if (message.role == "assistant") {
      const std::string prompt = chat_template().render(before, true, kNow);
      if (written.bytes().starts_with(prompt)) {
        begins.push_back(prompt.size());
        if (message.content.empty()) contents.push_back({prompt.size(), prompt.size(), ""});
      }
    }
    before.push_back(message);
  }
  for (size_t at = 0; at < written.size(); ++at) {
    if (!written.marked(at)) continue;
    const size_t begin = at;
    while (at < written.size() && written.marked(at)) ++at;
    contents.push_back({begin, at, ""});
  }
  std::sort(contents.begin(), contents.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  std::vector<Span> spans;
  size_t done = 0;
  for (const Span& content : contents) {
    if (content.begin < done) continue;
    const auto next = std::upper_bound(begins.begin(), begins.end(), content.begin);
    const bool known = next != begins.begin() && next[-1] >= done;
    spans.push_back(whole_answer(written, known ? next[-1] : content.begin, content.end));
    done = spans.back().end;
  }
  return spans;
}

std::vector<ScoredIds> ConversationEncoder::encode(const std::vector<ChatMessage>& messages,
                                                   const std::string& where) const {
  const ChatTemplate& chat = chat_template();
  used_ = true;
  jinja::Text written;
  std::vector<Span> spans;
  try {
    written = chat.parsed().render(messages, false, kNow);
    spans = answers(written, messages);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal) throw;
    fail(ErrorCode::kBadFile,
         "[{}] expected a conversation that the chat template ({}) takes, got: {}", where,
         chat.name(), error.what());
  }
  if (spans.empty()) {
    fail(
        ErrorCode::kBadFile,
        "[{}] expected the chat template ({}) to write the assistant's answers, got a text without "
        "them; use another --chat-template",
        where, chat.name());
  }
  const ChatText text(written, names_);
  std::vector<ScoredIds> pieces;
  const auto add = [&](size_t begin, size_t end, bool scored) {
    std::vector<int32_t> ids = text.encode(*tokenizer_, begin, end);
    if (!ids.empty()) pieces.push_back({std::move(ids), scored});
  };
  size_t done = 0;
  for (const Span& span : spans) {
    add(done, span.begin, false);
    add(span.begin, span.end, true);
    done = span.end;
  }
  add(done, text.text.size(), false);
  if (done < text.text.size()) return pieces;
  const int32_t eos = tokenizer_->eos_id();
  if (eos >= 0) {
    if (!ends_by_stop(text.text, chat.stops())) pieces.push_back({{eos}, true});
  } else if (!spans.back().missing.empty()) {
    pieces.push_back(
        {tokenizer_->encode_with(spans.back().missing, {.parse_special = false}), true});
  }
  return pieces;
}

}  // namespace mamba
