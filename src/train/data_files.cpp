// SPDX-License-Identifier: Apache-2.0
// Files of folders, and kinds by extension.
#include "train/data_files.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "base/check.h"
#include "base/text_kind.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with("."); }

// Whether `path` describes a .bin beside it (tokenizer/token_file.h).
bool is_description(const std::string& path) {
  std::error_code ignored;
  return path.ends_with(".json") && fs::exists(fs::path(path).replace_extension(".bin"), ignored);
}

// The files of a folder, sorted by path.
std::vector<std::string> files_below(const std::string& folder, const std::string& what) {
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator at(folder, fs::directory_options::follow_directory_symlink,
                                      error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
    std::error_code ignored;
    if (is_hidden(at->path())) {
      if (at->is_directory(ignored)) at.disable_recursion_pending();
    } else if (at->is_regular_file(ignored) && !is_description(at->path().string())) {
      files.push_back(at->path().string());
    }
  }
  if (error) {
    fail(ErrorCode::kBadFile, "[{} {}] expected a readable folder, got: {}; check its permissions",
         what, folder, error.message());
  }
  if (files.empty()) {
    fail(ErrorCode::kBadFile, "[{} {}] expected a folder with files, got none in it; name another",
         what, folder);
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Takes those out that are no data, and says what they are.
void leave_out_others(const std::string& folder, const std::string& what, bool with_tokens,
                      std::vector<std::string>* files, std::vector<std::string>* notices) {
  std::map<std::string, int64_t> kinds;
  std::string advice;
  const auto is_other = [&](const std::string& path) {
    const DataKind kind = data_kind_of(path);
    if (kind == DataKind::kTokens && !with_tokens) {
      ++kinds["a file of tokens"];
      return true;
    }
    const std::optional<NotText> other =
        kind == DataKind::kText ? file_not_text(path) : std::nullopt;
    if (!other) return false;
    ++kinds[other->what];
    if (advice.empty()) advice = other->advice;
    return true;
  };
  const size_t before = files->size();
  files->erase(std::remove_if(files->begin(), files->end(), is_other), files->end());
  if (kinds.empty()) return;
  std::string list;
  for (const auto& [kind, count] : kinds) {
    list += fmt::format("{}{} ({})", list.empty() ? "" : ", ", kind, count);
  }
  if (files->empty()) {
    fail(ErrorCode::kBadFile, "[{} {}] expected a folder with text, got {} others: {}; {}", what,
         folder, before, list, advice.empty() ? "name another" : advice);
  }
  if (notices == nullptr) return;
  notices->push_back(fmt::format("{} {}: {} of {} files are no text and left out: {}", what, folder,
                                 before - files->size(), before, list));
}

}  // namespace

DataKind data_kind_of(const std::string& path) {
  const std::string extension = fs::path(path).extension().string();
  if (extension == ".jsonl" || extension == ".json") return DataKind::kJsonl;
  return extension == ".bin" ? DataKind::kTokens : DataKind::kText;
}

std::vector<std::string> list_data_files(const std::vector<std::string>& paths,
                                         const std::string& what, std::vector<std::string>* notices,
                                         bool with_tokens) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) {
      std::vector<std::string> below = files_below(path, what);
      leave_out_others(path, what, with_tokens, &below, notices);
      files.insert(files.end(), below.begin(), below.end());
      continue;
    }
    const DataKind kind = data_kind_of(path);
    if (kind == DataKind::kText) expect_text(path, what);
    if (kind == DataKind::kTokens && !with_tokens) {
      fail(ErrorCode::kBadFile,
           "[{}] expected text or lines of JSON, got '{}', a file of tokens; name the text that it "
           "was made of",
           what, path);
    }
    files.push_back(path);
  }
  return files;
}

}  // namespace mamba
