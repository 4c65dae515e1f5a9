// SPDX-License-Identifier: Apache-2.0
// Types of matrices, and rows in f32 to blocks.
#include "model/weight_types.h"

#include <algorithm>
#include <atomic>

#include "base/check.h"
#include "quant/quantize.h"

namespace mamba {

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

void set_weight(Network& network, int index, CBuf values, DType wanted) {
  const ParamSpec& spec = network.table()[index];
  const DType type = weight_type(network.config(), spec, wanted);
  // The rest the network rounds by itself, by the type of its products.
  if (!is_quantized(wanted) || !spec.matrix || is_quantized(values.dtype)) {
    return network.set_parameter(index, values);
  }
  MAMBA_CHECK(values.dtype == DType::kF32 || values.dtype == DType::kBF16);
  const int64_t rows = spec.shape[0], K = spec.count / rows;
  const int threads = network.device().threads();
  const auto row_of = [&](int64_t r, float* out) {
    for (int64_t k = 0; k < K; ++k) {
      out[k] = values.dtype == DType::kF32 ? values.as<float>()[r * K + k]
                                           : to_f32(values.as<bf16>()[r * K + k]);
    }
  };
  if (type == DType::kBF16) {
    if (values.dtype == DType::kBF16) return network.set_parameter(index, values);
    std::vector<bf16> halves(static_cast<size_t>(spec.count));
    for (int64_t i = 0; i < spec.count; ++i) {
      halves[static_cast<size_t>(i)] = to_bf16(values.as<float>()[i]);
    }
    return network.set_parameter(index, halves.data());
  }
  const int64_t row_bytes = dtype_bytes(type, K);
  std::vector<uint8_t> blocks(static_cast<size_t>(rows * row_bytes));
  std::atomic<bool> good = true;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> row(static_cast<size_t>(K));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      row_of(r, row.data());
      if (!quantize(type, row.data(), nullptr, K, blocks.data() + r * row_bytes)) good = false;
    }
  }
  if (!good) {
    fail(ErrorCode::kBadFile,
         "[weights] expected finite values of at most 65504 x 127 in \"{}\" to quantise it to {}, "
         "got others; the checkpoint is broken",
         spec.name, dtype_name(type));
  }
  network.set_parameter(index, CBuf(blocks.data(), type));
}

}  // namespace mamba
