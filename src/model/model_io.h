// SPDX-License-Identifier: Apache-2.0
// Weights between a network and a model folder in the transformers form.
#pragma once

#include <string>

#include "mamba/dtype.h"
#include "model/network.h"

namespace mamba {

// Fills the network's parameters from the folder's safetensors (single or sharded; f32, bf16, f16
// or f64). Every tensor must be there with its exact shape and no other may be, but a tied lm_head.
// Throws bad_file. Calls parameters_changed(pack).
void load_weights(Network& network, const std::string& folder, bool pack);

// Writes config.json and model.safetensors (sharded above 5 GB) into an existing or new folder,
// each file atomically, the weights first. dtype kF32 or kBF16; A_log, dt_bias, D and other small
// tensors stay f32 in either case.
void save_model(const Network& network, const std::string& folder, DType dtype);

// Copies between the network's parameters or gradients (f32 or f64) and f32.
void read_flat(CBuf flat, int64_t count, float* out);
void write_flat(const float* values, int64_t count, Buf flat);

}  // namespace mamba
