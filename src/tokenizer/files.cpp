// SPDX-License-Identifier: Apache-2.0
// Which files belong to a tokenizer.
#include "tokenizer/files.h"

#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/mapped_file.h"

namespace mamba {

namespace fs = std::filesystem;

namespace {
constexpr const char* kByteClass = "ByteTokenizer";
}  // namespace

std::vector<std::string> tokenizer_files(const std::string& path) {
  std::vector<std::string> files;
  if (path == "bytes") return files;
  std::error_code ignored;
  const fs::path folder =
      fs::is_directory(path, ignored) ? fs::path(path) : fs::path(path).parent_path();
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "vocab.json", "merges.txt", "chat_template.jinja"}) {
    const fs::path file = folder / name;
    if (fs::is_regular_file(file, ignored)) files.push_back(file.string());
  }
  return files;
}

bool says_bytes(const std::string& folder) {
  const std::string path = folder + "/tokenizer_config.json";
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return false;
  const Json config = read_json_file(path);
  return config.is_object() && config.value("tokenizer_class", Json()) == kByteClass;
}

void copy_tokenizer_files(const std::string& path, const std::string& folder) {
  if (path == "bytes") {
    const Json config = {{"tokenizer_class", kByteClass}};
    write_file_atomic(folder + "/tokenizer_config.json", config.dump(2) + "\n");
  }
  for (const std::string& from : tokenizer_files(path)) {
    const fs::path to = fs::path(folder) / fs::path(from).filename();
    std::error_code ignored;
    if (fs::equivalent(from, to, ignored)) continue;
    const MappedFile file(from);
    write_file_atomic(to.string(), {reinterpret_cast<const char*>(file.data()), file.size()});
  }
}

}  // namespace mamba
