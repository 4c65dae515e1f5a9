// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl of a run: one JSON object a line, flushed line by line, and what it holds as
// curves. A line with "loss" tells of training, one with "eval_loss" of an evaluation.
#pragma once

#include <cstdint>
#include <string>

#include "mamba/train.h"
#include "train/curves.h"

namespace mamba {

class RunLog {
 public:
  // Goes on with the file behind the lines up to step `keep_until` (0: starts empty); later lines
  // and those that cannot be read are dropped. Throws io.
  RunLog(const std::string& path, int64_t keep_until);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  void write(const TrainProgress& progress);
  void write(const EvalReport& report);
  // Waits until all lines are on the disk. Throws io.
  void sync();
  // Lines that the constructor could not read: damaged, or cut off when the machine stopped.
  int64_t unreadable() const { return unreadable_; }
  bool has_eval(int64_t step) const {
    return !curves_.eval_loss.empty() && curves_.eval_loss.back().step == step;
  }
  const Curves& curves() const { return curves_; }

 private:
  void append(std::string line);
  std::string path_;
  int fd_ = -1;
  int64_t unreadable_ = 0;
  Curves curves_;
};

}  // namespace mamba
