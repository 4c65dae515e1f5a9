// SPDX-License-Identifier: Apache-2.0
// Progress of a training run on standard error: a bar that is redrawn on a terminal, a line for
// each interval otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "mamba/train.h"

namespace mamba::cli {

class TrainDisplay {
 public:
  explicit TrainDisplay(bool terminal) : terminal_(terminal) {}
  ~TrainDisplay() { clear(); }
  TrainDisplay(const TrainDisplay&) = delete;
  TrainDisplay& operator=(const TrainDisplay&) = delete;

  void step(const TrainProgress& progress);  // after every step
  void log(const TrainProgress& progress);   // every interval
  void line(const std::string& text);        // above the bar
  void clear();                              // takes the bar away

 private:
  bool terminal_;
  bool drawn_ = false;
  double smooth_loss_ = 0;  // a running mean, so that the number can be read
  int64_t steps_ = 0;       // seen
  std::chrono::steady_clock::time_point last_draw_{};
};

// "12.3k", "980"
std::string rate_text(double per_second);

}  // namespace mamba::cli
