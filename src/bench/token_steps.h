// SPDX-License-Identifier: Apache-2.0
// Steps of generation as they are timed.
#pragma once

#include <cstdint>
#include <vector>

#include "generate/answer.h"
#include "generate/sampler.h"
#include "model/network.h"

namespace mamba {

// On a CPU a step ends with its logits; on a GPU they stay there, and a step ends with the most
// likely token of each row in main memory, as it does in generation.
class TokenSteps {
 public:
  explicit TokenSteps(Model& model) : model_(model), drawer_(model.network().device()) {}

  // One token for each row of `state`.
  void step(const int32_t* ids, State& state) {
    const int64_t rows = state.batch(), vocab = model_.config().vocab_size;
    const std::vector<int32_t> tokens(ids, ids + rows);
    const std::vector<LogitRow> logits = step_rows(model_, tokens, state, &room_);
    if (logits.empty() || logits[0].on_host) return;
    std::vector<SampleRow> draws(logits.size());
    for (size_t i = 0; i < draws.size(); ++i) {
      draws[i].vocab = vocab;
      draws[i].logits = logits[i].data;
    }
    drawn_.resize(draws.size());
    drawer_.draw(draws, false, drawn_.data());
  }

 private:
  Model& model_;
  TokenDrawer drawer_;
  std::vector<float> room_;
  std::vector<int32_t> drawn_;
};

}  // namespace mamba
