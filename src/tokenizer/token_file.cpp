// SPDX-License-Identifier: Apache-2.0
// Token files and their descriptions.
#include "tokenizer/token_file.h"

#include <bit>
#include <charconv>
#include <filesystem>
#include <limits>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

static_assert(std::endian::native == std::endian::little, "ids are written as they are in memory");

// Whether a file is the description of a token file.
bool describes_tokens(const std::string& path) {
  try {
    const Json json = read_json_file(path);
    return has_member(json, "dtype") && has_member(json, "count") &&
           has_member(json, "tokenizer_hash");
  } catch (const Error&) {
    return false;
  }
}

const char* dtype_text(int bytes) { return bytes == 2 ? "uint16" : "uint32"; }

}  // namespace

std::string token_file_info_path(const std::string& path) {
  const std::string_view kEnd = ".bin";
  return path.ends_with(kEnd) ? path.substr(0, path.size() - kEnd.size()) + ".json"
                              : path + ".json";
}

int bytes_per_token(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

TokenFileInfo read_token_file_info(const std::string& path) {
  const std::string where = token_file_info_path(path);
  const Json json = read_json_file(where);
  TokenFileInfo info;
  const std::string dtype = get_string(json, "dtype", where);
  if (dtype != "uint16" && dtype != "uint32") {
    fail(ErrorCode::kBadFile, "[{}] expected \"dtype\" to be uint16 or uint32, got '{}'", where,
         printable(dtype));
  }
  constexpr int64_t kMany = std::numeric_limits<int64_t>::max() / 4;
  info.bytes_per_token = dtype == "uint16" ? 2 : 4;
  info.count = get_int(json, "count", 0, kMany, where);
  info.vocab_size = get_int(json, "vocab_size", 1, int64_t{1} << 31, where);
  info.tokenizer = get_string(json, "tokenizer", where);
  info.text_bytes = get_int(json, "text_bytes", 0, kMany, where);
  info.documents = get_int(json, "documents", 0, kMany, where);
  const std::string hash = get_string(json, "tokenizer_hash", where);
  const auto [end, error] =
      std::from_chars(hash.data(), hash.data() + hash.size(), info.fingerprint, 16);
  if (error != std::errc() || end != hash.data() + hash.size() || hash.size() != 16) {
    fail(ErrorCode::kBadFile, "[{}] expected \"tokenizer_hash\" to be 16 hex digits, got '{}'",
         where, printable(hash));
  }
  std::error_code missing;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, missing));
  if (missing || size != info.count * info.bytes_per_token) {
    fail(ErrorCode::kBadFile, "[{}] expected {} bytes ({} ids of {} in {}), got {}; write it again",
         path, info.count * info.bytes_per_token, info.count, dtype, where,
         missing ? missing.message() : std::to_string(size));
  }
  return info;
}

void expect_token_file_place(const std::string& flag, const std::string& path,
                             const std::string& input) {
  const std::string info = token_file_info_path(path);
  std::error_code ignored;
  for (const std::string& out : {path, info}) {
    if (input.empty() || !std::filesystem::equivalent(out, input, ignored)) continue;
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected another file than the input, got '{}', which would replace it{}; name "
         "another one",
         flag, printable(path, 200), out == path ? "" : " with the description of the tokens");
  }
  if (std::filesystem::is_directory(path, ignored)) {
    fail(ErrorCode::kInvalidArgument, "[{}] expected a file name, got the folder '{}'; give a file",
         flag, printable(path, 200));
  }
  const bool has_tokens = std::filesystem::exists(path, ignored);
  const bool has_info = std::filesystem::exists(info, ignored);
  if (has_info ? describes_tokens(info) : !has_tokens) return;
  fail(ErrorCode::kInvalidArgument,
       "[{}] expected a new file, or a token file with its description to replace, got {}, which "
       "is something else; name another one",
       flag, printable(has_info ? info : path, 200));
}

TokenFileWriter::TokenFileWriter(const std::string& path, const Tokenizer& tokenizer, int bytes)
    : file_(path) {
  if (bytes == 2 && tokenizer.vocab_size() > 65536) {
    fail(ErrorCode::kInvalidArgument,
         "[--dtype] expected uint32 for a vocabulary of {} ids, got uint16; leave it out",
         tokenizer.vocab_size());
  }
  info_.bytes_per_token = bytes;
  info_.vocab_size = tokenizer.vocab_size();
  info_.tokenizer = tokenizer.name();
  info_.fingerprint = tokenizer.fingerprint();
}

void TokenFileWriter::append(const std::vector<int32_t>& ids) {
  if (info_.bytes_per_token == 4) {
    file_.append(ids.data(), ids.size() * sizeof(int32_t));
  } else {
    buffer_.clear();
    for (const int32_t id : ids) {
      buffer_.push_back(static_cast<char>(id));
      buffer_.push_back(static_cast<char>(id >> 8));
    }
    file_.append(buffer_);
  }
  info_.count += static_cast<int64_t>(ids.size());
}

void TokenFileWriter::finish(int64_t text_bytes, int64_t documents) {
  const nlohmann::ordered_json json = {
      {"dtype", dtype_text(info_.bytes_per_token)},
      {"count", info_.count},
      {"vocab_size", info_.vocab_size},
      {"tokenizer", info_.tokenizer},
      {"tokenizer_hash", fmt::format("{:016x}", info_.fingerprint)},
      {"text_bytes", text_bytes},
      {"documents", documents}};
  file_.commit();
  write_file_atomic(token_file_info_path(file_.path()), json.dump(2) + "\n");
}

}  // namespace mamba
