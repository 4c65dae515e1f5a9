// SPDX-License-Identifier: Apache-2.0
// A model of each mixer and tokens for it, for what holds for every model.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "support/random.h"

namespace mamba::test {

constexpr int64_t kVocab = 61;

// mixer: "mamba1" or "mamba2".
inline Config config_of(const std::string& mixer, int64_t d_model, int64_t n_layer) {
  Config c;
  c.mixer = mixer;
  c.model_type = mixer == "mamba1" ? "mamba" : "mamba2";
  c.vocab_size = kVocab;
  c.d_model = d_model;
  c.n_layer = n_layer;
  c.d_inner = c.d_ssm = 2 * d_model;
  c.d_state = mixer == "mamba1" ? 8 : 16;
  c.d_conv = 4;
  c.dt_rank = std::max<int64_t>(4, d_model / 16);
  c.headdim = d_model / 4 < 64 ? 16 : 64;
  c.n_groups = 1;
  c.chunk_size = 8;
  return c;
}

inline std::vector<int32_t> tokens_of(int64_t count) {
  Random random(11);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.below(kVocab));
  return ids;
}

}  // namespace mamba::test
