// SPDX-License-Identifier: Apache-2.0
// Token files of a data set and their descriptions.
#include "train/data_token_file.h"

#include <filesystem>

#include "base/check.h"
#include "base/json.h"
#include "tokenizer/token_file.h"

namespace mamba {
namespace {

int width_of(const std::string& dtype) { return dtype == "uint32" ? 4 : 2; }

// The ids' width as the description of a file has it, which must fit options and tokenizer.
int described_width(const std::string& path, const std::string& dtype, const Tokenizer& tokenizer) {
  const TokenFileInfo info = read_token_file_info(path);
  if (info.fingerprint != tokenizer.fingerprint()) {
    fail(ErrorCode::kBadFile,
         "[{}] expected ids of --tokenizer {} (hash {:016x}), got those of {} (hash {:016x}); name "
         "the tokenizer that made them",
         path, tokenizer.name(), tokenizer.fingerprint(), printable(info.tokenizer),
         info.fingerprint);
  }
  if (!dtype.empty() && width_of(dtype) != info.bytes_per_token) {
    fail(ErrorCode::kBadFile,
         "[--data-dtype] expected uint{} as {} says, got {}; leave the option out",
         8 * info.bytes_per_token, token_file_info_path(path), dtype);
  }
  return info.bytes_per_token;
}

}  // namespace

TokenFile open_token_file(const std::string& path, const std::string& dtype,
                          const Tokenizer& tokenizer) {
  TokenFile tokens{MappedFile(path)};
  std::error_code ignored;
  const bool described = std::filesystem::exists(token_file_info_path(path), ignored);
  tokens.width = described ? described_width(path, dtype, tokenizer) : width_of(dtype);
  const size_t size = tokens.file.size(), width = static_cast<size_t>(tokens.width);
  if (size % width != 0) {
    fail(ErrorCode::kBadFile,
         "[{}] expected whole ids of {} bytes, got {} bytes, {} too many; is it cut off, or of "
         "another --data-dtype?",
         path, width, size, size % width);
  }
  tokens.count = static_cast<int64_t>(size / width);
  return tokens;
}

}  // namespace mamba
