// SPDX-License-Identifier: Apache-2.0
// Models from one form into another: transformers and state-spaces, and from GGUF and mamba.c.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "mamba/dtype.h"
#include "mamba/model.h"

namespace mamba {

enum class ModelForm {
  kTransformers,  // "hf": hidden_size, ...; model.safetensors
  kStateSpaces,   // "ssm": d_model, ssm_cfg, ...; pytorch_model.bin
};

struct ConvertOptions {
  ModelForm form = ModelForm::kTransformers;
  // Of the matrices; none: as stored. kF32, kBF16 or kF16. With a 16-bit type the small tensors
  // (A_log, D, dt_bias, norms, convolution) keep the 16 bits they have, or stay f32.
  std::optional<DType> dtype;
  bool safetensors = false;  // state-spaces form: model.safetensors instead of pytorch_model.bin
  bool replace = false;      // an output folder that holds a model, and no files that are not its
  // After every tensor: bytes written and to write.
  std::function<void(int64_t done, int64_t total)> on_progress;
};

struct ConvertResult {
  Config config;
  int64_t tensors = 0, bytes = 0;    // of the weights written
  std::vector<std::string> notices;  // what was left out or looks odd, one sentence each
};

// Writes the model at `in` (a folder of either form, a GGUF file or a model.bin of mamba.c) into
// the folder `out`, which appears whole or not at all: weights tensor by tensor, config.json, the
// tokenizer's files, generation_config.json and a model card. Tensors whose type does not change
// are equal by bytes. Throws invalid_argument (out is not empty), bad_file, io, or unsupported
// naming what the form cannot express or the tensor whose values the dtype cannot hold.
ConvertResult convert_model(const std::string& in, const std::string& out,
                            const ConvertOptions& options);

struct ModelComparison {
  double max_error = 0;     // of the logits; infinity if one is not finite
  double max_logit = 0;     // of the first model, where both are finite
  int64_t positions = 0;    // compared
  int64_t same_greedy = 0;  // of them: the same most likely token, and all logits finite
  int64_t logits = 0;       // of each model
  std::array<int64_t, 2> not_finite{};  // of them, in the first and the second: NaN or infinite
  bool has_blocks = false;  // weights of one model are blocks, whose products round their inputs
};

// Runs both models, one after the other, on one fixed sequence of `length` ids, and compares their
// logits. Throws bad_file if their vocabularies differ.
ModelComparison compare_models(const std::string& a, const std::string& b,
                               const ModelOptions& options, int64_t length = 64);

}  // namespace mamba
