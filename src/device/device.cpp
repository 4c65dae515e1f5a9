// SPDX-License-Identifier: Apache-2.0
// Choice of a backend by name, scratch memory and the sticky error.
#include "device/device.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "base/check.h"
#include "base/json.h"
#include "device/choice_file.h"
#include "device/cpu_features.h"

namespace mamba {
namespace {

struct Backend {
  const char* name;
  const Kernels& (*kernels)();
  DType real;
  bool available;
};

// Best first: "cpu" means the first available one. oneDNN is worth it where it can use AMX.
std::vector<Backend> backends() {
  const CpuFeatures& f = cpu_features();
  std::vector<Backend> list = {
      {"cpu:avx512_bf16", avx512_bf16_kernels, DType::kF32, f.avx512_bf16},
      {"cpu:avx512", avx512_kernels, DType::kF32, f.avx512},
      {"cpu:avx2", avx2_kernels, DType::kF32, f.avx2},
      {"cpu:base", base_kernels, DType::kF32, true},
      {"ref", ref_kernels, DType::kF32, true},
      {"ref64", ref_kernels, DType::kF64, true},
  };
  list.insert(f.amx ? list.begin() : list.end() - 2,
              {"cpu:onednn", onednn_kernels, DType::kF32, true});
  return list;
}

constexpr int64_t kAlignment = 64;

bool grow_scratch(Stream& stream, int64_t bytes) {
  const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* fresh = std::aligned_alloc(kAlignment, static_cast<size_t>(rounded));
  if (fresh == nullptr) {
    if (stream.failed == nullptr) {
      stream.failed = "scratch memory of a kernel";
      stream.failed_bytes = rounded;
    }
    return false;
  }
  std::free(stream.scratch_data);
  stream.scratch_data = fresh;
  stream.scratch_bytes = rounded;
  return true;
}

void* take_memory(Stream& stream, int64_t bytes) {
  return static_cast<Device*>(stream.owner)->pool().take(bytes);
}
void give_memory(Stream& stream, void* data) {
  static_cast<Device*>(stream.owner)->pool().give(data);
}

}  // namespace

std::vector<std::string> Device::available() {
  std::vector<std::string> names;
  for (int i = 0; i < cuda::inventory().count; ++i) names.push_back(fmt::format("cuda:{}", i));
  for (const Backend& b : backends()) {
    if (b.available) names.emplace_back(b.name);
  }
  return names;
}

std::unique_ptr<Device> Device::create(const DeviceOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    fail(ErrorCode::kInvalidArgument, "[device] expected threads in 0..1024 (0: all), got {}",
         options.threads);
  }
  if (options.name.rfind("cuda", 0) == 0) {
    std::unique_ptr<Device> device = create_cuda(options.name);
    device->set_choices(options);
    return device;
  }
  for (const Backend& b : backends()) {
    const bool best = options.name == "cpu" && b.available;
    if (!best && options.name != b.name) continue;
    if (!b.available) {
      fail(ErrorCode::kDevice,
           "[device] '{}' needs instructions that this CPU ({}) lacks; use one of {}", b.name,
           cpu_model_name(), fmt::join(available(), ", "));
    }
    std::unique_ptr<Device> device(new Device);
    device->kernels_ = &b.kernels();
    device->real_ = b.real;
    device->name_ = b.name;
    device->stream_.threads = options.threads > 0 ? options.threads : physical_cores();
    device->stream_.grow = grow_scratch;
    device->stream_.take = take_memory;
    device->stream_.give = give_memory;
    device->stream_.owner = device.get();
    device->set_choices(options);
    return device;
  }
  fail(ErrorCode::kInvalidArgument, "[device] expected one of cpu, cuda, {}; got '{}'",
       fmt::join(available(), ", "), options.name);
}

std::unique_ptr<Device> Device::create_cuda(const std::string& name) {
  int index = 0;
  const char* end = name.data() + name.size();
  if (name != "cuda") {
    const char* digits = name.data() + std::min<size_t>(5, name.size());
    const auto [stop, error] = std::from_chars(digits, end, index);
    if (name[4] != ':' || error != std::errc() || stop != end || index < 0) {
      fail(ErrorCode::kInvalidArgument,
           "[device] expected cpu, cuda or cuda:N with N from 0, got '{}'", printable(name));
    }
  }
  const cuda::Inventory inventory = cuda::inventory();
  if (inventory.count == 0) {
    fail(ErrorCode::kDevice,
         "[device] expected an NVIDIA GPU for '{}', got none: {}; use one of {}", name,
         inventory.why_none, fmt::join(available(), ", "));
  }
  if (index >= inventory.count) {
    fail(ErrorCode::kDevice, "[device] expected cuda:0 to cuda:{} ({} GPU{} here), got '{}'",
         inventory.count - 1, inventory.count, inventory.count == 1 ? "" : "s", name);
  }
  std::unique_ptr<Device> device(new Device);
  device->name_ = fmt::format("cuda:{}", index);
  device->stream_.owner = device.get();
  device->connection_ = cuda::connect(index, device->name_, device->stream_);
  device->set_memory({device->connection_, &device->connection_->memory()});
  device->card_ = device->connection_->card();
  device->kernels_ = &cuda::kernels();
  device->bf16_activations_ = true;
  return device;
}

void Device::set_choices(const DeviceOptions& options) {
  if (!backend_mode_of(options.backend.c_str(), &choices_.mode)) {
    fail(ErrorCode::kInvalidArgument, "[backend] expected auto, reference or fused, got '{}'",
         printable(options.backend));
  }
  if (choices_.mode == BackendMode::kFused && connection_ == nullptr) {
    fail(ErrorCode::kInvalidArgument,
         "[--backend] expected a device with fused kernels (mamba1_step, mamba2_step), got {}, "
         "which runs their parts one after another; use --backend auto, or --device cuda",
         name_);
  }
  choices_.card = table_of_card(card_);
  stream_.choices = &choices_;
  if (card_.capability == 0 || options.choices_folder.empty()) return;
  const std::string path =
      (std::filesystem::path(options.choices_folder) / choice_file_name(card_)).string();
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return;
  try {
    tuned_ = read_choice_file(path, card_).rows;
    choices_.tuned = {tuned_.data(), static_cast<int64_t>(tuned_.size())};
    choices_file_ = path;
  } catch (const Error& error) {
    if (!options.on_warning) return;
    options.on_warning(
        fmt::format("{}; it is not used: run 'mamba-cpp tune' again, or remove it", error.what()));
  }
}

// What --backend demands and a kernel could not do.
void Device::expect_not_refused() {
  if (!choices_.refused) return;
  choices_.refused = false;
  const Request& r = choices_.refusal;
  fail(ErrorCode::kInvalidArgument,
       "[--backend] expected {} of {} x {} ({}) as {} kernels, got {}; use --backend auto",
       name_of(r.operation), r.rows, r.depth, dtype_name(r.type), name_of(choices_.mode),
       r.why_not != nullptr ? r.why_not : "no such kernel");
}

Device::~Device() {
  if (connection_ == nullptr) {
    std::free(stream_.scratch_data);
  } else {
    connection_->detach();
  }
}

void Device::set_memory(std::shared_ptr<DeviceMemory> memory) {
  shared_memory_ = std::move(memory);
  memory_ = shared_memory_.get();
}

std::string Device::hardware() const {
  return connection_ != nullptr ? connection_->hardware() : cpu_model_name();
}

int Device::host_threads() const { return memory().on_host() ? threads() : physical_cores(); }

double Device::time(const std::function<void()>& body) {
  if (connection_ != nullptr) return connection_->time(body);
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Device::replay(const std::vector<uint64_t>& key, const std::function<void()>& body) {
  // A table that watches must see every call.
  if (connection_ == nullptr || choices_.on_choice != nullptr || kernels_ != &cuda::kernels()) {
    return body();
  }
  std::vector<uint64_t> all = key;
  all.push_back(choices_.version);
  connection_->replay(std::move(all), body);
}

void Device::sync() {
  if (stream_.failed == nullptr) memory().wait();
  expect_not_refused();
  if (stream_.failed == nullptr) return;
  const std::string what = stream_.failed;
  const std::string why =
      stream_.failed_why != nullptr ? std::string(": ") + stream_.failed_why : "";
  const int64_t bytes = stream_.failed_bytes;
  stream_.failed = stream_.failed_why = nullptr;
  stream_.failed_bytes = 0;
  if (bytes == 0) fail(ErrorCode::kDevice, "[device {}] {} failed{}", name_, what, why);
  fail(ErrorCode::kOutOfMemory,
       "[device {}] {} failed asking for {} bytes{}; use smaller batches or sequences", name_, what,
       bytes, memory().on_host() ? "" : fmt::format(" ({:.0f} are free)", memory().free_bytes()));
}

}  // namespace mamba
