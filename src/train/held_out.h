// SPDX-License-Identifier: Apache-2.0
// The loss on held-out data while a model is trained.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "mamba/tokenizer.h"
#include "mamba/train.h"
#include "model/network.h"
#include "train/data_sources.h"
#include "train/row_buffer.h"

namespace mamba {

// Scores the first sequences of `valid`, the same ones each time, in the segments of training.
// Borrows all its arguments.
class HeldOut {
 public:
  HeldOut(const TrainOptions& options, Network& network, DataSet& valid,
          const Tokenizer& tokenizer);

  // Fills all of `report` but its step. False if should_stop said so between two batches.
  bool evaluate(const std::function<bool()>& should_stop, EvalReport* report);

  // How many sequences an evaluation of `valid` scores.
  static int64_t sequences(const TrainOptions& options, const DataSet& valid);
  // Throws bad_file if none of their tokens has a loss.
  static void check(const TrainOptions& options, DataSet& valid);

 private:
  LossSum score(const Batch& batch);

  const TrainOptions& options_;
  Network& network_;
  DataSet& valid_;
  std::vector<int32_t> bytes_;  // of each token; an EOS stands for no text
  RowBuffer rows_;
};

}  // namespace mamba
