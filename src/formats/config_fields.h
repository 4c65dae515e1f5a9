// SPDX-License-Identifier: Apache-2.0
// The one list of the fields of Config: names, allowed ranges, who reads them. Validation, the
// "mamba_cpp" part of config.json and the comparison of configs iterate over it.
#pragma once

#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/json.h"
#include "mamba/config.h"

namespace mamba {

enum class FieldUse { kBoth, kMamba1, kMamba2 };

// What a field decides.
enum class FieldEffect {
  kFunction,  // the function that the model computes
  kTraining,  // initial weights, speed or token ids only
};

struct ConfigField {
  using Member = std::variant<std::string Config::*, NormKind Config::*, bool Config::*,
                              int64_t Config::*, double Config::*, std::vector<int64_t> Config::*>;
  const char* name;
  Member member;
  FieldUse use = FieldUse::kBoth;
  FieldEffect effect = FieldEffect::kFunction;
  double low = 0, high = 0;  // allowed range of numbers, also in a list, both ends included
};

std::span<const ConfigField> config_fields();

// Null if there is none of this name.
const ConfigField* find_config_field(const std::string& name);

// False for fields that the mixer of `config` does not read.
bool is_read(const ConfigField& field, const Config& config);

// Where a configuration stands, and so what its reader calls the fields.
enum class ConfigForm { kFields, kTransformers, kStateSpaces, kGgufMamba, kGgufMamba2 };

// What a file of this form calls the field: "conv_kernel", "mamba.ssm.conv_kernel"; the field's own
// name where the form has no key for it.
std::string config_key(ConfigForm form, const std::string& field_name);

// Throws invalid_argument naming the field as `form` does, its value and the allowed ones.
void check_field(const ConfigField& field, const Config& config, ConfigForm form);
// Config::validate, in the words of a form.
void check_config(const Config& config, ConfigForm form);

Json field_to_json(const ConfigField& field, const Config& config);
// Throws bad_file if the value has another type.
void field_from_json(const ConfigField& field, const Json& value, Config& config,
                     const std::string& where);

}  // namespace mamba
