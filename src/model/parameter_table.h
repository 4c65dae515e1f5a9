// SPDX-License-Identifier: Apache-2.0
// Every tensor of a model by name, counted without its memory, and which of them are trained.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "model/params.h"

namespace mamba {

// The tensors of a model in their order: embedding; for each residual sub-layer its norm and the
// parameters of its operator; the last norm; the head, unless tied.
ParamTable parameter_table(const Config& config);

// Where the gradients of trained tensors stand: one behind the other in the order and with the
// alignment of the table, without those that are frozen. Nothing frozen: as the table.
struct TrainedLayout {
  std::vector<int64_t> offsets;  // by table index, in elements; -1: frozen
  int64_t count = 0;             // elements of the trained
  // Elements behind them into which kernels write the gradients of frozen vectors, which they give
  // along with others at no cost. Those of frozen matrices are not computed.
  int64_t sink = 0;

  bool frozen(int index) const { return offsets[static_cast<size_t>(index)] < 0; }
};

// frozen: by table index; empty for none.
TrainedLayout layout_trained(const ParamTable& table, const std::vector<bool>& frozen);

// The tensors whose names match one of the patterns: * any characters (dots too), ? one, [0-3] and
// [!0-3] one of a set. Empty without patterns. Throws invalid_argument for a pattern that matches
// nothing, naming the closest tensors, and if nothing is left to train.
std::vector<bool> frozen_by(const ParamTable& table, const std::vector<std::string>& patterns);

}  // namespace mamba
