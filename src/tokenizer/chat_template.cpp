// SPDX-License-Identifier: Apache-2.0
// Built-in templates, those of model folders, and how an answer ends under a template.
#include "tokenizer/chat_template.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <filesystem>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "formats/gguf.h"
#include "tokenizer/gguf_tokenizer.h"

namespace mamba {
namespace {

struct BuiltIn {
  const char* name;
  const char* bos;
  const char* eos;
  const char* text;
};

constexpr const char* kChatml =
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
// In order of name. For base models, plain: they go on with a dialogue in text. An answer begins as
// the model began it, or it would have to be read again; one of other origin gets a space.
constexpr std::array<BuiltIn, 5> kBuiltIn = {{
    {"chatml", "", "", kChatml},
    {"falcon-mamba", "", "", kChatml},
    {"mistral", "<s>", "</s>",
     "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
     "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}"
     "{% elif message['role'] == 'user' %}"
     "{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
     "{% else %}{{ ' ' if message['content'] and not message['content'][:1].isspace() else '' }}"
     "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"},
    {"plain", "", "",
     "{% for message in messages %}"
     "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
     "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
     "{% else %}{{ 'Assistant:' }}"
     "{{ ' ' if message['content'] and not message['content'][:1].isspace() else '' }}"
     "{{ message['content'] + '\\n' }}{% endif %}{% endfor %}"
     "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"},
    {"zephyr", "", "</s>",
     "{% for message in messages %}"
     "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"},
}};

// What stands between an answer and the next message, right-trimmed: all of it, or the one marker
// ("<...>") that it begins with.
std::string end_of_answer(const ChatTemplate::Parsed& parsed) {
  const std::string answer = "ANSWERMARK", next = "NEXTMARK";
  std::string text;
  try {
    text = parsed.render({{"user", "FIRSTMARK"}, {"assistant", answer}, {"user", next}}, false, 0)
               .bytes();
  } catch (const Error&) {
    return "";  // a template that wants other conversations; its EOS remains
  }
  const size_t at = text.find(answer);
  if (at == std::string::npos) return "";
  const size_t begin = at + answer.size(), end = text.find(next, begin);
  if (end == std::string::npos) return "";
  std::string tail = text.substr(begin, end - begin);
  const size_t close = tail.find('>');
  if (tail.rfind('<', 0) == 0 && close != std::string::npos &&
      tail.find_first_of(" \n\t") > close) {
    return tail.substr(0, close + 1);
  }
  while (!tail.empty() && jinja::is_space(static_cast<unsigned char>(tail.back()))) tail.pop_back();
  return tail;
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// A token of tokenizer_config.json: a string, {"content": string}, or null.
std::string token_of(const Json& config, const char* key, const std::string& otherwise) {
  if (!has_member(config, key)) return otherwise;
  const Json& value = config[key];
  if (value.is_string()) return value.get<std::string>();
  if (has_member(value, "content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return otherwise;
}

// Jinja texts of a folder by name; "default" is the one that is used where none is asked for.
std::vector<std::pair<std::string, std::string>> templates_of(const std::string& folder,
                                                              const Json& config) {
  std::vector<std::pair<std::string, std::string>> found;
  const std::string path = folder + "/chat_template.jinja";
  if (exists(path)) {
    const MappedFile file(path);
    const auto* text = reinterpret_cast<const char*>(file.data());
    found.emplace_back("default", std::string(text, text == nullptr ? 0 : file.size()));
  }
  if (!has_member(config, "chat_template")) return found;
  const Json& value = config["chat_template"];
  const std::string where = folder + "/tokenizer_config.json";
  if (value.is_string()) {
    found.emplace_back("default", value.get<std::string>());
  } else if (value.is_array()) {
    for (const Json& entry : value) {
      found.emplace_back(get_string(entry, "name", where), get_string(entry, "template", where));
    }
  } else if (!value.is_null()) {
    fail(ErrorCode::kBadFile,
         "[{}] expected \"chat_template\" to be a text or a list of named ones, got {}; correct it "
         "or give --chat-template",
         where, printable_json(value));
  }
  return found;
}

}  // namespace

jinja::Text ChatTemplate::Parsed::render(const std::vector<ChatMessage>& messages,
                                         bool add_generation_prompt, int64_t now) const {
  const jinja::Site site;
  std::vector<jinja::Value> list;
  for (const ChatMessage& message : messages) {
    jinja::Text content(message.content, false);
    if (message.role == "assistant") content.mark();
    list.push_back(
        jinja::make_dict({{jinja::text_value("role", true), jinja::text_value(message.role, false)},
                          {jinja::text_value("content", true), jinja::Value(std::move(content))}},
                         site));
  }
  const jinja::Context context = {
      {"messages", jinja::make_list(std::move(list), site)},
      {"add_generation_prompt", jinja::Value(add_generation_prompt)},
      {"bos_token", jinja::text_value(bos_token, true)},
      {"eos_token", jinja::text_value(eos_token, true)},
  };
  const std::time_t seconds = now;
  std::tm time{};
  ::gmtime_r(&seconds, &time);
  return body.render(context, time);
}

std::vector<std::string> ChatTemplate::names() {
  std::vector<std::string> names;
  for (const BuiltIn& t : kBuiltIn) names.emplace_back(t.name);
  return names;
}

ChatTemplate ChatTemplate::parse(const std::string& jinja, const std::string& name,
                                 const std::string& bos_token, const std::string& eos_token) {
  auto parsed = std::make_shared<Parsed>(
      Parsed{name, bos_token, eos_token, jinja, jinja::Template(jinja), {}});
  const std::string end = end_of_answer(*parsed);
  if (!end.empty()) parsed->stops.push_back(end);
  if (!eos_token.empty() && eos_token != end) parsed->stops.push_back(eos_token);
  return ChatTemplate(std::move(parsed));
}

ChatTemplate ChatTemplate::load(const std::string& folder, const std::string& choice) {
  const std::string path = folder + "/tokenizer_config.json";
  const bool has_config = !folder.empty() && exists(path);
  const Json config = is_gguf_file(folder) ? tokenizer_config_of(GgufFile(folder))
                      : has_config         ? read_json_file(path)
                                           : Json::object();
  std::vector<std::pair<std::string, std::string>> own;
  if (!folder.empty()) own = templates_of(folder, config);
  const auto with_tokens = [&](const std::string& text, const std::string& name,
                               const char* bos = "", const char* eos = "") {
    return parse(text, name, token_of(config, "bos_token", bos),
                 token_of(config, "eos_token", eos));
  };
  const std::string wanted = choice.empty() ? "default" : choice;
  for (const auto& [name, text] : own) {
    if (name == wanted) return with_tokens(text, choice.empty() ? "of the model" : name);
  }
  for (const BuiltIn& t : kBuiltIn) {
    if (t.name == (choice.empty() ? "plain" : choice))
      return with_tokens(t.text, t.name, t.bos, t.eos);
  }
  if (choice.find('{') != std::string::npos) return with_tokens(choice, "given");
  std::vector<std::string> known = names();
  for (const auto& entry : own) known.push_back(entry.first);
  fail(ErrorCode::kInvalidArgument,
       "[chat template] expected one of {}, or Jinja text, got '{}'; give a file with "
       "--chat-template-file",
       fmt::join(known, ", "), printable(choice));
}

const std::string& ChatTemplate::name() const { return parsed_->name; }

std::string ChatTemplate::source() const {
  std::string tokens;
  for (const auto& [name, token] :
       {std::pair("bos_token", parsed_->bos_token), std::pair("eos_token", parsed_->eos_token)}) {
    // Of the tokens in use none needs more to be quoted; one that does is left to the folder.
    if (token.empty() || token.find_first_of("'\\\n") != std::string::npos) continue;
    tokens += fmt::format("{{% set {} = '{}' %}}", name, token);
  }
  const bool trimmed = !tokens.empty() && parsed_->source.starts_with('\n');
  return tokens + (trimmed ? "\n" : "") + parsed_->source;  // a tag takes the line feed behind it
}

const std::vector<std::string>& ChatTemplate::stops() const { return parsed_->stops; }

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages,
                                 bool add_generation_prompt, int64_t now) const {
  return parsed_->render(messages, add_generation_prompt, now).bytes();
}

}  // namespace mamba
