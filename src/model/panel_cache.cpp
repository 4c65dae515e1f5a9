// SPDX-License-Identifier: Apache-2.0
// Finding, checking and writing files of panels.
#include "model/panel_cache.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/hash.h"
#include "base/json.h"
#include "formats/safetensors.h"
#include "formats/weight_files.h"
#include "kernels/linear_q_packed.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

// To be raised whenever the layout of panels or the search for scales changes.
constexpr int kVersion = 1;
constexpr const char *kFormat = "mamba-cpp-panels", *kEnding = ".panels";
constexpr const char* kHash = "hash of ";  // before the name of a tensor, in the metadata
constexpr int64_t kAlignment = 64;         // of tensors in the file, and of panels in memory
constexpr int64_t kSample = 4096;          // bytes of a tensor that tell it from another

uint64_t hash_text(const std::string& text, uint64_t seed) {
  return hash_bytes(text.data(), static_cast<int64_t>(text.size()), seed);
}

// Over all that a file of weights says of its tensors, and some of what is in them.
uint64_t hash_source(const WeightFiles& files) {
  uint64_t h = 0;
  for (const std::string& path : files.files()) {
    std::error_code ignored;
    const auto time = fs::last_write_time(path, ignored).time_since_epoch().count();
    h = hash_text(fmt::format("{} {}", fs::file_size(path, ignored), time), h);
  }
  for (const TensorInfo& t : files.tensors()) {
    h = hash_text(fmt::format("{} {} {}", t.name, dtype_name(t.dtype), shape_text(t.shape)), h);
    const char* data = static_cast<const char*>(t.data);
    const int64_t some = std::min(t.bytes, kSample);
    for (const int64_t at : {int64_t{0}, (t.bytes - some) / 2, t.bytes - some}) {
      if (some > 0) h = hash_bytes(data + at, some, h);
    }
  }
  return h;
}

// The file of weights that names the cache: "model.gguf", or of a folder "model.safetensors".
fs::path first_file(const WeightFiles& files) {
  std::error_code ignored;
  const fs::path whole = fs::absolute(files.files().at(0), ignored);
  return whole.lexically_normal();
}

// Where panels of a model stand, but for type and version.
struct Place {
  fs::path folder;
  std::string stem;
  unsigned mode;  // of files made there
};
std::vector<Place> places(const WeightFiles& files, const std::string& folder) {
  // Panels are the weights once more: who cannot read those reads no panels either.
  constexpr unsigned kForAll = 0666, kForOwner = 0600;
  const bool open_to_all =
      std::all_of(files.files().begin(), files.files().end(), [](const std::string& path) {
        std::error_code error;
        const fs::perms perms = fs::status(path, error).permissions();
        return !error && (perms & fs::perms::others_read) != fs::perms::none;
      });
  const fs::path model = first_file(files);
  const std::string name = model.filename().string();
  std::vector<Place> all = {
      {model.parent_path(), "." + name + ".", open_to_all ? kForAll : kForOwner}};
  if (!folder.empty()) {
    const uint64_t where = hash_text(model.parent_path().string(), 0);
    all.push_back({folder, fmt::format("{}.{:016x}.", name, where), kForOwner});
  }
  return all;
}

// In a folder like /tmp everybody may put a file beside a model that only its owner may replace.
// Elsewhere who could write the panels could have written the weights.
bool is_of_stranger(const MappedFile& file, const std::string& model) {
  struct stat folder, weights;
  if (stat(fs::path(file.path()).parent_path().c_str(), &folder) != 0) return true;
  if ((folder.st_mode & S_ISVTX) == 0) return false;
  const uid_t owner = file.owner();
  return owner != 0 && owner != geteuid() && owner != folder.st_uid &&
         (stat(model.c_str(), &weights) != 0 || owner != weights.st_uid);
}

// The type that most of what is in blocks has, or nothing.
const char* main_type(const ParamTable& table, const std::vector<DType>& types) {
  std::map<DType, int64_t> elements;
  for (size_t i = 0; i < types.size(); ++i) {
    if (is_quantized(types[i])) elements[types[i]] += table.specs()[i].count;
  }
  const auto most =
      std::max_element(elements.begin(), elements.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == elements.end() ? nullptr : dtype_name(most->first);
}

// What processes that were killed while they wrote panels have left. At every load, as the next one
// after such an end writes the file, and what was left is too young for it to tell.
void remove_left_over(const Place& place) {
  const auto old = fs::file_time_type::clock::now() - std::chrono::minutes(10);
  const std::string start = "." + place.stem;
  std::vector<fs::path> left;
  std::error_code error;
  for (fs::directory_iterator at(place.folder, error); !error && at != fs::directory_iterator();
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    std::error_code ignored;
    if (name.starts_with(start) && name.find(kEnding) != std::string::npos &&
        is_temporary_name(name) && at->last_write_time(ignored) < old) {
      left.push_back(at->path());
    }
  }
  for (const fs::path& file : left) fs::remove(file, error);
}

}  // namespace

PanelCache::PanelCache(Network& network, const WeightFiles& files, const std::vector<DType>& types,
                       const ModelOptions& options)
    : network_(network),
      options_(options),
      types_(types),
      ready_(types.size(), nullptr),
      packed_(types.size(), nullptr) {
  find(files);
  table_.real = &network.device().kernels();
  static_cast<Kernels&>(table_) = *table_.real;
  table_.owner = this;
  table_.linear_q_pack = watch;
  network.device().set_kernels(table_);
}

void PanelCache::find(const WeightFiles& files) {
  const ParamTable& table = network_.table();
  for (size_t i = 0; i < types_.size(); ++i) {  // vectors become f32 even of blocks
    if (!table.specs()[i].matrix) types_[i] = DType::kF32;
  }
  const char* type = main_type(table, types_);
  // The layout is that of CPUs; `ref` and GPUs have others.
  if (type == nullptr || !network_.device().name().starts_with("cpu")) return;
  uint64_t key = hash_text(fmt::format("{} {}", kFormat, kVersion), hash_source(files));
  for (size_t i = 0; i < types_.size(); ++i) {
    const ParamSpec& spec = table.specs()[i];
    key = hash_text(
        fmt::format("{} {} {}", spec.name, shape_text(spec.shape), dtype_name(types_[i])), key);
  }
  key_ = fmt::format("{:016x}", key);
  source_ = first_file(files).string();
  for (const Place& place : places(files, options_.cache.folder)) {
    remove_left_over(place);
    const std::string name = fmt::format("{}{}.v{}{}", place.stem, type, kVersion, kEnding);
    candidates_.push_back({(place.folder / name).string(), place.mode});
  }
  for (const Candidate& candidate : candidates_) {
    if (open(candidate.path)) return;
  }
}

PanelCache::~PanelCache() { network_.device().set_kernels(*table_.real); }

void PanelCache::note(const std::string& text) const {
  if (options_.cache.on_note) options_.cache.on_note(text);
}

int64_t PanelCache::bytes_of(size_t index) const {
  const ParamSpec& spec = network_.table().specs()[index];
  const int64_t N = spec.shape[0], K = spec.count / N;
  return (N + panels::kRows - 1) / panels::kRows *
         panels::panel_bytes(panels::layout_of(types_[index]), K);
}

// True if the file holds exactly these panels.
bool PanelCache::open(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return false;
  std::vector<const void*> ready(types_.size(), nullptr);
  std::vector<uint64_t> hashes(types_.size(), 0);
  std::unique_ptr<MappedFile> file;
  const auto no = [&](const std::string& why) {
    note(fmt::format("{} is not used: {}", printable(path, 200), why));
    return false;
  };
  try {
    file = std::make_unique<MappedFile>(path);
    if (is_of_stranger(*file, source_)) return no("another user put it there");
    const SafetensorsFile tensors(file->data(), file->size(), path);
    const auto& metadata = tensors.metadata();
    const auto get = [&](const std::string& key) {
      const auto found = metadata.find(key);
      return found == metadata.end() ? "" : found->second;
    };
    if (get("format") != kFormat) return no("it is no file of panels");
    if (get("key") != key_) return no("it was made of other weights");
    for (size_t i = 0; i < types_.size(); ++i) {
      if (!is_quantized(types_[i])) continue;
      const std::string& name = network_.table().specs()[i].name;
      const TensorInfo& t = tensors.get(name);
      const bool aligned = reinterpret_cast<uintptr_t>(t.data) % kAlignment == 0;
      if (t.dtype != DType::kU8 || t.bytes != bytes_of(i) || !aligned) return no("it is damaged");
      ready[i] = t.data;
    }
    std::atomic<bool> good = true;
#pragma omp parallel for num_threads(network_.device().threads()) schedule(dynamic)
    for (size_t i = 0; i < ready.size(); ++i) {
      if (ready[i] != nullptr) hashes[i] = hash_bytes(ready[i], bytes_of(i), 0);
    }
    for (size_t i = 0; i < ready.size(); ++i) {
      const std::string name = kHash + network_.table().specs()[i].name;
      if (ready[i] != nullptr && get(name) != fmt::format("{:016x}", hashes[i])) good = false;
    }
    if (!good) return no("it is damaged");
  } catch (const Error& error) {
    return no(error.what());
  }
  ready_ = std::move(ready);
  file_ = std::move(file);
  note(fmt::format("panels from {}", printable(path, 200)));
  return true;
}

void PanelCache::watch(Stream& stream, const LinearQPackArgs& args) noexcept {
  const Device& device = *static_cast<const Device*>(stream.owner);
  const auto& table = static_cast<const Watching&>(device.kernels());
  PanelCache& self = *table.owner;
  const void* ready = self.ready_[self.index_];
  if (ready != nullptr && args.weight.data == ready) {
    *args.out = panels::copy(stream, args.weight.dtype, ready, args.N, args.K);
  } else {
    table.real->linear_q_pack(stream, args);
  }
  self.packed_[self.index_] = *args.out;
}

// Copied and not used where they are: memory of files lies in pages of 4 KiB, and one thread
// decoded 15 % fewer tokens from it than from huge pages (130m shapes, q4_0: 160 and 188 a second),
// for 20 ms of loading.
bool PanelCache::set(int index) {
  index_ = static_cast<size_t>(index);
  if (ready_[index_] == nullptr) return false;
  network_.set_parameter(index, CBuf(ready_[index_], types_[index_]));
  file_->release(ready_[index_], static_cast<size_t>(bytes_of(index_)));
  return true;
}

void PanelCache::keep(double seconds) {
  if (candidates_.empty() || file_ != nullptr || seconds <= options_.cache.after_seconds) return;
  for (const Candidate& candidate : candidates_) {
    if (write(candidate)) return;
  }
}

bool PanelCache::write(const Candidate& to) {
  TensorMetadata metadata = {
      {"format", kFormat}, {"key", key_}, {"source", printable(source_, 1000)}};
  std::vector<TensorData> tensors;
  for (size_t i = 0; i < packed_.size(); ++i) {
    if (packed_[i] == nullptr || !is_quantized(packed_[i]->dtype)) continue;
    const PackedLinear& p = *packed_[i];
    const std::string& name = network_.table().specs()[i].name;
    MAMBA_CHECK(p.panel == panels::kPanelMark && p.bytes == bytes_of(i));
    metadata[kHash + name] = fmt::format("{:016x}", hash_bytes(p.data, p.bytes, 0));
    // By blocks, so that an interruption need not wait for gigabytes.
    const auto fill = [&p, this](int64_t begin, int64_t count, void* out) {
      if (options_.interrupted && options_.interrupted())
        fail(ErrorCode::kCancelled, "interrupted");
      std::memcpy(out, static_cast<const char*>(p.data) + begin, static_cast<size_t>(count));
    };
    tensors.push_back({name, DType::kU8, {p.bytes}, nullptr, fill});
  }
  try {
    std::error_code ignored;
    fs::create_directories(fs::path(to.path).parent_path(), ignored);
    write_safetensors(to.path, tensors, metadata, kAlignment, to.mode);
  } catch (const Error& error) {
    note(fmt::format("panels are not kept: {}", error.what()));
    return false;
  }
  note(fmt::format("panels kept in {}", printable(to.path, 200)));
  return true;
}

std::vector<std::string> panel_files(const std::string& path, const std::string& folder) {
  std::vector<std::string> found;
  const WeightFiles files(path);
  for (const Place& place : places(files, folder)) {
    std::error_code error;
    for (fs::directory_iterator at(place.folder, error); !error && at != fs::directory_iterator();
         at.increment(error)) {
      const std::string name = at->path().filename().string();
      if (name.starts_with(place.stem) && name.ends_with(kEnding))
        found.push_back(at->path().string());
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace mamba
