// SPDX-License-Identifier: Apache-2.0
// Configs by name: the published sizes of state-spaces, and small models over bytes.
#include "base/check.h"
#include "formats/hf_config.h"

namespace mamba {
namespace {

struct Preset {
  const char* name;
  bool mamba2;
  int64_t d_model;
  int64_t n_layer;
  bool bytes;  // vocabulary of 256 bytes instead of the 50,277 tokens of GPT-NeoX
};

constexpr Preset kPresets[] = {
    {"mamba-130m", false, 768, 24, false},  {"mamba-370m", false, 1024, 48, false},
    {"mamba-790m", false, 1536, 48, false}, {"mamba-1.4b", false, 2048, 48, false},
    {"mamba-2.8b", false, 2560, 64, false}, {"mamba2-130m", true, 768, 24, false},
    {"mamba2-370m", true, 1024, 48, false}, {"mamba2-780m", true, 1536, 48, false},
    {"mamba2-1.3b", true, 2048, 48, false}, {"mamba2-2.7b", true, 2560, 64, false},
    {"tiny", false, 128, 2, true},          {"tiny2", true, 128, 2, true},
    {"small", false, 256, 4, true},         {"small2", true, 256, 4, true},
};

}  // namespace

std::vector<std::string> list_presets() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

Config preset_config(const std::string& name) {
  std::string known;
  for (const Preset& preset : kPresets) {
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
    if (name != preset.name) continue;
    Config c;
    c.d_model = preset.d_model;
    c.n_layer = preset.n_layer;
    c.d_inner = 2 * c.d_model;
    c.vocab_size = preset.bytes ? 256 : preset.mamba2 ? 50288 : 50280;
    if (!preset.bytes) c.bos_token_id = c.eos_token_id = c.pad_token_id = 0;  // <|endoftext|>
    if (preset.mamba2) {
      c.mixer = c.model_type = "mamba2";
      c.d_ssm = c.d_inner;
      c.d_state = preset.bytes ? 64 : 128;
      c.chunk_size = 256;
    } else {
      c.dt_rank = c.d_model / 16;
    }
    return c;
  }
  fail(ErrorCode::kInvalidArgument,
       "[config] expected a config file, a model folder or one of the presets {}, got \"{}\"; "
       "check the "
       "path or choose a preset",
       known, printable(name, 200));
}

}  // namespace mamba
