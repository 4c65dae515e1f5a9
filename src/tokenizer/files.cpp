// SPDX-License-Identifier: Apache-2.0
// Which files belong to a tokenizer.
#include "tokenizer/files.h"

#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "formats/gguf.h"
#include "tokenizer/gguf_tokenizer.h"

namespace mamba {

namespace fs = std::filesystem;

namespace {
constexpr const char* kTokenizerJson = "tokenizer.json";
constexpr const char* kVocabulary = "vocab.json";
constexpr const char* kChatTemplate = "chat_template.jinja";
}  // namespace

std::string tokenizer_folder(const std::string& path) {
  std::error_code ignored;
  if (is_gguf_file(path)) return path;
  if (path == "bytes" || fs::is_directory(path, ignored)) return path == "bytes" ? "" : path;
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

std::vector<TokenizerFile> tokenizer_files(const std::string& path) {
  std::vector<TokenizerFile> files;
  if (path == "bytes" || is_gguf_file(path)) return files;
  std::error_code ignored;
  const bool is_folder = fs::is_directory(path, ignored);
  const fs::path folder = tokenizer_folder(path);
  if (!is_folder) files.push_back({path, kTokenizerJson});
  const auto add = [&](const char* name) {
    const fs::path file = folder / name;
    if (fs::is_regular_file(file, ignored)) files.push_back({file.string(), name});
  };
  // Beside a file that was named there may be the vocabulary of another tokenizer.
  if (is_folder) {
    for (const char* name : {kTokenizerJson, kVocabulary, "merges.txt"}) add(name);
  }
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", kChatTemplate}) {
    add(name);
  }
  return files;
}

bool says_bytes(const std::string& folder) {
  std::error_code ignored;
  for (const char* name : {kTokenizerJson, kVocabulary}) {
    if (fs::exists(fs::path(folder) / name, ignored)) return false;
  }
  const std::string path = folder + "/tokenizer_config.json";
  if (!fs::is_regular_file(path, ignored)) return false;
  const Json config = read_json_file(path);
  return config.is_object() && config.value("tokenizer_class", Json()) == kByteTokenizerClass;
}

void copy_tokenizer_files(const std::string& path, const std::string& folder,
                          const std::string& chat_template) {
  if (path == "bytes") {
    const Json config = {{"tokenizer_class", kByteTokenizerClass}};
    write_file_atomic(folder + "/tokenizer_config.json", config.dump(2) + "\n");
  }
  if (is_gguf_file(path)) write_tokenizer_files(GgufFile(path), folder);
  for (const TokenizerFile& from : tokenizer_files(path)) {
    const fs::path to = fs::path(folder) / from.name;
    std::error_code ignored;
    if (fs::equivalent(from.path, to, ignored)) continue;
    if (!chat_template.empty() && from.name == kChatTemplate) continue;
    const MappedFile file(from.path);
    write_file_atomic(to.string(), {reinterpret_cast<const char*>(file.data()), file.size()});
  }
  if (!chat_template.empty()) write_file_atomic(folder + "/" + kChatTemplate, chat_template);
}

}  // namespace mamba
