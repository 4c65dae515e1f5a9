// SPDX-License-Identifier: Apache-2.0
// Ranges of the options of a run, and which of them a resumed run must share with its checkpoint.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"
#include "mamba/train.h"
#include "train/data_sources.h"
#include "train/schedule.h"

namespace mamba {

// Throws invalid_argument naming the flag, the range and the value, for options that are out of
// range or contradict each other.
void check_train_options(const TrainOptions& options);

Schedule schedule_of(const TrainOptions& options);

// What decides the course of a run, by flag; saved with each checkpoint.
Json course_of(const TrainOptions& options, const Tokenizer& tokenizer, const DataSet& data,
               const std::string& device);

// Throws invalid_argument unless the steps already done would be the same under both courses: then
// the resumed run equals an uninterrupted one with the new options. So the length or the schedule
// may change as long as the learning rates up to `step` do not. `where` is the checkpoint.
void check_same_course(const Json& saved, const Json& now, int64_t step, const std::string& where);

}  // namespace mamba
