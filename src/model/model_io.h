// SPDX-License-Identifier: Apache-2.0
// Weights from files into a network, and from a network into a folder of the transformers form.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mamba/dtype.h"
#include "model/network.h"

namespace mamba {

// Fills the network's parameters from the weights at `path` (see formats/weight_files.h; f32, bf16,
// f16 or f64). Every tensor must be there with its exact shape and no other may be, but a tied
// lm_head. Throws bad_file. Calls parameters_changed(pack).
//
// Where the folder's vocabulary is smaller, `growth` gives its rows: embedding and head start with
// them as they are, and each further row is their mean plus noise of a hundredth of their standard
// deviation, column by column. So a new token begins as an average one: it takes little
// probability from the old ones, and the noise lets the new ones differ.
struct VocabularyGrowth {
  int64_t rows = 0;   // of the folder's embedding; 0: as many as the network's
  uint64_t seed = 0;  // of the noise
};
//
// options.dtype may be a type of blocks: matrices are then quantised on the way (weight_types.h),
// or taken as they are where the file has blocks; with `dequantize`, and a dtype that is no type of
// blocks, they become f32 first. Returns the types of those that are others than dtype would give.
std::vector<DType> load_weights(Network& network, const std::string& path, bool pack,
                                const VocabularyGrowth& growth = {},
                                const ModelOptions& options = {});

// Writes config.json and model.safetensors (sharded above 5 GB) into an existing or new folder,
// each file atomically, the weights first. dtype kF32 or kBF16; A_log, dt_bias, D and other small
// tensors stay f32 in either case.
void save_model(const Network& network, const std::string& folder, DType dtype);

// The start of a training run; parameters_changed() is to follow.
void initialize(Network& network, uint64_t seed);

// Of all A_log that mean the same rate A = -exp(A_log) in f32, the one that a file which holds A
// (GGUF, mamba.c) is read as: ln(-A), rounded. Kernels compute with A alone, so nothing changes but
// that a model has one fingerprint in all forms of files, and its states go from one to another.
//
// Rounding ln(-A) moves it by half an ulp. From |A_log| = 1 on, where an ulp of it is a relative
// step of A or more, it comes back as it was; below 1 half an ulp is at most 2^-25, which is no
// more than half a step of A, so that A comes back. So it does for an A below 1.2e-38, whose steps
// are larger. Where A is 0 or infinite, which no such file may hold, A_log stays.
float settled(float A_log);
// Does that to a network whose values are f32; parameters_changed() is to follow.
void settle_rates(Network& network);

// Values in f32 or f64.
void write_flat(const float* values, int64_t count, Buf flat);

}  // namespace mamba
