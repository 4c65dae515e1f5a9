// SPDX-License-Identifier: Apache-2.0
// Random valid configs in which every field of Config takes every kind of value.
#pragma once

#include <limits>

#include "mamba/config.h"
#include "support/random.h"

namespace mamba::test {

inline Config random_config(Random& random) {
  Config c;
  const auto size = [&](int64_t most) { return 1 + random.below(most); };
  const auto flag = [&] { return random.below(2) == 1; };
  const auto real = [&](double low, double high) { return random.uniform(low, high); };
  const int kind = static_cast<int>(random.below(3));
  c.mixer = kind == 1 ? "mamba2" : "mamba1";
  c.model_type = kind == 0 ? "mamba" : kind == 1 ? "mamba2" : "falcon_mamba";
  c.vocab_size = size(100000);
  c.d_model = size(300);
  c.n_layer = size(50);
  c.d_intermediate = flag() ? 0 : size(1000);
  c.norm = flag() ? NormKind::kRms : NormKind::kLayer;
  c.norm_eps = real(1e-9, 1e-3);
  c.residual_in_fp32 = flag();
  c.tie_embeddings = flag();
  c.headdim = size(40);
  c.n_groups = size(4);
  c.d_ssm = c.headdim * c.n_groups * size(5);
  c.d_inner = flag() ? c.d_ssm : c.d_ssm + size(50);
  c.d_state = size(200);
  c.d_conv = size(8);
  c.conv_bias = flag();
  c.conv_silu = flag();
  c.conv_init = flag() ? 0 : real(0, 1);
  c.use_bias = flag();
  c.dt_min = real(1e-5, 1e-2);
  c.dt_max = real(1e-2, 1);
  c.dt_init_floor = real(0, 1e-3);
  c.dt_rank = size(100);
  c.dt_init_random = flag();
  c.dt_scale = real(0.1, 3);
  c.bcdt_rms = kind == 2 || flag();
  c.bcdt_rms_eps = real(1e-9, 1e-3);
  c.chunk_size = size(512);
  c.D_has_hdim = flag();
  c.gated_norm = flag();
  c.norm_before_gate = flag();
  c.norm_groups = flag() ? 1 : c.n_groups;
  c.A_init_min = real(0.1, 2);
  c.A_init_max = real(2, 20);
  c.dt_limit_min = flag() ? 0 : real(0, 1e-3);
  c.dt_limit_max = flag() ? std::numeric_limits<double>::infinity() : real(1e-3, 1);
  c.learnable_init_states = flag();
  c.embedding_std = real(0.001, 0.5);
  c.rescale_prenorm_residual = flag();
  c.bos_token_id = flag() ? -1 : random.below(c.vocab_size);
  c.eos_token_id = flag() ? -1 : random.below(c.vocab_size);
  for (int64_t i = 0; c.eos_token_id >= 0 && flag() && i < 5; ++i) {
    c.more_eos_token_ids.push_back(random.below(c.vocab_size));
  }
  c.pad_token_id = flag() ? -1 : random.below(c.vocab_size);
  return c;
}

}  // namespace mamba::test
