// SPDX-License-Identifier: Apache-2.0
// Under which heading of the help a flag stands, whatever its command, and whether the short help
// shows it. A flag that its command has put into a group of its own stays there.
#include "cli/option_groups.h"

#include <algorithm>
#include <array>
#include <string>

#include "cli/option_info.h"

namespace mamba::cli {
namespace {

constexpr bool kRare = true;  // in --help-all alone

struct GroupedFlag {
  const char* flag;
  const char* group;
  bool rare = false;
  const char* command = nullptr;  // for a flag that means something else in this command
};

constexpr std::array kOrder = std::to_array<const char*>({
    "Model",
    "Input",
    "Sampling",
    "Stopping",
    "Training",
    "Optimizer",
    "Reports and checkpoints",
    "Output",
    "Run",
    "Program",
});

constexpr std::array kFlags = std::to_array<GroupedFlag>({
    {"--model", "Model"},
    {"--model-config", "Model"},
    {"--init-from", "Model"},
    {"--vocab-size", "Model", kRare},
    {"--vocab-size", "Output", false, "tokenizer train"},
    {"--freeze", "Model", kRare},
    {"--tokenizer", "Model"},
    {"--base-dtype", "Model", kRare},
    {"--prompt", "Input"},
    {"--file", "Input"},
    {"--prompt-ids", "Input"},
    {"--jsonl", "Input"},
    {"--data", "Input"},
    {"--valid", "Input"},
    {"--tasks", "Input"},
    {"--limit", "Input"},
    {"--data-weights", "Input", kRare},
    {"--data-dtype", "Input", kRare},
    {"--packing", "Input", kRare},
    {"--data-order", "Input", kRare},
    {"--state-in", "Input"},
    {"--system-prompt", "Input"},
    {"--chat-template", "Input"},
    {"--chat-template-file", "Input", kRare},
    {"--jinja", "Input", kRare},
    {"--session", "Input"},
    {"--history", "Input", kRare},
    {"--decode", "Input"},
    {"--imatrix", "Input"},
    {"--eval-text", "Input"},
    {"--chunk", "Input", kRare, "imatrix"},
    {"--chunks", "Input", kRare, "imatrix"},
    {"--add-special", "Input", kRare},
    {"--skip-special", "Input", kRare},
    {"--shape", "Input"},
    {"--prompt-length", "Input"},
    {"--window", "Input"},
    {"--stride", "Input"},
    {"--carry-state", "Input"},
    {"--windows", "Input", kRare},
    {"--drop-tail", "Input", kRare},
    {"--max-length", "Input", kRare},
    {"--special", "Input"},
    {"--no-special", "Input", kRare},
    {"--min-frequency", "Input", kRare},
    {"--limit-bytes", "Input", kRare},
    {"--max-new-tokens", "Sampling"},
    {"--temp", "Sampling"},
    {"--top-k", "Sampling"},
    {"--top-p", "Sampling"},
    {"--min-p", "Sampling"},
    {"--typical-p", "Sampling", kRare},
    {"--repeat-penalty", "Sampling"},
    {"--repeat-last-n", "Sampling", kRare},
    {"--presence-penalty", "Sampling", kRare},
    {"--frequency-penalty", "Sampling", kRare},
    {"--no-repeat-ngram", "Sampling", kRare},
    {"--logit-bias", "Sampling", kRare},
    {"--samplers", "Sampling", kRare},
    {"--seed", "Sampling"},
    {"--seed", "Training", kRare, "train"},
    {"--n", "Sampling"},
    {"--stop", "Stopping"},
    {"--stop-ids", "Stopping", kRare},
    {"--min-tokens", "Stopping", kRare},
    {"--ignore-eos", "Stopping", kRare},
    {"--ctx-size", "Stopping", kRare},
    {"--ctx-size", "Run", kRare, "chat"},
    {"--device", "Run", kRare},
    {"--list-devices", "Run", kRare},
    {"--backend", "Run", kRare},
    {"--explain", "Run", kRare},
    {"--repetitions", "Run", kRare, "tune"},
    {"--quiet", "Output", kRare, "tune"},
    {"--gpu-layers", "Run", kRare},
    {"--ubatch-size", "Run", kRare},
    {"--cont-batching", "Run", kRare},
    {"--parallel", "Run", kRare},
    {"--batch-size", "Run", kRare, "chat"},
    {"--batch-size", "Run", kRare, "eval ppl"},
    {"--max-steps", "Training"},
    {"--batch-size", "Training"},
    {"--batch-size", "Input", kRare, "generate"},
    {"--batch-size", "Run", kRare, "eval tasks"},
    {"--seq-len", "Training"},
    {"--gradient-accumulation-steps", "Training", kRare},
    {"--bptt-segments", "Training", kRare},
    {"--recompute", "Training", kRare},
    {"--bf16", "Training"},
    {"--steps", "Training"},
    {"--learning-rate", "Optimizer"},
    {"--warmup-steps", "Optimizer"},
    {"--lr-scheduler-type", "Optimizer", kRare},
    {"--min-lr-ratio", "Optimizer", kRare},
    {"--weight-decay", "Optimizer", kRare},
    {"--adam-beta1", "Optimizer", kRare},
    {"--adam-beta2", "Optimizer", kRare},
    {"--adam-epsilon", "Optimizer", kRare},
    {"--max-grad-norm", "Optimizer", kRare},
    {"--eval-steps", "Reports and checkpoints"},
    {"--eval-batches", "Reports and checkpoints", kRare},
    {"--logging-steps", "Reports and checkpoints", kRare},
    {"--save-steps", "Reports and checkpoints"},
    {"--save-total-limit", "Reports and checkpoints", kRare},
    {"--resume", "Reports and checkpoints"},
    {"--resume", "Output", kRare, "generate"},
    {"--tolerance", "Output"},
    {"--dump", "Output", kRare},
    {"--to", "Output"},
    {"--out", "Output"},
    {"--output", "Output"},
    {"--output-err", "Output", kRare},
    {"--output-dir", "Output"},
    {"--force", "Output"},
    {"--safetensors", "Output", kRare},
    {"--tensor-type", "Output"},
    {"--tensor-type-file", "Output", kRare},
    {"--output-tensor-type", "Output"},
    {"--token-embedding-type", "Output"},
    {"--leave-output-tensor", "Output", kRare},
    {"--pure", "Output"},
    {"--allow-requantize", "Output", kRare},
    {"--no-tokenizer", "Output", kRare},
    {"--max-shard-mb", "Output", kRare},
    {"--stats", "Output", kRare},
    {"--verify", "Output"},
    {"--state-out", "Output"},
    {"--echo", "Output", kRare},
    {"--logprobs", "Output", kRare},
    {"--all", "Output"},
    {"--json", "Output"},
    {"--dry-run", "Run"},
    {"--seconds", "Run"},
    {"--progress", "Run", kRare},
    {"--verbose", "Run", kRare},
    {"--no-cache", "Run", kRare},
    {"--cache-after", "Run", kRare},
    {"--cold", "Run"},
    {"--profile", "Run"},
    {"--dtype", "Run"},
    {"--state-dtype", "Run"},
    {"--pin", "Run"},
    {"--dtype", "Output", false, "convert"},
    {"--dtype", "Output", kRare, "tokenize"},
    {"--threads", "Run"},
    {"--isa", "Run", kRare},
    {"--config", "Program"},
    {"--color", "Program"},
    {"--help", "Program"},
    {"--help-all", "Program"},
    {"--version", "Program"},
});

const GroupedFlag* find(const CLI::App& app, const CLI::Option& option) {
  const std::string name = flag_name(option), command = command_path(app, false);
  const GroupedFlag* found = nullptr;
  for (const GroupedFlag& f : kFlags) {
    if (name != f.flag) continue;
    if (f.command != nullptr && command == f.command) return &f;
    if (f.command == nullptr) found = &f;
  }
  return found;
}

bool has_own_group(const CLI::Option& option) {
  return option.get_group() != "Options" && !option.get_group().empty();
}

}  // namespace

std::string group_of(const CLI::App& app, const CLI::Option& option) {
  if (has_own_group(option)) return option.get_group();
  const GroupedFlag* known = find(app, option);
  return known == nullptr ? kOtherFlags : known->group;
}

bool is_rare(const CLI::App& app, const CLI::Option& option) {
  const GroupedFlag* known = find(app, option);
  return known != nullptr && known->rare && !option.get_required();
}

std::vector<FlagGroup> groups_of(const CLI::App& app) {
  const auto place = [](const std::string& group) {  // one of a command's own before the output
    const auto* at = std::find(kOrder.begin(), kOrder.end(), group);
    return at == kOrder.end() ? std::find(kOrder.begin(), kOrder.end(), std::string("Output")) : at;
  };
  std::vector<FlagGroup> groups;
  for (const CLI::Option* option : flags_of(app)) {
    const std::string name = group_of(app, *option);
    auto at = std::find_if(groups.begin(), groups.end(),
                           [&](const FlagGroup& g) { return g.name == name; });
    if (at == groups.end()) at = groups.insert(groups.end(), {name, {}});
    at->flags.push_back(option);
  }
  std::stable_sort(groups.begin(), groups.end(), [&](const FlagGroup& a, const FlagGroup& b) {
    return place(a.name) < place(b.name);
  });
  return groups;
}

}  // namespace mamba::cli
