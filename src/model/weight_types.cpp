// SPDX-License-Identifier: Apache-2.0
// Types of matrices, and rows in f32 to blocks.
#include "model/weight_types.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/check.h"
#include "base/f16.h"
#include "quant/quantize.h"

namespace mamba {
namespace {

// row = values[at...], in f32.
void widen(CBuf values, int64_t at, std::vector<float>& row) {
  for (size_t k = 0; k < row.size(); ++k) {
    const int64_t i = at + static_cast<int64_t>(k);
    row[k] = values.dtype == DType::kF32    ? values.as<float>()[i]
             : values.dtype == DType::kBF16 ? to_f32(values.as<bf16>()[i])
                                            : to_f32(values.as<f16>()[i]);
  }
}

// False where `type` cannot hold a value.
bool store_row(DType type, const std::vector<float>& row, uint8_t* to) {
  if (is_quantized(type)) {
    return quantize(type, row.data(), nullptr, static_cast<int64_t>(row.size()), to);
  }
  bool good = true;
  for (size_t k = 0; k < row.size(); ++k) {
    const uint16_t bits = type == DType::kF16 ? to_f16(row[k]).bits : to_bf16(row[k]).bits;
    good = good && (type != DType::kF16 || (bits & 0x7c00u) != 0x7c00u);  // infinity and NaN
    std::memcpy(to + 2 * k, &bits, sizeof bits);
  }
  return good;
}

}  // namespace

DType fitting_blocks(DType wanted, int64_t columns) {
  if (columns % block_elements(wanted) == 0) return wanted;
  if (columns % 32 != 0) return DType::kBF16;
  if (wanted == DType::kQ4_K) return DType::kQ5_0;
  return wanted == DType::kQ5_K ? DType::kQ5_1 : DType::kQ8_0;
}

DType matrix_type(const Config& config, const ParamSpec& spec, DType wanted) {
  if (!is_quantized(wanted)) return wanted;
  const auto ends = [&](const char* name) { return spec.name.ends_with(name); };
  if (ends(".x_proj.weight") || ends(".dt_proj.weight")) return DType::kQ8_0;
  const bool head = spec.name == "lm_head.weight" ||
                    (config.tie_embeddings && spec.name == "backbone.embeddings.weight");
  if (!head || wanted == DType::kQ8_0) return wanted;
  return spec.shape.back() % 256 == 0 ? DType::kQ6_K : DType::kQ8_0;
}

DType weight_type(const Config& config, const ParamSpec& spec, DType wanted) {
  if (!spec.matrix) return DType::kF32;
  if (!is_quantized(wanted)) return wanted;
  return fitting_blocks(matrix_type(config, spec, wanted), spec.count / spec.shape[0]);
}

void set_weight(Network& network, int index, CBuf values, DType wanted,
                const std::function<bool()>& interrupted) {
  if (interrupted && interrupted()) fail(ErrorCode::kCancelled, "interrupted");
  const ParamSpec& spec = network.table()[index];
  const DType type = weight_type(network.config(), spec, wanted);
  // The rest the network rounds by itself, by the type of its products.
  const bool rounds = is_quantized(wanted) || wanted == DType::kF16;
  if (!rounds || !spec.matrix || is_quantized(values.dtype) || values.dtype == type) {
    return network.set_parameter(index, values);
  }
  MAMBA_CHECK(values.dtype == DType::kF32 || values.dtype == DType::kBF16 ||
              values.dtype == DType::kF16);
  const int64_t rows = spec.shape[0], K = spec.count / rows;
  const int64_t row_bytes = dtype_bytes(type, K);
  std::vector<uint8_t> stored(static_cast<size_t>(rows * row_bytes));
  std::atomic<bool> good = true, stopped = false;
#pragma omp parallel num_threads(network.device().host_threads())
  {
    std::vector<float> row(static_cast<size_t>(K));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      if (interrupted && interrupted()) stopped = true;
      if (stopped) continue;
      widen(values, r * K, row);
      if (!store_row(type, row, stored.data() + r * row_bytes)) good = false;
    }
  }
  if (stopped) fail(ErrorCode::kCancelled, "interrupted");
  if (!good) {
    fail(ErrorCode::kBadFile,
         "[weights] expected finite values of at most {} in \"{}\" to hold it in {}, got others; "
         "the "
         "checkpoint is broken, or use --dtype bf16",
         type == DType::kF16 ? "65504" : "65504 x 127", spec.name, dtype_name(type));
  }
  network.set_parameter(index, CBuf(stored.data(), type));
}

}  // namespace mamba
