// SPDX-License-Identifier: Apache-2.0
// Timing: warm up, repeat, and report the median, the minimum and the spread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace mamba {

struct Measurement {
  int64_t runs = 0;
  double median = 0, min = 0;   // seconds of one run
  double spread = 0;            // (third quartile - first quartile) / median
  std::vector<double> samples;  // seconds of every run, in their order
};

struct MeasureOptions {
  double seconds = 0.5;  // time to spend at least, warm-up excluded
  int64_t min_runs = 5;
  int64_t max_runs = 10000;
  int64_t warm_up = 2;  // runs that are not counted
};

// Seconds that a body takes.
using Timer = std::function<double(const std::function<void()>& body)>;
double wall_time(const std::function<void()>& body);

// Times `body`; `before` (may be empty) runs untimed before each run.
Measurement measure(const MeasureOptions& options, const std::function<void()>& body,
                    const std::function<void()>& before = {}, const Timer& timer = wall_time);

}  // namespace mamba
