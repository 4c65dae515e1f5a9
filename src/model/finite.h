// SPDX-License-Identifier: Apache-2.0
// Refusing the answers of broken weights where they would become text or figures.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/check.h"
#include "base/json.h"
#include "mamba/model.h"

namespace mamba {

// Throws bad_file unless all of `count` logits (or losses) of the model are finite numbers.
inline void expect_finite(const Model& model, const float* values, int64_t count,
                          const char* where) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i])) continue;
    fail(ErrorCode::kBadFile,
         "[{}] expected finite numbers from the model{}, got {}; its weights overflow or hold NaN: "
         "fetch or train it again",
         where, model.path().empty() ? "" : " " + printable(model.path(), 200), values[i]);
  }
}

}  // namespace mamba
