// SPDX-License-Identifier: Apache-2.0
// The one list of the fields of Config: names, allowed ranges, who reads them. Validation, the
// "mamba_cpp" part of config.json and the comparison of configs iterate over it.
#pragma once

#include <span>
#include <string>
#include <variant>

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
                              int64_t Config::*, double Config::*>;
  const char* name;
  Member member;
  FieldUse use = FieldUse::kBoth;
  FieldEffect effect = FieldEffect::kFunction;
  double low = 0, high = 0;  // allowed range of numbers, both ends included
};

std::span<const ConfigField> config_fields();

// Null if there is none of this name.
const ConfigField* find_config_field(const std::string& name);

// False for fields that the mixer of `config` does not read.
bool is_read(const ConfigField& field, const Config& config);

// Throws invalid_argument naming the field, its value and the allowed ones.
void check_field(const ConfigField& field, const Config& config);

Json field_to_json(const ConfigField& field, const Config& config);
// Throws bad_file if the value has another type.
void field_from_json(const ConfigField& field, const Json& value, Config& config,
                     const std::string& where);

}  // namespace mamba
