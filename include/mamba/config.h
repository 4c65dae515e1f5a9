// SPDX-License-Identifier: Apache-2.0
// Hyper-parameters of a model, their defaults and their validation.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace mamba {

enum class NormKind { kRms, kLayer };

// Every field is in the terms of the Mamba papers. Fields that only one variant reads say so.
// Defaults are those of the Mamba-1 / Mamba-2 packages; readers of config files set every field
// that the file means and never leave a gap to these defaults by accident (see
// formats/hf_config.h).
struct Config {
  std::string mixer = "mamba1";      // a name registered in model/mixers.cpp: "mamba1", "mamba2"
  std::string model_type = "mamba";  // "mamba", "mamba2", "falcon_mamba": what config.json says

  // Shell
  int64_t vocab_size = 256;  // V: rows of the embedding, padding included
  int64_t d_model = 256;     // D
  int64_t n_layer = 4;
  int64_t d_intermediate = 0;  // > 0: every block also has norm2 + GatedMLP of this hidden width
  NormKind norm = NormKind::kRms;  // of blocks and of the end
  double norm_eps = 1e-5;
  bool residual_in_fp32 = true;  // CPU back ends keep the residual in f32 in any case
  bool tie_embeddings = true;    // head shares the embedding matrix

  // Mixer, both variants
  int64_t d_inner = 512;  // E
  int64_t d_state = 16;   // N
  int64_t d_conv = 4;     // K
  bool conv_bias = true;
  bool conv_silu = true;
  double conv_init = 0;   // > 0: conv weights start in U(-conv_init, conv_init)
  bool use_bias = false;  // in_proj and out_proj
  double dt_min = 1e-3, dt_max = 1e-1, dt_init_floor = 1e-4;

  // Mamba-1
  int64_t dt_rank = 16;        // R
  bool dt_init_random = true;  // false: dt_proj weights start at the constant +scale
  double dt_scale = 1.0;
  bool bcdt_rms = false;  // Falcon-Mamba: weightless RMSNorm on B, C and dt
  double bcdt_rms_eps = 1e-6;

  // Mamba-2
  int64_t headdim = 64;      // P
  int64_t n_groups = 1;      // G
  int64_t d_ssm = 512;       // <= d_inner; the rest of d_inner is a gated MLP
  int64_t chunk_size = 256;  // speed only: results depend on it by rounding alone
  bool D_has_hdim = false;   // D per channel instead of per head
  bool gated_norm = true;    // false: y * silu(z) without a norm ("rmsnorm" in the package)
  bool norm_before_gate = false;
  int64_t norm_groups = 1;  // groups of the gated norm (package: n_groups; transformers: 1)
  double A_init_min = 1, A_init_max = 16;
  double dt_limit_min = 0;
  double dt_limit_max = std::numeric_limits<double>::infinity();
  bool learnable_init_states = false;

  // Initialisation
  double embedding_std = 0.02;
  bool rescale_prenorm_residual = true;  // out_proj, fc2 divided by sqrt(n_layer)

  // Tokens, as config.json has them; -1: none
  int64_t bos_token_id = -1, eos_token_id = -1, pad_token_id = -1;
  std::vector<int64_t> more_eos_token_ids;  // the further ones where the file lists several

  // Heads of Mamba-2: d_ssm / headdim.
  int64_t n_heads() const { return d_ssm / headdim; }
  // eos_token_id and more_eos_token_ids; empty where there is none.
  std::vector<int64_t> all_eos_token_ids() const;
  // Throws invalid_argument naming the first field that is out of range or contradicts another.
  void validate() const;

  bool operator==(const Config&) const = default;
};

}  // namespace mamba
