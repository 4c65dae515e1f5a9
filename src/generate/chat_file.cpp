// SPDX-License-Identifier: Apache-2.0
// Conversations as safetensors files: messages and context as JSON text, and the states of the last
// turn, each as the whole state file that save_session() would write.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "generate/state_file.h"
#include "mamba/chat.h"

namespace mamba {
namespace {

constexpr const char* kFormat = "mamba-cpp-chat";
constexpr const char* kVersion = "1";
constexpr size_t kKept = 2;  // states before the present one: of undo and of regenerate

TensorData bytes_tensor(const std::string& name, const std::string& bytes) {
  return {name, DType::kU8, {static_cast<int64_t>(bytes.size())}, bytes.data()};
}

std::string_view bytes_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& tensor = file.get(name);
  if (tensor.dtype != DType::kU8) {
    fail(ErrorCode::kBadFile, "[chat] expected tensor '{}' of bytes, got {} ({}); use another file",
         name, dtype_name(tensor.dtype), file.where());
  }
  return {static_cast<const char*>(tensor.data), static_cast<size_t>(tensor.bytes)};
}

std::string state_name(size_t i) { return fmt::format("state.{}", i); }
std::string raw_name(size_t i) { return fmt::format("message.{}", i); }

void expect(const SafetensorsFile& file, const char* key, const std::string& expected,
            const char* advice) {
  const auto it = file.metadata().find(key);
  const std::string got = it == file.metadata().end() ? "none" : it->second;
  if (got == expected) return;
  fail(ErrorCode::kBadFile, "[chat] expected {} '{}', got '{}' ({}); {}", key, expected,
       printable(got), file.where(), advice);
}

constexpr const char* kExpected =
    "expected a conversation that chat has written (/save FILE, --session FILE)";

SafetensorsFile open_conversation(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    fail(ErrorCode::kBadFile, "[chat] {}, got '{}', which is {}; name such a file", kExpected,
         printable(path, 200),
         std::filesystem::exists(path, ignored) ? "a folder" : "neither a file nor a folder");
  }
  std::optional<SafetensorsFile> file;
  try {
    file.emplace(path);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kBadFile) throw;
    fail(ErrorCode::kBadFile, "[chat] {}, got another or a damaged file; name such a file: {}",
         kExpected, error.what());
  }
  const auto format = file->metadata().find("format");
  const std::string got = format == file->metadata().end() ? "" : format->second;
  if (got != kFormat) {
    const char* what = got == "mamba-cpp-state" ? "a state of generate"
                       : got == "pt"            ? "a file of weights"
                                                : "another kind of file";
    fail(ErrorCode::kBadFile, "[chat] {}, got '{}', which is {} (format '{}'); name such a file",
         kExpected, printable(path, 200), what, printable(got));
  }
  return std::move(*file);
}

}  // namespace

void ChatSession::save(const std::string& path) const {
  Json chat = {{"now", settings_.now},
               {"attempts", now_.attempts},
               {"template", template_.name()},
               {"messages", Json::array()},
               {"lengths", Json::array()}};
  std::vector<std::string> states;
  std::vector<TensorData> tensors;
  const size_t all = now_.checkpoints.size();
  for (size_t i = all - std::min(all, kKept); i < all; ++i) {
    states.push_back(session_bytes(*now_.checkpoints[i].session, *model_));
    chat["lengths"].push_back(now_.checkpoints[i].length);
  }
  if (now_.session.tokens > 0) {
    states.push_back(session_bytes(now_.session, *model_));
    chat["lengths"].push_back(now_.context.size());
  }
  for (size_t i = 0; i < states.size(); ++i) {
    tensors.push_back(bytes_tensor(state_name(i), states[i]));
  }
  for (size_t i = 0; i < now_.messages.size(); ++i) {
    const Message& m = now_.messages[i];
    chat["messages"].push_back({{"role", m.role}, {"content", m.content}});
    if (!m.raw.empty()) tensors.push_back(bytes_tensor(raw_name(i), m.raw));
  }
  tensors.push_back(bytes_tensor("context", now_.context));
  write_safetensors(path, tensors,
                    {{"format", kFormat},
                     {"version", kVersion},
                     {"model_fingerprint", model_->fingerprint()},
                     {"dtype", dtype_name(model_->dtype())},
                     {"chat", chat.dump()}});
}

void ChatSession::load(const std::string& path) {
  const SafetensorsFile file = open_conversation(path);
  expect(file, "version", kVersion, "write it again with this version");
  expect(file, "dtype", dtype_name(model_->dtype()), "use the same --dtype as then");
  expect(file, "model_fingerprint", model_->fingerprint(), "use the model of that conversation");
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const auto metadata = file.metadata().find("chat");
  const std::string where = path + ", metadata 'chat'";
  const Json chat = parse_json(metadata == file.metadata().end() ? "{}" : metadata->second, where);
  Conversation loaded;
  loaded.session = generator_.start();
  loaded.attempts = static_cast<uint64_t>(get_int(chat, "attempts", 0, kMost, where));
  for (const Json& m : get_member(chat, "messages", where)) {
    Message message{get_string(m, "role", where), get_string(m, "content", where), ""};
    const std::string raw = raw_name(loaded.messages.size());
    if (file.find(raw) != nullptr) message.raw = bytes_of(file, raw);
    loaded.messages.push_back(std::move(message));
  }
  loaded.context = bytes_of(file, "context");
  const Json& lengths = get_member(chat, "lengths", where);
  if (!lengths.is_array()) {
    fail(ErrorCode::kBadFile, "[chat] expected a list of lengths, got {} ({}); the file is damaged",
         printable_json(lengths), where);
  }
  size_t before = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const Json& length = lengths[i];
    const bool fits = length.is_number_unsigned() && length >= before &&
                      length.get<uint64_t>() <= loaded.context.size();
    if (!fits || (i + 1 == lengths.size() && length != loaded.context.size())) {
      fail(ErrorCode::kBadFile,
           "[chat] expected lengths up to the {} bytes of the context, got {} ({}); the file is "
           "damaged",
           loaded.context.size(), printable_json(length), where);
    }
    before = length.get<size_t>();
    const std::string_view bytes = bytes_of(file, state_name(i));
    const SafetensorsFile state(bytes.data(), bytes.size(), path + ", " + state_name(i));
    auto session = std::make_shared<Session>(read_session(state, *model_));
    if (i + 1 == lengths.size()) {
      loaded.session = std::move(*session);
    } else {
      loaded.checkpoints.push_back({std::move(session), before});
    }
  }
  if (loaded.session.tokens == 0) loaded.context.clear();
  loaded_template_ = has_member(chat, "template") && chat["template"].is_string()
                         ? chat["template"].get<std::string>()
                         : "";
  settings_.now = get_int(chat, "now", -kMost, kMost, where);
  now_ = std::move(loaded);
}

}  // namespace mamba
