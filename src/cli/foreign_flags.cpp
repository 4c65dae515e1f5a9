// SPDX-License-Identifier: Apache-2.0
// The table of foreign flags.
#include "cli/foreign_flags.h"

#include <algorithm>

#include "base/check.h"
#include "base/json.h"

namespace mamba::cli {
namespace {

constexpr bool kSwitch = false, kValue = true;
constexpr const char* kNoCache =
    "a state of constant size stands in the place of a KV cache; --state-dtype sets its type";
constexpr const char* kNoAttention = "these models have no attention";
constexpr const char* kOneDevice = "a model runs on one device as a whole";

const std::vector<ForeignFlag>& table() {
  static const std::vector<std::string> kRun = {"bench", "generate", "chat"};
  static const std::vector<std::string> kBench = {"bench"}, kQuantize = {"quantize"};
  static const std::vector<ForeignFlag> kFlags = {
      {kRun, {"-fa", "--flash-attn"}, kValue, {"0", "off", "auto"}, kNoAttention},
      {kRun, {"-ctk", "--cache-type-k"}, kValue, {}, kNoCache},
      {kRun, {"-ctv", "--cache-type-v"}, kValue, {}, kNoCache},
      {kRun, {"-sm", "--split-mode"}, kValue, {"none"}, kOneDevice},
      {kRun, {"-mg", "--main-gpu"}, kValue, {"0"}, kOneDevice},
      {kRun, {"-ts", "--tensor-split"}, kValue, {"0"}, kOneDevice},
      {kBench, {"-nkvo", "--no-kv-offload"}, kValue, {"0"}, kNoCache},
      {kBench, {"-mmp", "--mmap"}, kValue, {"1"}, "files of weights are always mapped"},
      {kBench,
       {"-dio", "--direct-io"},
       kValue,
       {"0"},
       "files of weights are mapped, and read through the cache of the system"},
      {kBench,
       {"--prio"},
       kValue,
       {"0"},
       "the priority is that of the process; start it with nice or chrt"},
      {kBench,
       {"-C", "--cpu-mask"},
       kValue,
       {"0x0"},
       "processors are chosen from outside; start it with taskset MASK"},
      {kBench, {"--cpu-strict"}, kValue, {"0"}, "processors are chosen from outside, by taskset"},
      {kBench, {"--poll"}, kValue, {"0"}, "threads that wait sleep; GOMP_SPINCOUNT sets how soon"},
      {kBench, {"--numa"}, kValue, {}, "memory is placed from outside; start it with numactl"},
      {kBench, {"-ncmoe", "--n-cpu-moe"}, kValue, {"0"}, "these models have no experts"},
      {kBench, {"-ot", "--override-tensor"}, kValue, {"none"}, kOneDevice},
      {kBench, {"-nopo", "--no-op-offload"}, kValue, {"0"}, kOneDevice},
      {kBench, {"--no-host"}, kValue, {"0"}, kOneDevice},
      {kBench, {"-embd", "--embeddings"}, kValue, {"0"}, "tests compute logits, not embeddings"},
      {kBench, {"-rpc", "--rpc"}, kValue, {}, "a model runs on this machine alone"},
      {kBench,
       {"-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token"},
       kValue,
       {},
       "nothing is fetched; download the model and name it by -m"},
      {kBench, {"-fitt", "--fit-target", "-fitc", "--fit-ctx"}, kValue, {}, kOneDevice},
      {kQuantize,
       {"--keep-split"},
       kSwitch,
       {},
       "shards are cut by size; --max-shard-mb N sets how large they are"},
      {kQuantize,
       {"--override-kv"},
       kValue,
       {},
       "metadata are written from the configuration; change config.json of the model folder"},
      {kQuantize,
       {"--include-weights", "--exclude-weights"},
       kValue,
       {},
       "an importance file is used as a whole; make one of fewer matrices, or leave out --imatrix"},
      {kQuantize,
       {"--prune-layers"},
       kValue,
       {},
       "a model keeps its layers; only types of matrices change"},
      {kQuantize, {"--target-size"}, kValue, {}, "types decide the size; --dry-run shows it"},
  };
  return kFlags;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

}  // namespace

const ForeignFlag* foreign_flag(const std::string& command, const std::string& name) {
  for (const ForeignFlag& flag : table()) {
    if (contains(flag.commands, command) && contains(flag.names, name)) return &flag;
  }
  return nullptr;
}

void expect_harmless(const ForeignFlag& flag, const std::string& command, const std::string& name,
                     const std::string& value) {
  if (contains(flag.harmless, value)) return;
  fail(ErrorCode::kInvalidArgument, "[{}] expected no flag {}, got '{}{}': {}; leave it out",
       command, name, name, value.empty() ? "" : " " + printable(value), flag.why);
}

}  // namespace mamba::cli
