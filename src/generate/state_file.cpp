// SPDX-License-Identifier: Apache-2.0
// Sessions as safetensors files: one tensor for each tensor of the state, the last logits, and in
// the metadata what ties them to a model and a list of tokens.
#include "generate/state_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/atomic_file.h"
#include "base/buf.h"
#include "base/check.h"
#include "base/json.h"
#include "formats/safetensors.h"
#include "generate/text_stream.h"
#include "mamba/generate.h"

namespace mamba {
namespace {

constexpr const char* kFormat = "mamba-cpp-state";
constexpr const char* kVersion = "2";
constexpr const char* kVersionWithoutHistory = "1";  // read, as a session that has kept no token
constexpr const char* kLogits = "last_logits";
constexpr const char* kPending = "pending_text";
constexpr const char* kHistory = "history";
constexpr const char* kHistoryLimit = "history_limit";

const std::string& get(const SafetensorsFile& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  if (it != file.metadata().end()) return it->second;
  fail(ErrorCode::kBadFile,
       "[state] expected metadata '{}', got none ({}); use a file written by --state-out", key,
       file.where());
}

void expect_equal(const SafetensorsFile& file, const std::string& key, const std::string& expected,
                  const char* advice) {
  const std::string& got = get(file, key);
  if (got == expected) return;
  fail(ErrorCode::kBadFile, "[state] expected {} '{}', got '{}' ({}); {}", key, expected,
       printable(got), file.where(), advice);
}

template <class T>
T get_number(const SafetensorsFile& file, const std::string& key, int base, T low, T high) {
  const std::string& text = get(file, key);
  T value{};
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value, base);
  if (error == std::errc() && at == end && value >= low && value <= high) return value;
  fail(ErrorCode::kBadFile,
       "[state] expected a number in {}..{} as metadata '{}', got '{}' ({}); "
       "the file is damaged, write it again",
       low, high, key, printable(text), file.where());
}

// Reads a tensor of this shape in f32 or bf16; a value that is not finite is damage.
void read_tensor(const SafetensorsFile& file, const std::string& name,
                 const std::vector<int64_t>& shape, float* out) {
  const TensorInfo& tensor = file.get(name, shape);
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kBF16) {
    fail(ErrorCode::kBadFile,
         "[state] expected tensor '{}' in f32 or bf16, got {} ({}); write it again", name,
         dtype_name(tensor.dtype), file.where());
  }
  read_to_f32(tensor, out);
  for (int64_t i = 0; i < tensor.count(); ++i) {
    if (std::isfinite(out[i])) continue;
    fail(ErrorCode::kBadFile,
         "[state] expected finite numbers, got {} at element {} of '{}' ({}); write it again",
         out[i], i, name, file.where());
  }
}

std::string to_hex(std::string_view bytes) {
  std::string hex;
  for (const char byte : bytes) hex += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return hex;
}

// The unfinished character behind the tokens; none in files that do not name it.
std::string read_pending(const SafetensorsFile& file) {
  const auto it = file.metadata().find(kPending);
  if (it == file.metadata().end()) return "";
  const std::string& hex = it->second;
  std::string bytes;
  for (size_t at = 0; at + 2 <= std::min<size_t>(hex.size(), 6); at += 2) {
    unsigned value = 0;
    std::from_chars(hex.data() + at, hex.data() + at + 2, value, 16);
    bytes += static_cast<char>(value);
  }
  TextStream stream;
  if (to_hex(bytes) == hex && stream.push(bytes).empty() && stream.held() == bytes) return bytes;
  fail(ErrorCode::kBadFile,
       "[state] expected the start of a UTF-8 character in hex as metadata '{}', got '{}' ({}); "
       "the file is damaged, write it again",
       kPending, printable(hex), file.where());
}

// The last tokens, oldest first; at most as many as the session has taken and its limit allows.
void read_history(const SafetensorsFile& file, int64_t vocab, Session* session) {
  session->history_limit =
      get_number<int64_t>(file, kHistoryLimit, 10, -1, std::numeric_limits<int64_t>::max() / 2);
  const TensorInfo* tensor = file.find(kHistory);
  if (tensor == nullptr) return;
  const int64_t limit = session->history_limit;
  const int64_t most = limit < 0 ? session->tokens : std::min(limit, session->tokens);
  if (tensor->dtype != DType::kI32 || tensor->shape.size() != 1 || tensor->count() > most) {
    fail(ErrorCode::kBadFile,
         "[state] expected '{}' as at most {} ids in i32, got {} in {} ({}); write it again",
         kHistory, most, shape_text(tensor->shape), dtype_name(tensor->dtype), file.where());
  }
  for (const int64_t id : read_to_i64(*tensor)) {
    if (id < 0 || id >= vocab) {
      fail(ErrorCode::kBadFile,
           "[state] expected ids in 0..{} in '{}', got {} ({}); write it again", vocab - 1,
           kHistory, id, file.where());
    }
    session->history.push_back(static_cast<int32_t>(id));
  }
}

// What a file without history has: penalties refuse it by its missing tokens.
bool has_history(const SafetensorsFile& file) {
  return get(file, "version") != kVersionWithoutHistory;
}

}  // namespace

void save_session(const std::string& path, const Session& session, const Model& model) {
  write_file_atomic(path, session_bytes(session, model));
}

std::string session_bytes(const Session& session, const Model& model) {
  if (session.tokens == 0 || session.state.batch() != 1 || session.state.dtype() == DType::kF64) {
    fail(ErrorCode::kInvalidArgument,
         "[state] expected a session of one sequence with at least one token that is not in f64, "
         "got {} tokens and {}; prefill it first",
         session.tokens, dtype_name(session.state.dtype()));
  }
  std::vector<TensorData> tensors;
  const State state = session.state.to_host();
  const CBuf values(state.sequence(0), state.dtype());
  for (const StateTensor& t : session.state.tensors()) {
    tensors.push_back({t.name, values.dtype, t.shape, (values + t.offset).data});
  }
  tensors.push_back(
      {kLogits, DType::kF32, {static_cast<int64_t>(session.logits.size())}, session.logits.data()});
  if (!session.history.empty()) {
    const int64_t count = static_cast<int64_t>(session.history.size());
    tensors.push_back({kHistory, DType::kI32, {count}, session.history.data()});
  }
  TensorMetadata metadata = {
      {"format", kFormat},
      {"version", kVersion},
      {"model_fingerprint", model.fingerprint()},
      {"dtype", dtype_name(model.dtype())},
      {"tokens", fmt::format("{}", session.tokens)},
      {"token_hash", fmt::format("{:016x}", session.token_hash)},
      {"seed", fmt::format("{}", session.seed)},
      {kHistoryLimit, fmt::format("{}", session.history_limit)},
  };
  if (!session.pending.empty()) metadata[kPending] = to_hex(session.pending);
  return safetensors_bytes(tensors, metadata);
}

Session load_session(const std::string& path, const Model& model) {
  return read_session(SafetensorsFile(path), model);
}

Session read_session(const SafetensorsFile& file, const Model& model) {
  expect_equal(file, "format", kFormat, "use a file written by --state-out");
  if (has_history(file)) {
    expect_equal(file, "version", kVersion, "write it again with this version");
  }
  expect_equal(file, "dtype", dtype_name(model.dtype()), "use the same --dtype as then");
  expect_equal(file, "model_fingerprint", model.fingerprint(),
               "use the model that the state was made with");
  Session session;
  session.tokens =
      get_number<int64_t>(file, "tokens", 10, 0, std::numeric_limits<int64_t>::max() / 2);
  constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();
  session.token_hash = get_number<uint64_t>(file, "token_hash", 16, 0, kAny);
  session.seed = get_number<uint64_t>(file, "seed", 10, 0, kAny);
  session.pending = read_pending(file);
  if (has_history(file)) read_history(file, model.config().vocab_size, &session);
  const State fresh = model.new_state(1);
  session.state = fresh.to_host().as(DType::kF32);
  const size_t expected =
      session.state.tensors().size() + 1 + (file.find(kHistory) != nullptr && has_history(file));
  if (file.tensors().size() != expected) {
    fail(ErrorCode::kBadFile, "[state] expected {} tensors, got {} ({}); write it again", expected,
         file.tensors().size(), file.where());
  }
  float* values = static_cast<float*>(session.state.sequence(0));
  for (const StateTensor& t : session.state.tensors()) {
    read_tensor(file, t.name, t.shape, values + t.offset);
  }
  const State there = session.state.as(fresh.dtype());
  session.state = fresh;
  session.state.assign(0, there, 0);
  session.logits.resize(static_cast<size_t>(model.config().vocab_size));
  read_tensor(file, kLogits, {model.config().vocab_size}, session.logits.data());
  return session;
}

}  // namespace mamba
