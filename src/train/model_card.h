// SPDX-License-Identifier: Apache-2.0
// README.md of a trained model, or of a checkpoint: what it is, how it was trained, how good it is.
#pragma once

#include <string>

#include "mamba/train.h"
#include "model/model_card.h"

namespace mamba {

// Markdown with the front matter of model hubs. The paths of the data are shortened to their names.
std::string model_card(const TrainOptions& options, const TrainPlan& plan,
                       const TrainResult& result);
// The same of a checkpoint: how far the run was. Without an evaluation of another step, and without
// the curves, which lie beside it.
std::string checkpoint_card(const TrainOptions& options, const TrainPlan& plan,
                            const TrainResult& result);

// "2 h 03 min", "4 min 05 s", "12.3 s"
std::string duration_text(double seconds);

}  // namespace mamba
