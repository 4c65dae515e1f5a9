// SPDX-License-Identifier: Apache-2.0
// The commands of mamba-cpp eval.
#pragma once

#include "cli/commands.h"

namespace mamba::cli {

CommandRun add_eval_ppl(CLI::App& parent);
CommandRun add_eval_kl(CLI::App& parent);
CommandRun add_eval_tasks(CLI::App& parent);

}  // namespace mamba::cli
