// SPDX-License-Identifier: Apache-2.0
// Chat templates: how a model wants a conversation written.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mamba {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// How a model wants a conversation written. A value; copies share what was parsed.
class ChatTemplate {
 public:
  // "chatml", "falcon-mamba", "mistral", "plain", "zephyr".
  static std::vector<std::string> names();
  // Jinja text; `name` is for messages. Throws bad_file or unsupported with the line.
  static ChatTemplate parse(const std::string& jinja, const std::string& name,
                            const std::string& bos_token = "", const std::string& eos_token = "");
  // For a model folder ("": none): its own template (chat_template.jinja, or chat_template in
  // tokenizer_config.json) where `choice` is empty, "plain" if it has none; else the one of that
  // name, built in or among the folder's; else `choice` itself where it is Jinja text. BOS and EOS
  // are those of tokenizer_config.json. Throws invalid_argument for an unknown name.
  static ChatTemplate load(const std::string& folder, const std::string& choice = "");

  const std::string& name() const;
  // The text of a conversation. `now` is what strftime_now tells, in seconds since 1970.
  // Throws invalid_argument where the template refuses the conversation.
  std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                     int64_t now = 0) const;
  // Jinja text that parse() and load() take for the same template, whatever tokens they know.
  std::string source() const;
  // The texts that end an answer: what the template writes behind one, and the EOS token.
  const std::vector<std::string>& stops() const;

  struct Parsed;
  const Parsed& parsed() const { return *parsed_; }

 private:
  explicit ChatTemplate(std::shared_ptr<const Parsed> parsed) : parsed_(std::move(parsed)) {}
  std::shared_ptr<const Parsed> parsed_;
};

}  // namespace mamba
