// SPDX-License-Identifier: Apache-2.0
// config.json <-> Config: the transformers form (model_type mamba, mamba2, falcon_mamba) and the
// state-spaces form (d_model, n_layer, ssm_cfg), read and written; and the built-in presets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "mamba/config.h"

namespace mamba {

// Reads a config.json, the one in a model folder, or the header of a GGUF file or of mamba.c's
// model.bin. A key that decides what the model computes and is absent is an error, never a class
// default that the checkpoint may not mean. Things that were ignored but look as if they mattered
// are appended to `warnings` (may be null), one sentence each. Throws bad_file, or unsupported for
// models and options that this engine does not have.
Config read_config(const std::string& path, std::vector<std::string>* warnings = nullptr);
Config parse_config(std::string_view text, const std::string& where,
                    std::vector<std::string>* warnings = nullptr);

// What --model-config takes: a path of a file or folder if there is one, else the name of a preset.
Config load_config(const std::string& path_or_preset, std::vector<std::string>* warnings = nullptr);

// The text of config.json as transformers 5 writes it. What transformers cannot express is under
// the key "mamba_cpp": read_config(write_config(c)) == c for every valid config.
std::string write_config(const Config& config);

// True if transformers 5 computes the same function from write_config(config) and its weights
// (rounding aside); only then the file names an architecture.
bool is_transformers_model(const Config& config);

// The text of config.json as the state-spaces package reads it. Throws unsupported naming what that
// form cannot express and the model's function depends on, by its key in the transformers form.
std::string write_state_spaces_config(const Config& config);

// True if this config.json is of the state-spaces form.
bool is_state_spaces_config(const std::string& path);

// What write_config puts under "mamba_cpp" and transformers would compute otherwise, as a
// sentence's part: "norm (\"layer\")"; empty if is_transformers_model(config).
std::string beyond_transformers(const Config& config);

// "mamba-130m", ..., "mamba2-2.7b" (the published sizes) and small models over bytes.
Config preset_config(const std::string& name);  // throws invalid_argument with the list
std::vector<std::string> list_presets();

namespace detail {

// The two forms. No validation yet.
Config parse_transformers(const Json& json, const std::string& where,
                          std::vector<std::string>& warnings);
Config parse_state_spaces(const Json& json, const std::string& where);

// Throws bad_file if "mamba_cpp" has changed what another key of the file says.
void check_extension(const Json& json, const std::string& where, const Config& c);

// The ids of special tokens in generation_config.json.
void read_special_tokens(const Json& json, const std::string& where, Config& c,
                         std::vector<std::string>& warnings);

// Where both forms agree on a key: a positive size, and "silu" or its other name.
int64_t get_size(const Json& json, const char* key, const std::string& where);
void check_activation(const Json& json, const char* key, const std::string& where);
int64_t round_up(int64_t value, int64_t multiple);

}  // namespace detail
}  // namespace mamba
