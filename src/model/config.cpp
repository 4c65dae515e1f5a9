// SPDX-License-Identifier: Apache-2.0
// Config::validate: every field in its range, fields that agree with each other, sizes that fit.
#include "mamba/config.h"

#include "base/check.h"
#include "formats/config_fields.h"

namespace mamba {
namespace {

// 2^40 elements are 4 TB in f32: beyond every machine, and far from overflow in bytes. The ranges
// of the fields keep every product below within 64 bits: widths are at most 2^20, a layer is below
// 2^48.
constexpr int64_t kMaxElements = int64_t{1} << 40;

template <class... Args>
void require(bool good, fmt::format_string<Args...> format, Args&&... args) {
  if (good) return;
  fail(ErrorCode::kInvalidArgument, "[config] {}; change one of them",
       fmt::format(format, std::forward<Args>(args)...));
}

void check_variant(const Config& c) {
  const bool mamba2_type = c.model_type == "mamba2";
  require(
      mamba2_type == (c.mixer == "mamba2"),
      "expected model_type \"mamba2\" with mixer \"mamba2\", \"mamba\" or \"falcon_mamba\" with "
      "\"mamba1\", got model_type \"{}\" with mixer \"{}\"",
      c.model_type, c.mixer);
  require(c.model_type != "falcon_mamba" || c.bcdt_rms,
          "expected bcdt_rms true with model_type \"falcon_mamba\", got false");
}

void check_mamba2(const Config& c) {
  require(c.d_ssm >= 1 && c.d_ssm <= c.d_inner, "expected d_ssm from 1 to d_inner = {}, got {}",
          c.d_inner, c.d_ssm);
  require(c.d_ssm % c.headdim == 0, "expected headdim to divide d_ssm = {}, got {}", c.d_ssm,
          c.headdim);
  require(c.n_heads() % c.n_groups == 0,
          "expected n_groups to divide the {} heads (d_ssm / headdim), got {}", c.n_heads(),
          c.n_groups);
  require(!c.gated_norm || c.d_ssm % c.norm_groups == 0,
          "expected norm_groups to divide d_ssm = {}, got {}", c.d_ssm, c.norm_groups);
  require(c.A_init_min <= c.A_init_max, "expected A_init_min at most A_init_max = {}, got {}",
          c.A_init_max, c.A_init_min);
  require(c.dt_limit_min <= c.dt_limit_max,
          "expected dt_limit_min at most dt_limit_max = {}, got {}", c.dt_limit_max,
          c.dt_limit_min);
}

// The matrices that can be too large within the ranges of the fields, and all layers together.
void check_sizes(const Config& c) {
  const auto bounded = [](const char* what, int64_t count) {
    require(count <= kMaxElements, "expected {} of at most 2^40 = {} elements, got {}", what,
            kMaxElements, count);
    return count;
  };
  const int64_t embedding = bounded("vocab_size * d_model", c.vocab_size * c.d_model);
  int64_t rows = 2 * c.d_inner;                             // of in_proj
  int64_t channels = c.d_inner;                             // of the convolution
  int64_t other = 2 * c.d_inner * (c.d_state + c.dt_rank);  // x_proj, dt_proj, A_log
  if (c.mixer == "mamba2") {
    channels = c.d_ssm + 2 * c.n_groups * c.d_state;
    rows = 2 * c.d_inner - c.d_ssm + channels + c.n_heads();
    other = c.d_ssm * c.d_state;  // initial states
  }
  const int64_t in_proj = bounded("in_proj (rows * d_model)", rows * c.d_model);
  const int64_t layer = in_proj + c.d_inner * c.d_model + channels * c.d_conv +
                        3 * c.d_intermediate * c.d_model + other;
  bounded("the whole model", c.n_layer * layer + (c.tie_embeddings ? 1 : 2) * embedding);
}

}  // namespace

void Config::validate() const {
  for (const ConfigField& field : config_fields()) check_field(field, *this);
  check_variant(*this);
  require(dt_min <= dt_max, "expected dt_min at most dt_max = {}, got {}", dt_max, dt_min);
  if (mixer == "mamba2") check_mamba2(*this);
  for (const char* name : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    const int64_t id = this->*std::get<int64_t Config::*>(find_config_field(name)->member);
    require(id < vocab_size, "expected {} below vocab_size = {}, got {}", name, vocab_size, id);
  }
  check_sizes(*this);
}

}  // namespace mamba
