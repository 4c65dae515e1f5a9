// SPDX-License-Identifier: Apache-2.0
// Small models over bytes with random weights, for tests of generation and evaluation.
#pragma once

#include <string>
#include <vector>

#include "mamba/generate.h"

namespace mamba::test {

// An untied head over large embeddings: no token wins always, nor does a token follow itself.
inline Model byte_model(const std::string& mixer, uint64_t seed = 1,
                        const ModelOptions& options = {}) {
  Config c;
  c.mixer = mixer;
  c.model_type = mixer == "mamba2" ? "mamba2" : "mamba";
  c.vocab_size = 256;
  c.d_model = 16;
  c.n_layer = 2;
  c.d_inner = c.d_ssm = 32;
  c.d_state = 8;
  c.dt_rank = mixer == "mamba2" ? 1 : 4;
  c.headdim = 8;
  c.chunk_size = 8;
  c.embedding_std = 0.5;
  c.tie_embeddings = false;
  return Model::create(c, seed, options);
}

inline Session prefilled(Generator& generator, const std::vector<int32_t>& ids) {
  Session session = generator.start();
  generator.prefill(session, ids);
  return session;
}

inline std::vector<int32_t> prompt_ids(int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>((i * 37 + 11) % 256));
  return ids;
}

}  // namespace mamba::test
