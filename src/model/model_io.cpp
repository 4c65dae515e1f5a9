// SPDX-License-Identifier: Apache-2.0
// Weights between a network and a model folder in the transformers form.
#include "model/model_io.h"

#include <filesystem>
#include <set>

#include "base/atomic_file.h"
#include "base/check.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "kernels/with_float.h"

namespace mamba {
namespace {

constexpr int64_t kShardBytes = 5'000'000'000;

}  // namespace

void read_flat(CBuf flat, int64_t count, float* out) {
  with_float(flat.dtype, [&]<class T>() {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(flat.as<T>()[i]);
  });
}

void write_flat(const float* values, int64_t count, Buf flat) {
  with_float(flat.dtype, [&]<class T>() {
    for (int64_t i = 0; i < count; ++i) flat.as<T>()[i] = static_cast<T>(values[i]);
  });
}

void load_weights(Network& network, const std::string& folder, bool pack) {
  const ShardedSafetensors file(folder);
  std::set<std::string> known;
  std::vector<float> values;
  for (const ParamSpec& spec : network.table().specs()) {
    known.insert(spec.name);
    const TensorInfo& tensor = file.get(spec.name, spec.shape);
    values.resize(static_cast<size_t>(spec.count));
    read_to_f32(tensor, values.data());
    write_flat(values.data(), spec.count, network.parameters() + spec.offset);
  }
  if (network.config().tie_embeddings) known.insert("lm_head.weight");
  for (const TensorInfo& tensor : file.tensors()) {
    if (known.count(tensor.name) != 0) continue;
    fail(ErrorCode::kBadFile,
         "[{}] expected the {} tensors of this configuration, got also '{}' {}; config.json and "
         "weights do not belong together, or it is a variant that this version does not know",
         file.where(), known.size(), tensor.name, shape_text(tensor.shape));
  }
  network.parameters_changed(pack);
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
  read_flat(network.parameters(), table.flat_count(), values.data());
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
