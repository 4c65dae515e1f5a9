// SPDX-License-Identifier: Apache-2.0
// The loop of a run: batches, updates, evaluations, checkpoints, the final model.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mamba/train.h"
#include "train/held_out.h"
#include "train/optimizer.h"
#include "train/row_buffer.h"
#include "train/run_log.h"
#include "train/run_setup.h"
#include "train/schedule.h"

namespace mamba {

// Seconds of the parts of a run that are told apart.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  void restart() { start_ = std::chrono::steady_clock::now(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// The only user of an output folder while it lives (an advisory lock that ends with the process).
class FolderLock {
 public:
  // Throws io if the folder cannot be opened, invalid_argument if another process has it.
  explicit FolderLock(const std::string& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

class Trainer {
 public:
  // Checks everything, writes nothing.
  Trainer(const TrainOptions& options, const TrainCallbacks& callbacks);
  TrainResult run();

 private:
  void open_folder();
  void set_weights();
  void run_steps();
  // One update; false if it diverged or was given up to stop.
  bool train_step();
  // The sequences of the next update.
  void read_update();
  // False if asked to stop between two batches: the step is then as if it had not begun.
  bool accumulate(int64_t targets, LossSum* sum);
  void report_step();
  // False if asked to stop between two batches: nothing of it is then told.
  bool evaluate(bool log);
  bool eval_due() const;
  bool should_stop() const { return callbacks_.should_stop && callbacks_.should_stop(); }
  // Ends the run as interrupted, with a checkpoint of the last step.
  void stop();
  // False if the weights are not finite.
  bool weights_finite();
  bool save();
  void write_curves() const;
  void finish();
  void diverged(const float* flat, bool weights);

  TrainOptions options_;
  const TrainCallbacks& callbacks_;
  RunSetup setup_;
  Network& network_;
  Schedule schedule_;
  RowBuffer rows_;  // of an update
  std::unique_ptr<HeldOut> held_out_;
  std::unique_ptr<FolderLock> lock_;
  std::string tokenizer_;  // where checkpoints take the files of the tokenizer from, or "bytes"
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<RunLog> log_;
  TrainResult result_;
  int64_t samples_ = 0;  // consumed since step 0
  int64_t saved_step_ = -1;
  Stopwatch run_time_;       // of this process
  double line_seconds_ = 0;  // training since the last line
  int64_t line_tokens_ = 0;
};

}  // namespace mamba
