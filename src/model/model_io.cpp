// SPDX-License-Identifier: Apache-2.0
// Weights from files into a network, and from a network into a folder of the transformers form.
#include "model/model_io.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/rng.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "formats/weight_files.h"
#include "kernels/with_float.h"
#include "model/check_tensors.h"
#include "model/panel_cache.h"
#include "model/weight_types.h"

namespace mamba {
namespace {

constexpr int64_t kShardBytes = 5'000'000'000;

bool is_vocabulary(const ParamSpec& spec) {
  return spec.name == "backbone.embeddings.weight" || spec.name == "lm_head.weight";
}

// values (shape) of which the first `rows` are set: gives the others their start.
void grow_rows(const ParamSpec& spec, const VocabularyGrowth& growth, float* values) {
  constexpr double kNoise = 0.01;
  const int64_t rows = spec.shape[0], D = spec.shape[1];
  const CounterRng rng(growth.seed, spec.name == "lm_head.weight" ? 2 : 1);
  for (int64_t d = 0; d < D; ++d) {
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < growth.rows; ++r) sum += static_cast<double>(values[r * D + d]);
    const double mean = sum / static_cast<double>(growth.rows);
    for (int64_t r = 0; r < growth.rows; ++r) {
      const double off = static_cast<double>(values[r * D + d]) - mean;
      squares += off * off;
    }
    const double noise = kNoise * std::sqrt(squares / static_cast<double>(growth.rows));
    for (int64_t r = growth.rows; r < rows; ++r) {
      const double normal = rng.normal(static_cast<uint64_t>(r * D + d));
      values[r * D + d] = static_cast<float>(mean + noise * normal);
    }
  }
}

// What each parameter is held in: as the file has it in blocks, or as the options want it.
std::vector<DType> held_types(const Network& network, const WeightFiles& files,
                              const ModelOptions& options) {
  std::vector<DType> types;
  for (const ParamSpec& spec : network.table().specs()) {
    const DType stored = files.get(spec.name).dtype;
    const bool stays = is_quantized(stored) && (!options.dequantize || is_quantized(options.dtype));
    types.push_back(stays ? stored : weight_type(network.config(), spec, options.dtype));
  }
  return types;
}

}  // namespace

void initialize(Network& network, uint64_t seed) {
  const ParamTable& table = network.table();
  const int64_t count = table.flat_count();
  const int threads = network.device().host_threads();
  HostView flat(network.memory(), network.parameters(), count, HostView::Use::kWrite);
  if (flat.buf().dtype == DType::kF32) {
    table.initialize(network.config(), seed, flat.as<float>(), threads);
  } else {
    std::vector<float> values(static_cast<size_t>(count));
    table.initialize(network.config(), seed, values.data(), threads);
    write_flat(values.data(), count, flat.buf());
  }
  flat.write_back();
}

float settled(float A_log) {
  const float A = static_cast<float>(std::exp(static_cast<double>(A_log)));
  if (A == 0 || std::isinf(A)) return A_log;
  return static_cast<float>(std::log(static_cast<double>(A)));
}

void settle_rates(Network& network) {
  if (network.device().real() != DType::kF32) return;
  std::vector<float> values;
  for (size_t i = 0; i < network.table().specs().size(); ++i) {
    const ParamSpec& spec = network.table().specs()[i];
    if (!spec.name.ends_with(".A_log")) continue;
    values.resize(static_cast<size_t>(spec.count));
    network.get_rows(static_cast<int>(i), 0, spec.shape[0], values.data());
    std::transform(values.begin(), values.end(), values.begin(), settled);
    network.set_parameter(static_cast<int>(i), CBuf(values.data()));
  }
}

void write_flat(const float* values, int64_t count, Buf flat) {
  with_float(flat.dtype, [&]<class T>() {
    for (int64_t i = 0; i < count; ++i) flat.as<T>()[i] = static_cast<T>(values[i]);
  });
}

std::vector<DType> load_weights(Network& network, const std::string& path, bool pack,
                                const VocabularyGrowth& growth, const ModelOptions& options) {
  const WeightFiles files(path);
  Config stored = network.config();
  if (growth.rows > 0) stored.vocab_size = growth.rows;
  check_tensors(files, stored);
  const DType wanted = options.dtype;
  const std::vector<DType> types = held_types(network, files, options);
  std::unique_ptr<PanelCache> cache;
  if (options.cache.use) {
    cache = std::make_unique<PanelCache>(network, files, types, options);
  }
  std::vector<float> values;
  std::vector<DType> kept;
  double seconds = 0;  // of preparing blocks
  int index = -1;
  for (const ParamSpec& spec : network.table().specs()) {
    ++index;
    const DType type = types[static_cast<size_t>(index)];
    if (is_quantized(type) && type != weight_type(network.config(), spec, wanted) &&
        std::find(kept.begin(), kept.end(), type) == kept.end()) {
      kept.push_back(type);
    }
    if (cache != nullptr && cache->set(index)) continue;
    const bool grows = growth.rows > 0 && is_vocabulary(spec);
    const TensorInfo& tensor = files.get(spec.name);
    const auto start = std::chrono::steady_clock::now();
    CBuf data(tensor.data, tensor.dtype);
    const uintptr_t misplaced = reinterpret_cast<uintptr_t>(tensor.data) % 4;
    const bool as_is = (is_quantized(type) && type == tensor.dtype) ||
                       ((tensor.dtype == DType::kF32 || tensor.dtype == DType::kBF16 ||
                         tensor.dtype == DType::kF16) &&
                        misplaced == 0);
    if (grows || !as_is) {
      values.resize(static_cast<size_t>(spec.count));
      read_to_f32(tensor, values.data());
      if (grows) grow_rows(spec, growth, values.data());
      data = CBuf(values.data());
    }
    set_weight(network, index, data, wanted, options.interrupted);
    files.release(tensor);
    if (is_quantized(type)) {
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  }
  if (cache != nullptr) {
    cache->keep(seconds);
    cache.reset();
  }
  network.parameters_changed(pack);
  return kept;
}

void save_model(const Network& network, const std::string& folder, DType dtype) {
  MAMBA_CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    fail(ErrorCode::kIo,
         "[{}] expected to create this folder, got '{}'; check its parent and permissions", folder,
         error.message());
  }
  const ParamTable& table = network.table();
  std::vector<float> values(static_cast<size_t>(table.flat_count()));
  for (size_t i = 0; i < table.specs().size(); ++i) {
    const ParamSpec& spec = table.specs()[i];
    network.get_rows(static_cast<int>(i), 0, spec.shape[0], values.data() + spec.offset);
  }
  std::vector<bf16> halves(dtype == DType::kBF16 ? values.size() : 0);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = to_bf16(values[i]);
  std::vector<TensorData> tensors;
  for (const ParamSpec& spec : table.specs()) {
    const bool half = dtype == DType::kBF16 && spec.matrix;
    const void* data = half ? static_cast<const void*>(halves.data() + spec.offset)
                            : static_cast<const void*>(values.data() + spec.offset);
    tensors.push_back({spec.name, half ? DType::kBF16 : DType::kF32, spec.shape, data});
  }
  write_sharded_safetensors(folder, tensors, {{"format", "pt"}}, kShardBytes);
  write_file_atomic(folder + "/config.json", write_config(network.config()));
}

}  // namespace mamba
