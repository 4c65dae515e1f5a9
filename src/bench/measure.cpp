// SPDX-License-Identifier: Apache-2.0
// Timing of repeated runs.
#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace mamba {

double wall_time(const std::function<void()>& body) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  body();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Measurement measure(const MeasureOptions& options, const std::function<void()>& body,
                    const std::function<void()>& before, const Timer& timer) {
  for (int64_t i = 0; i < options.warm_up; ++i) body();
  std::vector<double> times;
  double total = 0;
  while (static_cast<int64_t>(times.size()) < options.max_runs &&
         (static_cast<int64_t>(times.size()) < options.min_runs || total < options.seconds)) {
    if (before) before();
    times.push_back(timer(body));
    total += times.back();
  }
  Measurement m;
  m.samples = times;
  std::sort(times.begin(), times.end());
  m.runs = static_cast<int64_t>(times.size());
  if (times.empty()) return m;
  const size_t n = times.size();
  m.min = times[0];
  m.median = (times[(n - 1) / 2] + times[n / 2]) / 2;
  m.spread = m.median > 0 ? (times[3 * n / 4] - times[n / 4]) / m.median : 0;
  return m;
}

}  // namespace mamba
