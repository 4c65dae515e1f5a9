// SPDX-License-Identifier: Apache-2.0
// Where a run writes: that nothing lies there which is not its own.
#pragma once

#include <string>

#include "mamba/train.h"

namespace mamba {

// Throws invalid_argument where --output-dir names no folder, or one that holds a run or a model
// already (but with --resume).
void check_output_folder(const TrainOptions& options);

// Throws invalid_argument where the output folder holds a file that the run would write over, or
// that would become part of its model (a chat template, another vocabulary), and that is neither
// what the run puts there nor of an earlier run that has not saved yet. `tokenizer` and
// `chat_template` as copy_tokenizer_files() takes them.
void check_output_files(const TrainOptions& options, const std::string& tokenizer,
                        const std::string& chat_template);

}  // namespace mamba
