// SPDX-License-Identifier: Apache-2.0
// Small configurations of every registered mixer: a base and one change of option at a time.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "model/mixer.h"

namespace mamba::test {

struct Case {
  std::string name;
  Config config;
};
inline void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

inline Config small_mamba1() {
  Config c;
  c.mixer = "mamba1";
  c.model_type = "mamba";
  c.vocab_size = 29;
  c.d_model = 12;
  c.n_layer = 2;
  c.d_inner = 19;  // no multiple of any vector
  c.d_state = 5;
  c.d_conv = 4;
  c.dt_rank = 3;
  c.d_ssm = c.d_inner;
  return c;
}

inline Config small_mamba2() {
  Config c = small_mamba1();
  c.mixer = "mamba2";
  c.model_type = "mamba2";
  c.d_inner = 24;
  c.d_ssm = 24;
  c.headdim = 6;
  c.n_groups = 2;
  c.norm_groups = 2;
  c.d_state = 7;
  c.chunk_size = 8;
  c.dt_rank = 1;
  return c;
}

// Every option of the shell and of both variants, away from its default at least once.
inline std::vector<Case> model_cases() {
  std::vector<Case> cases;
  const auto add = [&](const std::string& name, Config base, auto change) {
    change(base);
    cases.push_back({base.mixer + "_" + name, base});
  };
  for (const Config& base : {small_mamba1(), small_mamba2()}) {
    add("base", base, [](Config&) {});
    add("untied_bias_no_conv_bias", base, [](Config& c) {
      c.tie_embeddings = false;
      c.use_bias = true;
      c.conv_bias = false;
    });
    add("layer_norm_mlp", base, [](Config& c) {
      c.norm = NormKind::kLayer;
      c.d_intermediate = 10;
    });
    add("linear_conv_wide", base, [](Config& c) {
      c.conv_silu = false;
      c.d_conv = 7;
    });
    add("conv_of_one", base, [](Config& c) { c.d_conv = 1; });
  }
  add("falcon", small_mamba1(), [](Config& c) {
    c.bcdt_rms = true;
    c.model_type = "falcon_mamba";
  });
  add("wide_state", small_mamba1(), [](Config& c) { c.d_state = 16; });
  add("mlp_part", small_mamba2(), [](Config& c) {
    c.d_inner = 30;
    c.d_ssm = 18;
    c.n_groups = 3;
    c.norm_groups = 1;
  });
  add("limits_and_D_per_channel", small_mamba2(), [](Config& c) {
    c.dt_limit_min = 0.01;
    c.dt_limit_max = 0.05;
    c.D_has_hdim = true;
    c.n_groups = 1;
  });
  add("learned_start", small_mamba2(), [](Config& c) { c.learnable_init_states = true; });
  add("norm_before_gate", small_mamba2(), [](Config& c) { c.norm_before_gate = true; });
  add("plain_gate", small_mamba2(), [](Config& c) { c.gated_norm = false; });
  add("chunk_of_one", small_mamba2(), [](Config& c) { c.chunk_size = 1; });
  return cases;
}

}  // namespace mamba::test
