// SPDX-License-Identifier: Apache-2.0
// Which type each tensor of a GGUF file gets.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "mamba/dtype.h"
#include "mamba/quantize.h"
#include "model/params.h"
#include "tokenizer/regex.h"

namespace mamba {

class QuantizePlan {
 public:
  // Throws invalid_argument for options that name no type or no regular expression.
  QuantizePlan(const Config& config, const QuantizeOptions& options);

  struct Choice {
    DType dtype;
    std::string note;  // why it is not what was asked for
  };
  // `name` is that in GGUF; `stored` its type in the model that is read.
  Choice choose(const ParamSpec& spec, const std::string& name, DType stored) const;
  // Throws invalid_argument for a rule that no tensor matched; after the last choose().
  void expect_all_used() const;
  // general.file_type.
  int64_t file_type(DType most) const;

 private:
  struct Rule {
    std::string flag, text;
    Regex regex;
    DType dtype;
    mutable bool used = false;
  };
  DType wanted(const ParamSpec& spec, const std::string& name, DType stored) const;
  DType layer_type(const std::string& name) const;
  void add_rule(const char* flag, const std::string& pattern, const std::string& type);

  Config config_;
  std::optional<DType> type_;  // none: as stored
  bool mixed_ = false;         // the ending _m
  bool pure_ = false, leave_head_ = false;
  std::string name_;
  std::vector<Rule> rules_;
};

}  // namespace mamba
