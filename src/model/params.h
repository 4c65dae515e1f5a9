// SPDX-License-Identifier: Apache-2.0
// The single table of tensors: names, shapes, initialisation, weight decay; one flat buffer for
// all.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/buf.h"
#include "mamba/config.h"

namespace mamba {

// How a parameter starts (spec: Gu & Dao 2023, Dao & Gu 2024 and their packages).
enum class Init : uint8_t {
  kZero,
  kOne,
  kNormal,      // N(0, scale)
  kUniform,     // U(-scale, scale)
  kConstant,    // scale
  kDtBias,      // inverse softplus of dt = max(exp(U(ln dt_min, ln dt_max)), dt_init_floor)
  kLogCount,    // A_log of Mamba-1: ln(n + 1) along the last axis
  kLogUniform,  // A_log of Mamba-2: ln U(A_init_min, A_init_max)
};

struct ParamSpec {
  std::string name;  // as in the transformers checkpoint, e.g. "backbone.layers.0.mixer.D"
  std::vector<int64_t> shape;
  Init init = Init::kZero;
  double scale = 0;
  bool decay = false;   // weight decay applies
  bool matrix = false;  // an operand of linear: may be stored in 16 bits or less
  int64_t offset = 0;   // in elements from the start of the flat buffer
  int64_t count = 0;    // elements
};

class ParamTable {
 public:
  static constexpr int64_t kAlignElements = 16;  // 64 bytes of f32
  // Adds a tensor behind the others (64-byte aligned in f32) and returns its index.
  int add(ParamSpec spec);
  const std::vector<ParamSpec>& specs() const { return specs_; }
  const ParamSpec& operator[](int index) const { return specs_[static_cast<size_t>(index)]; }
  // Elements of the flat buffer, alignment gaps included.
  int64_t flat_count() const { return flat_count_; }
  // Exact number of parameters.
  int64_t parameters() const { return parameters_; }
  // Fills the flat f32 buffer from the seed; tensor i's values depend on (seed, its name) alone.
  // Throws cancelled once `interrupted` says true.
  void initialize(const Config& config, uint64_t seed, float* flat, int threads = 1,
                  const std::function<bool()>& interrupted = {}) const;

 private:
  std::vector<ParamSpec> specs_;
  int64_t flat_count_ = 0;
  int64_t parameters_ = 0;
};

}  // namespace mamba
