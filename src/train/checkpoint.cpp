// SPDX-License-Identifier: Apache-2.0
// Writing, checking and reading checkpoints.
#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/hash.h"
#include "base/mapped_file.h"
#include "formats/safetensors.h"
#include "model/model_io.h"
#include "tokenizer/files.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStateFile = "trainer_state.json";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kCardFile = "README.md";
constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kFirstMoment = "exp_avg.";
constexpr const char* kSecondMoment = "exp_avg_sq.";
constexpr int64_t kFormat = 2;  // of trainer_state.json
constexpr int64_t kMaxCount = int64_t{1} << 53;

std::string file_hash(const MappedFile& file) {
  return fmt::format("{:016x}", hash_bytes(file.data(), static_cast<int64_t>(file.size()), 0));
}

// {"model.safetensors": {"bytes": 123, "hash": "..."}, ...} of all files in a folder.
Json describe_files(const std::string& folder) {
  Json files = Json::object();
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const MappedFile file(entry.path().string());
    files[entry.path().filename().string()] = {{"bytes", static_cast<int64_t>(file.size())},
                                               {"hash", file_hash(file)}};
  }
  return files;
}

void check_files(const std::string& path, const Json& files, const std::string& where) {
  if (!files.is_object() || files.empty()) {
    fail(ErrorCode::kBadFile, "[{}] expected \"files\" to list the files of the checkpoint, got {}",
         where, printable_json(files));
  }
  for (const auto& [name, facts] : files.items()) {
    if (name.find('/') != std::string::npos) {
      fail(ErrorCode::kBadFile, "[{}] expected names of files in the checkpoint, got '{}'", where,
           printable(name));
    }
    const MappedFile file(path + "/" + name);
    const int64_t bytes = get_int(facts, "bytes", 0, kMaxCount, where);
    if (static_cast<int64_t>(file.size()) != bytes) {
      fail(
          ErrorCode::kBadFile,
          "[{}] expected {} bytes as written by the run, got {}; the checkpoint is damaged, resume "
          "from another",
          file.path(), bytes, file.size());
    }
    const std::string hash = get_string(facts, "hash", where), got = file_hash(file);
    if (hash != got) {
      fail(ErrorCode::kBadFile,
           "[{}] expected content with hash {} as written by the run, got {}; the checkpoint is "
           "damaged, resume from another",
           file.path(), printable(hash), got);
    }
  }
}

// -1 for a name that is not checkpoint-<digits>.
int64_t step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return -1;
  const char* begin = name.data() + std::strlen(kPrefix);
  const char* end = name.data() + name.size();
  int64_t step = -1;
  const auto [at, error] = std::from_chars(begin, end, step);
  return error == std::errc() && at == end && begin != end && *begin != '-' ? step : -1;
}

}  // namespace

std::string checkpoint_name(int64_t step) { return fmt::format("{}{:08}", kPrefix, step); }

std::vector<CheckpointEntry> list_checkpoints(const std::string& folder) {
  std::vector<CheckpointEntry> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error); !error && at != fs::directory_iterator();
       at.increment(error)) {
    const int64_t step = step_of(at->path().filename().string());
    std::error_code ignored;
    if (step >= 0 && at->is_directory(ignored)) found.push_back({step, at->path().string()});
  }
  std::sort(found.begin(), found.end(),
            [](const CheckpointEntry& a, const CheckpointEntry& b) { return a.step < b.step; });
  return found;
}

std::string save_checkpoint(const std::string& output_dir, const TrainerState& state,
                            const Network& network, AdamW& optimizer, const std::string& tokenizer,
                            const std::string& chat_template, const std::string& card) {
  const std::string final_path = output_dir + "/" + checkpoint_name(state.step);
  AtomicFolder folder(final_path);
  save_model(network, folder.path(), DType::kF32);
  copy_tokenizer_files(tokenizer, folder.path(), chat_template);
  const int64_t count = network.trained().count;
  const HostView first(network.memory(), optimizer.exp_avg(), count);
  const HostView second(network.memory(), optimizer.exp_avg_sq(), count);
  std::vector<TensorData> moments;
  for (size_t i = 0; i < network.table().specs().size(); ++i) {
    const ParamSpec& spec = network.table().specs()[i];
    const int64_t at = network.trained().offsets[i];
    if (at < 0) continue;
    moments.push_back({kFirstMoment + spec.name, DType::kF32, spec.shape, first.as<float>() + at});
    moments.push_back(
        {kSecondMoment + spec.name, DType::kF32, spec.shape, second.as<float>() + at});
  }
  write_safetensors(folder.path() + "/" + kOptimizerFile, moments, {{"format", "mamba-cpp"}});
  if (!card.empty()) write_file_atomic(folder.path() + "/" + kCardFile, card);
  const Json json = {{"format", kFormat},        {"step", state.step},
                     {"samples", state.samples}, {"seconds", state.seconds},
                     {"loss", state.loss},       {"grad_norm", state.grad_norm},
                     {"options", state.options}, {"files", describe_files(folder.path())}};
  write_file_atomic(folder.path() + "/" + kStateFile, json.dump(2) + "\n");
  folder.commit();
  return final_path;
}

TrainerState read_checkpoint(const std::string& path) {
  const std::string where = path + "/" + kStateFile;
  std::error_code ignored;
  if (!fs::is_directory(path, ignored) || !fs::exists(where, ignored)) {
    fail(ErrorCode::kBadFile,
         "[--resume {}] expected a checkpoint folder with {}, got none; name a checkpoint-<step> "
         "folder of a run",
         path, kStateFile);
  }
  const Json json = read_json_file(where);
  const int64_t format = get_int(json, "format", 0, kMaxCount, where);
  if (format != kFormat) {
    fail(ErrorCode::kUnsupported, "[{}] expected format {}, got {}; use the version that wrote it",
         where, kFormat, format);
  }
  TrainerState state;
  state.step = get_int(json, "step", 0, kMaxCount, where);
  state.samples = get_int(json, "samples", 0, kMaxCount, where);
  state.seconds = get_number(json, "seconds", 0, 1e300, where);
  state.loss = get_number(json, "loss", 0, 1e300, where);
  state.grad_norm = get_number(json, "grad_norm", 0, 1e300, where);
  state.options = get_member(json, "options", where);
  check_files(path, get_member(json, "files", where), where);
  return state;
}

uint64_t seed_of_checkpoint(const std::string& path) {
  const std::string where = path + "/" + kStateFile;
  std::error_code ignored;
  if (!fs::is_regular_file(where, ignored)) return 0;
  const Json json = read_json_file(where);
  if (!has_member(json, "options") || !has_member(json["options"], "--seed")) return 0;
  const std::string text = get_string(json["options"], "--seed", where);
  uint64_t seed = 0;
  std::from_chars(text.data(), text.data() + text.size(), seed);
  return seed;
}

void load_checkpoint(const std::string& path, Network& network, AdamW& optimizer) {
  load_weights(network, path, false);
  const SafetensorsFile moments(path + "/" + kOptimizerFile);
  const int64_t count = network.trained().count;
  HostView first(network.memory(), optimizer.exp_avg(), count, HostView::Use::kWrite);
  HostView second(network.memory(), optimizer.exp_avg_sq(), count, HostView::Use::kWrite);
  for (size_t i = 0; i < network.table().specs().size(); ++i) {
    const ParamSpec& spec = network.table().specs()[i];
    const int64_t at = network.trained().offsets[i];
    if (at < 0) continue;
    read_to_f32(moments.get(kFirstMoment + spec.name, spec.shape), first.as<float>() + at);
    read_to_f32(moments.get(kSecondMoment + spec.name, spec.shape), second.as<float>() + at);
  }
  first.write_back();
  second.write_back();
}

void remove_old_checkpoints(const std::string& folder, int64_t limit) {
  if (limit <= 0) return;
  const std::vector<CheckpointEntry> all = list_checkpoints(folder);
  for (size_t i = 0; i + static_cast<size_t>(limit) < all.size(); ++i) {
    // Under a temporary name first: a kill in the middle must not leave half a checkpoint.
    const fs::path old(all[i].path);
    const fs::path gone =
        old.parent_path() / fmt::format(".{}.mamba-tmp-old", old.filename().string());
    std::error_code ignored;
    fs::remove_all(gone, ignored);
    fs::rename(old, gone, ignored);
    fs::remove_all(gone, ignored);
  }
}

void remove_leftovers(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator at(folder, error); !error && at != fs::directory_iterator();
       at.increment(error)) {
    if (is_temporary_name(at->path().filename().string())) leftovers.push_back(at->path());
  }
  for (const fs::path& path : leftovers) fs::remove_all(path, error);
}

}  // namespace mamba
