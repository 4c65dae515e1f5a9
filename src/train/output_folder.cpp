// SPDX-License-Identifier: Apache-2.0
// Whose the files of an output folder are.
#include "train/output_folder.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "tokenizer/files.h"
#include "tokenizer/gguf_tokenizer.h"
#include "train/checkpoint.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kChatTemplate = "chat_template.jinja";

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

// Whether the log is empty or begins as RunLog writes it.
bool is_run_log(const std::string& path) {
  constexpr size_t kLongest = 4096;
  const MappedFile file(path);
  const std::string_view text = text_of(file);
  const size_t end = text.find('\n');
  if (text.empty()) return true;
  if (end == std::string_view::npos || end > kLongest) return false;
  try {
    const Json line = parse_json(text.substr(0, end), path);
    return has_member(line, "step") &&
           (has_member(line, "eval_tokens") ||
            (has_member(line, "learning_rate") && has_member(line, "tokens_per_second")));
  } catch (const Error&) {
    return false;
  }
}

bool same_content(const std::string& a, const std::string& b) {
  std::error_code ignored;
  if (fs::equivalent(a, b, ignored)) return true;
  if (fs::file_size(a, ignored) != fs::file_size(b, ignored)) return false;
  return text_of(MappedFile(a)) == text_of(MappedFile(b));
}

// The files of the model that are there already, and which of them the run may replace.
class OutputFiles {
 public:
  OutputFiles(const std::string& folder, const std::string& tokenizer,
              const std::string& chat_template)
      : folder_(folder), tokenizer_(tokenizer), chat_template_(chat_template) {
    sources_ = tokenizer_files(tokenizer);
    const std::string log = folder + "/metrics.jsonl";
    std::error_code ignored;
    has_run_ = fs::is_regular_file(log, ignored) && is_run_log(log);
  }

  // Of those that a run writes; a run that has not saved yet has left a log, a tokenizer and maybe
  // curves.
  bool is_foreign(const std::string& name) const {
    const std::string path = folder_ + "/" + name;
    std::error_code ignored;
    if (!fs::exists(fs::symlink_status(path, ignored))) return false;
    if (name == "metrics.jsonl" || name == "curves.svg") return !has_run_;
    if (name == "README.md" || name == "config.json") return true;
    return !is_regular(path) || !(has_run_ ? is_written(name) : is_same(path, name));
  }

 private:
  static bool is_regular(const std::string& path) {
    std::error_code ignored;
    return fs::is_regular_file(path, ignored);
  }
  bool is_written(const std::string& name) const {
    if (name == kChatTemplate && !chat_template_.empty()) return true;
    if (name == kTokenizerConfig && tokenizer_ == "bytes") return true;
    if (is_gguf_file(tokenizer_) && name != kChatTemplate) return true;
    return source_of(name) != nullptr;
  }
  // What the run would write there is there.
  bool is_same(const std::string& path, const std::string& name) const {
    if (name == kChatTemplate && !chat_template_.empty()) {
      return text_of(MappedFile(path)) == chat_template_;
    }
    if (name == kTokenizerConfig && tokenizer_ == "bytes") return says_bytes(folder_);
    const TokenizerFile* source = source_of(name);
    return source != nullptr && same_content(path, source->path);
  }
  const TokenizerFile* source_of(const std::string& name) const {
    const auto found = std::find_if(sources_.begin(), sources_.end(),
                                    [&](const TokenizerFile& f) { return f.name == name; });
    return found == sources_.end() ? nullptr : &*found;
  }

  const std::string &folder_, &tokenizer_, &chat_template_;
  std::vector<TokenizerFile> sources_;
  bool has_run_ = false;
};

}  // namespace

void check_output_folder(const TrainOptions& options) {
  const std::string& folder = options.output_dir;
  if (folder.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[--output-dir] expected the folder for checkpoints and the model, got none; name one");
  }
  std::error_code ignored;
  if (fs::exists(folder, ignored) && !fs::is_directory(folder, ignored)) {
    fail(ErrorCode::kInvalidArgument,
         "[--output-dir {}] expected a folder, got a file; name another", folder);
  }
  if (options.resume) return;
  const std::vector<CheckpointEntry> found = list_checkpoints(folder);
  const bool model = fs::exists(folder + "/model.safetensors", ignored) ||
                     fs::exists(folder + "/model.safetensors.index.json", ignored);
  if (found.empty() && !model) return;
  fail(ErrorCode::kInvalidArgument,
       "[--output-dir {}] expected a folder without a run, got one with {}; go on with --resume or "
       "name another folder",
       folder, found.empty() ? "a model" : fs::path(found.back().path).filename().string());
}

void check_output_files(const TrainOptions& options, const std::string& tokenizer,
                        const std::string& chat_template) {
  // The files beside checkpoints are their run's.
  if (!list_checkpoints(options.output_dir).empty()) return;
  const OutputFiles files(options.output_dir, tokenizer, chat_template);
  for (const char* name :
       {"README.md", "config.json", "metrics.jsonl", "curves.svg", "tokenizer.json", "vocab.json",
        "merges.txt", kTokenizerConfig, "special_tokens_map.json", kChatTemplate,
        "generation_config.json", "model.safetensors", "model.safetensors.index.json"}) {
    if (!files.is_foreign(name)) continue;
    fail(ErrorCode::kInvalidArgument,
         "[--output-dir {}] expected a folder without {}, got one, which would be lost or become "
         "part of the model; name another folder, or move it away",
         options.output_dir, name);
  }
}

}  // namespace mamba
