// SPDX-License-Identifier: Apache-2.0
// Measures the ways in which operations can run, within the steps that they are for: a small
// network of a model's widths takes its steps once with every way, and the fastest wins.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "device/device.h"
#include "mamba/config.h"
#include "mamba/model.h"

namespace mamba {

struct TuneOptions {
  std::vector<int64_t> batches = {1, 2, 4, 8, 16, 32, 64};  // rising
  int64_t rounds = 5;  // over all ways of a class; the fastest median counts
  int64_t steps = 20;  // of a way in a round
  int64_t most_layers = 16;
  std::function<void(const std::string&)> on_progress = {};
  std::function<bool()> interrupted = {};  // true ends it with `cancelled`
};

// The class of shapes that a measured request stands for: its type, all numbers of rows from
// `rows_from` to its own, and sizes and depths of the same power of two.
ChoiceRow class_of(const Request& request, int64_t rows_from);

// The measured way that counts: the fastest, but `usual` where it is within half a percent of that.
Way winner_of(const ChoiceRow& row, Way usual);

// Throws invalid_argument for a device on which nothing can be chosen.
void expect_tunable(const Device& device);

// Rows for the models of `config` on a GPU, weights and states of `options`; none for classes that
// `known` has already.
std::vector<ChoiceRow> tune(const Config& config, const ModelOptions& options,
                            const std::vector<ChoiceRow>& known, const TuneOptions& tuning);

// `fresh` and, behind them, those of `old` whose class is not among them.
std::vector<ChoiceRow> merged(const std::vector<ChoiceRow>& fresh,
                              const std::vector<ChoiceRow>& old);

}  // namespace mamba
