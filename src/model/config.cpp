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

// The names of fields, as the form calls them.
class Names {
 public:
  explicit Names(ConfigForm form) : form_(form) {}
  std::string operator()(const char* field) const { return config_key(form_, field); }

 private:
  ConfigForm form_;
};

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

void check_mamba2(const Config& c, const Names& key) {
  require(c.d_ssm >= 1 && c.d_ssm <= c.d_inner, "expected {} from 1 to {} = {}, got {}",
          key("d_ssm"), key("d_inner"), c.d_inner, c.d_ssm);
  require(c.d_ssm % c.headdim == 0, "expected {} to divide {} = {}, got {}", key("headdim"),
          key("d_ssm"), c.d_ssm, c.headdim);
  require(c.n_heads() % c.n_groups == 0, "expected {} to divide the {} heads ({} / {}), got {}",
          key("n_groups"), c.n_heads(), key("d_ssm"), key("headdim"), c.n_groups);
  require(!c.gated_norm || c.d_ssm % c.norm_groups == 0, "expected {} to divide {} = {}, got {}",
          key("norm_groups"), key("d_ssm"), c.d_ssm, c.norm_groups);
  require(c.A_init_min <= c.A_init_max, "expected {} at most {} = {}, got {}", key("A_init_min"),
          key("A_init_max"), c.A_init_max, c.A_init_min);
  require(c.dt_limit_min <= c.dt_limit_max, "expected {} at most {} = {}, got {}",
          key("dt_limit_min"), key("dt_limit_max"), c.dt_limit_max, c.dt_limit_min);
}

// The matrices that can be too large within the ranges of the fields, and all layers together.
void check_sizes(const Config& c, const Names& key) {
  const auto bounded = [](const std::string& what, int64_t count) {
    require(count <= kMaxElements, "expected {} of at most 2^40 = {} elements, got {}", what,
            kMaxElements, count);
    return count;
  };
  const int64_t embedding = bounded("vocab_size * " + key("d_model"), c.vocab_size * c.d_model);
  int64_t rows = 2 * c.d_inner;                             // of in_proj
  int64_t channels = c.d_inner;                             // of the convolution
  int64_t other = 2 * c.d_inner * (c.d_state + c.dt_rank);  // x_proj, dt_proj, A_log
  if (c.mixer == "mamba2") {
    channels = c.d_ssm + 2 * c.n_groups * c.d_state;
    rows = 2 * c.d_inner - c.d_ssm + channels + c.n_heads();
    other = c.d_ssm * c.d_state;  // initial states
  }
  const int64_t in_proj = bounded("in_proj (rows * " + key("d_model") + ")", rows * c.d_model);
  const int64_t layer = in_proj + c.d_inner * c.d_model + channels * c.d_conv +
                        3 * c.d_intermediate * c.d_model + other;
  bounded("the whole model", c.n_layer * layer + (c.tie_embeddings ? 1 : 2) * embedding);
}

}  // namespace

void check_config(const Config& c, ConfigForm form) {
  const Names key(form);
  for (const ConfigField& field : config_fields()) check_field(field, c, form);
  check_variant(c);
  require(c.dt_min <= c.dt_max, "expected {} at most {} = {}, got {}", key("dt_min"), key("dt_max"),
          c.dt_max, c.dt_min);
  if (c.mixer == "mamba2") check_mamba2(c, key);
  for (const char* name : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    const int64_t id = c.*std::get<int64_t Config::*>(find_config_field(name)->member);
    require(id < c.vocab_size, "expected {} below vocab_size = {}, got {}", name, c.vocab_size, id);
  }
  for (const int64_t id : c.more_eos_token_ids) {
    require(c.eos_token_id >= 0, "expected eos_token_id with more_eos_token_ids, got {}",
            c.eos_token_id);
    require(id < c.vocab_size, "expected more_eos_token_ids below vocab_size = {}, got {}",
            c.vocab_size, id);
  }
  check_sizes(c, key);
}

void Config::validate() const { check_config(*this, ConfigForm::kFields); }

std::vector<int64_t> Config::all_eos_token_ids() const {
  std::vector<int64_t> ids = more_eos_token_ids;
  if (eos_token_id >= 0) ids.insert(ids.begin(), eos_token_id);
  return ids;
}

}  // namespace mamba
