// SPDX-License-Identifier: Apache-2.0
// Importance matrices: how much an error of each column of a matrix costs, as llama-imatrix's GGUF
// files have it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "model/activations.h"

namespace mamba {

struct Importance {
  std::map<std::string, std::vector<float>> of;  // by name in GGUF files: mean squares by column
  int64_t chunks = 0;
  std::string dataset;
};

// Throws bad_file, or unsupported for llama.cpp's older form.
Importance read_importance(const std::string& path);

// chunk: tokens of each.
void write_importance(const std::string& path, const Config& config, const ParamTable& table,
                      const std::vector<ActivationSums::Sums>& sums, int64_t chunks, int64_t chunk,
                      const std::string& dataset);

}  // namespace mamba
