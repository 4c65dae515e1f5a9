// SPDX-License-Identifier: Apache-2.0
// mamba-cpp eval: how well a model predicts; each kind of evaluation is a command of its own.
#include "cli/cmd_eval.h"

#include <utility>
#include <vector>

#include "base/check.h"

namespace mamba::cli {

CommandRun add_eval(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("eval", "Measure how well a model predicts");
  app->require_subcommand(1);
  std::vector<CommandRun> runs = {add_eval_ppl(*app), add_eval_kl(*app), add_eval_tasks(*app)};
  return [app, runs = std::move(runs)] {
    const std::vector<CLI::App*> commands = app->get_subcommands([](CLI::App*) { return true; });
    MAMBA_CHECK(commands.size() == runs.size());
    for (size_t i = 0; i < commands.size(); ++i) {
      if (commands[i]->parsed()) return runs[i]();
    }
    MAMBA_CHECK(false);
    return 0;
  };
}

}  // namespace mamba::cli
