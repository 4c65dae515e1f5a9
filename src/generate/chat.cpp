// SPDX-License-Identifier: Apache-2.0
// Turns of a conversation: what the template adds to the text is read, the rest is in the state.
#include "mamba/chat.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "generate/text_stream.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/chat_text.h"

namespace mamba {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string valid_utf8(const std::string& bytes) {
  TextStream stream;
  std::string text = stream.push(bytes);
  return text + stream.finish();
}

// The bytes of an answer up to what ended it: those that stand for `text`, which has U+FFFD where
// they are no UTF-8.
std::string bytes_of_text(const std::string& bytes, const std::string& text) {
  if (bytes.compare(0, text.size(), text) == 0) return text;
  TextStream stream;
  std::string so_far;
  size_t end = 0;
  for (size_t i = 0; i < bytes.size() && so_far.size() <= text.size(); ++i) {
    so_far += stream.push(std::string_view(bytes).substr(i, 1));
    std::string ended = so_far;
    if (!stream.held().empty()) ended += TextStream(stream.held()).finish();
    if (so_far == text || ended == text) end = i + 1;
  }
  return bytes.substr(0, end);
}

size_t common_start(std::string_view a, std::string_view b) {
  const size_t size = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(size), b.begin()).first -
      a.begin());
}

std::string stripped(const std::string& text, unsigned sides) {
  return jinja::strip(jinja::Text(text, false), nullptr, static_cast<jinja::Sides>(sides)).bytes();
}

// Bytes of the spaces that a text begins with.
size_t spaces(const std::string& text) { return text.size() - stripped(text, jinja::kLeft).size(); }

}  // namespace

struct ChatSession::Rendered : ChatText {
  using ChatText::ChatText;
};

ChatSession::ChatSession(Model& model, const Tokenizer& tokenizer, ChatTemplate chat_template,
                         ChatSettings settings)
    : model_(&model),
      tokenizer_(&tokenizer),
      generator_(model, &tokenizer),
      template_(std::move(chat_template)),
      settings_(std::move(settings)),
      specials_(special_names(tokenizer)) {
  if (!settings_.system.empty())
    now_.messages.push_back({"system", valid_utf8(settings_.system), ""});
  reset();
}

void ChatSession::reset() {
  const bool system = !now_.messages.empty() && now_.messages[0].role == "system";
  now_.messages.resize(system ? 1 : 0);
  now_.attempts = 0;
  start_over();
}

// The next turn reads everything.
void ChatSession::start_over() {
  now_.session = generator_.start();
  now_.context.clear();
  now_.checkpoints.clear();
}

void ChatSession::set_system(const std::string& text) {
  if (!now_.messages.empty() && now_.messages[0].role == "system")
    now_.messages.erase(now_.messages.begin());
  if (!text.empty()) now_.messages.insert(now_.messages.begin(), {"system", valid_utf8(text), ""});
  start_over();
}

std::vector<ChatMessage> ChatSession::messages() const {
  std::vector<ChatMessage> messages;
  for (const Message& m : now_.messages) messages.push_back({m.role, m.content});
  return messages;
}

int64_t ChatSession::turns() const {
  return std::count_if(now_.messages.begin(), now_.messages.end(),
                       [](const Message& m) { return m.role == "user"; });
}

int64_t ChatSession::kept_bytes() const {
  int64_t bytes = 0;
  for (const Checkpoint& c : now_.checkpoints) bytes += c.session->state.bytes_per_sequence();
  return bytes;
}

ChatSession::Rendered ChatSession::render(const std::vector<Message>& conversation,
                                          bool add_generation_prompt) const {
  std::vector<ChatMessage> messages;
  for (const Message& m : conversation)
    messages.push_back({m.role, m.raw.empty() ? m.content : m.raw});
  return Rendered(template_.parsed().render(messages, add_generation_prompt, settings_.now),
                  specials_);
}

// Whether the ids of the text are those of its part before `at` and then those of the rest.
bool ChatSession::cuts_cleanly(const Rendered& target, size_t at) const {
  size_t begin = 0, end = target.text.size();
  for (const Rendered::Special& special : target.specials) {
    if (special.begin < at && at < special.end) return false;
    if (special.end <= at) begin = special.end;
    if (special.begin >= at) end = std::min(end, special.begin);
  }
  if (at == begin || at == end) return true;
  std::vector<int32_t> parts = target.encode(*tokenizer_, begin, at);
  const std::vector<int32_t> rest = target.encode(*tokenizer_, at, end);
  parts.insert(parts.end(), rest.begin(), rest.end());
  return parts == target.encode(*tokenizer_, begin, end);
}

// Remembers where the session stands, within the budget.
void ChatSession::keep() {
  if (!now_.checkpoints.empty() && now_.checkpoints.back().length == now_.context.size() &&
      now_.checkpoints.back().session->tokens == now_.session.tokens) {
    return;
  }
  now_.checkpoints.push_back({std::make_shared<const Session>(now_.session), now_.context.size()});
  while (kept_bytes() > settings_.max_undo_bytes && now_.checkpoints.size() > 1) {
    now_.checkpoints.erase(now_.checkpoints.begin());
  }
}

void ChatSession::restore(size_t checkpoint) {
  now_.session = *now_.checkpoints[checkpoint].session;
  now_.context.resize(now_.checkpoints[checkpoint].length);
  now_.checkpoints.resize(checkpoint + 1);
}

// Brings the session to the end of `target` from the last point that is a start of it. False when
// interrupted; the session is then of no use.
bool ChatSession::read(const Rendered& target, const ChatOptions& options, ChatAnswer* answer) {
  const size_t known = now_.context.size();
  const int64_t tokens = now_.session.tokens;
  const size_t common = common_start(now_.context, target.text);
  // Behind an answer the ids are those that were drawn, which need not be those of the text; but a
  // special token is whole or not there.
  const bool within_special =
      std::any_of(target.specials.begin(), target.specials.end(),
                  [&](const Rendered::Special& s) { return s.begin < known && known < s.end; });
  if (common < known || within_special) {
    size_t best = now_.checkpoints.size();
    while (best > 0 && (now_.checkpoints[best - 1].length > common ||
                        !cuts_cleanly(target, now_.checkpoints[best - 1].length))) {
      --best;
    }
    if (best > 0) {
      restore(best - 1);
    } else {
      start_over();
    }
    answer->reread_tokens = tokens - now_.session.tokens;
  }
  const std::vector<int32_t> ids =
      target.encode(*tokenizer_, now_.context.size(), target.text.size());
  answer->prompt_tokens = static_cast<int64_t>(ids.size());
  keep_history_for(now_.session, options.sampling);
  const bool whole = generator_.prefill(now_.session, ids, options.interrupted);
  now_.context = target.text;
  return whole;
}

ChatAnswer ChatSession::turn(const Conversation& before, const ChatOptions& options) {
  try {
    ChatAnswer result = answer(options);
    if (result.dropped) now_ = before;
    return result;
  } catch (...) {
    now_ = before;
    throw;
  }
}

ChatAnswer ChatSession::send(const std::string& text, const ChatOptions& options) {
  const Conversation before = now_;
  now_.attempts = 0;
  now_.messages.push_back({"user", valid_utf8(text), ""});
  if (now_.session.tokens > 0) keep();
  return turn(before, options);
}

// Reads up to the answer and writes it; with `dropped` nothing was added to the messages.
ChatAnswer ChatSession::answer(const ChatOptions& options) {
  ChatAnswer result;
  const Rendered target = render(now_.messages, true);
  Clock::time_point start = Clock::now();
  const bool whole = read(target, options, &result);
  result.prompt_seconds = seconds_since(start);
  result.finish_reason = FinishReason::kInterrupted;
  result.dropped = true;
  if (!whole) return result;
  if (now_.session.tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "[chat template] expected text for a message, got none; use another template");
  }
  keep();
  GenerateOptions generate;
  generate.sampling = options.sampling;
  generate.sampling.seed += now_.attempts;
  generate.max_tokens = options.max_tokens;
  generate.stop = options.stop;
  generate.stop.insert(generate.stop.end(), template_.stops().begin(), template_.stops().end());
  generate.ignore_eos = options.ignore_eos;
  generate.keep_session = true;
  generate.drop_end = true;  // the template writes its own end
  generate.interrupted = options.interrupted;
  generate.on_token = [&](int64_t, int32_t, std::string_view piece) {
    if (options.on_text && !piece.empty()) options.on_text(piece);
  };
  now_.session.pending.clear();
  const int64_t tokens = now_.session.tokens;
  start = Clock::now();
  const Generation generation = generator_.generate(now_.session, generate)[0];
  result.generate_seconds = seconds_since(start);
  result.generated_tokens = static_cast<int64_t>(generation.ids.size());
  result.finish_reason = generation.finish_reason;
  result.text = generation.text;
  if (generation.ids.empty() && generation.finish_reason == FinishReason::kInterrupted)
    return result;
  result.dropped = false;
  std::string bytes;
  const size_t read = generation.ids.size() -
                      static_cast<size_t>(tokens + result.generated_tokens - now_.session.tokens);
  for (size_t i = 0; i < read; ++i) bytes += tokenizer_->token_bytes(generation.ids[i]);
  settle(bytes, valid_utf8(generation.text));
  return result;
}

// Where the session stands in the text of the next turn, with `content` as the answer to `prompt`
// and `bytes` what the state has of it: behind the answer and as much of what the template writes
// there as is in the state already. Spaces at the ends of an answer may differ, as templates strip
// or add them. 0 where the template writes more than that otherwise.
size_t ChatSession::written_end(const std::string& prompt, const std::string& bytes,
                                const std::string& content, const std::string& written) const {
  const size_t head = stripped(prompt, jinja::kRight).size();
  if (common_start(prompt, written) < head) return 0;
  const std::string core = stripped(content, jinja::kBoth);
  const size_t begin = core.empty() ? head : head + spaces(written.substr(head));
  if (written.compare(begin, core.size(), core) != 0) return 0;
  const size_t end = begin + core.size();
  // What the state has behind the words of the answer, and what the template writes there.
  const std::string held =
      core.empty() ? prompt.substr(head) + bytes : bytes.substr(spaces(bytes) + core.size());
  const std::string tail = written.substr(end);
  const size_t held_spaces = spaces(held), tail_spaces = spaces(tail);
  size_t best = 0;
  for (size_t skip = 0; skip <= tail_spaces; ++skip) {
    for (size_t count = std::min(tail.size() - skip, held.size()); count > 0; --count) {
      if (held.compare(held.size() - count, count, tail, skip, count) != 0) continue;
      if (held_spaces >= held.size() - count) best = std::max(best, skip + count);
      break;
    }
  }
  const bool covered = best > 0 || held_spaces == held.size();
  return covered && end + best >= prompt.size() ? end + best : 0;
}

// Adds the answer to the messages, so that the template writes it again as the state has it: the
// bytes that came, up to what ended them, without the spaces that the template adds by itself.
// `bytes` are those that the state has read.
void ChatSession::settle(std::string bytes, const std::string& text) {
  const std::string prompt = now_.context;
  const std::string raw = bytes_of_text(bytes, text);
  // A character that the end has cut is in the state alone.
  const std::string& cut = now_.session.pending;
  if (!cut.empty() && raw.size() + cut.size() == bytes.size()) bytes.resize(raw.size());
  const auto message_of = [](const std::string& content) {
    const std::string valid = valid_utf8(content);
    return Message{"assistant", valid, valid == content ? "" : content};
  };
  now_.messages.push_back(message_of(raw));
  now_.context = prompt + bytes;
  Message close = now_.messages.back();
  std::string context;
  for (const unsigned sides : {2u, 0u, 1u, 3u}) {
    const std::string content = sides == 0 ? raw : stripped(raw, sides);
    now_.messages.back() = message_of(content);
    std::string written = next_text();
    const size_t end = written_end(prompt, bytes, content, written);
    if (end == 0) continue;
    written.resize(end);
    if (written == now_.context) return;
    if (!context.empty()) continue;
    context = written;
    close = now_.messages.back();
  }
  if (!context.empty()) now_.context = context;
  now_.messages.back() = close;
}

// The text of the next turn up to the words of its message; "" where the template refuses it.
std::string ChatSession::next_text() const {
  const std::string words = "NEXTMARK";
  std::vector<Message> messages = now_.messages;
  messages.push_back({"user", words, ""});
  try {
    const std::string text = render(messages, true).text;
    return text.substr(0, text.rfind(words));
  } catch (const Error&) {
    return "";
  }
}

bool ChatSession::goes_on() const {
  return now_.session.tokens > 0 && next_text().compare(0, now_.context.size(), now_.context) == 0;
}

// To the last state within the first `length` bytes of the context, which the messages that are
// left begin with; where it is not kept any more, the next turn reads from an older one.
void ChatSession::back_to(size_t length) {
  size_t best = now_.checkpoints.size();
  while (best > 0 && now_.checkpoints[best - 1].length > length) --best;
  if (best > 0) {
    restore(best - 1);
  } else {
    start_over();
  }
}

ChatAnswer ChatSession::regenerate(const ChatOptions& options) {
  if (now_.messages.empty() || now_.messages.back().role != "assistant") {
    fail(ErrorCode::kInvalidArgument,
         "[chat] expected an answer to draw again, got a conversation without one; ask something");
  }
  const Conversation before = now_;
  now_.messages.pop_back();
  ++now_.attempts;
  back_to(common_start(now_.context, render(now_.messages, true).text));
  return turn(before, options);
}

bool ChatSession::undo() {
  size_t last = now_.messages.size();
  while (last > 0 && now_.messages[last - 1].role != "user") --last;
  if (last == 0) return false;
  now_.messages.resize(last - 1);
  now_.attempts = 0;
  back_to(turns() > 0 ? common_start(now_.context, next_text()) : 0);
  return true;
}

}  // namespace mamba
