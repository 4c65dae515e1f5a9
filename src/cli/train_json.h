// SPDX-License-Identifier: Apache-2.0
// What 'mamba-cpp train --json' prints: the plan of a dry run, or how a run ended.
#pragma once

#include <string>

#include "mamba/train.h"

namespace mamba::cli {

std::string plan_json(const TrainOptions& options, const TrainPlan& plan);
std::string result_json(const TrainOptions& options, const TrainResult& result);

}  // namespace mamba::cli
