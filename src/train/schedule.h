// SPDX-License-Identifier: Apache-2.0
// The learning rate of a step in closed form, so that a resumed run needs no state for it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mamba/train.h"

namespace mamba {

struct Schedule {
  LrSchedule kind = LrSchedule::kConstant;
  double peak = 0;
  double min_ratio = 0;
  int64_t warmup_steps = 0;
  int64_t max_steps = 1;

  bool operator==(const Schedule&) const = default;

  // The part of all steps in which wsd (warmup, stable, decay) decays.
  static constexpr double kWsdDecayShare = 0.2;

  // step: 1 for the first update. Rises to the peak at step warmup_steps, ends at min_ratio * peak
  // at step max_steps (and stays there).
  double at(int64_t step) const {
    if (step <= warmup_steps) {
      return peak * static_cast<double>(step) / static_cast<double>(warmup_steps);
    }
    return peak * (min_ratio + (1.0 - min_ratio) * shape(step));
  }

 private:
  // 1 after the warm-up, 0 at the end.
  double shape(int64_t step) const {
    switch (kind) {
      case LrSchedule::kConstant:
        return 1.0;
      case LrSchedule::kLinear:
        return 1.0 - part(step, warmup_steps);
      case LrSchedule::kCosine: {
        constexpr double kPi = 3.14159265358979323846;
        return 0.5 * (1.0 + std::cos(kPi * part(step, warmup_steps)));
      }
      case LrSchedule::kWsd: {
        const auto decay = static_cast<int64_t>(kWsdDecayShare * static_cast<double>(max_steps));
        return 1.0 - part(step, std::max(warmup_steps, max_steps - decay));
      }
    }
    return 1.0;
  }
  // How far `step` is from `begin` (0) to max_steps (1).
  double part(int64_t step, int64_t begin) const {
    if (step <= begin) return 0.0;
    if (step >= max_steps) return 1.0;
    return static_cast<double>(step - begin) / static_cast<double>(max_steps - begin);
  }
};

}  // namespace mamba
