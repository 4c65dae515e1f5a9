// SPDX-License-Identifier: Apache-2.0
// Everything a run needs before its first step, checked and opened but nothing written.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "mamba/tokenizer.h"
#include "mamba/train.h"
#include "model/network.h"
#include "tokenizer/conversation.h"
#include "train/checkpoint.h"
#include "train/data_sources.h"

namespace mamba {

struct RunSetup {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string template_folder;  // whose chat template is the default; ""
  std::string byte_template;    // its chat_template.jinja where its tokenizer is that of bytes
  std::unique_ptr<ConversationEncoder> conversations;
  std::unique_ptr<DataSet> data;
  std::unique_ptr<DataSet> valid;       // null without --valid
  std::string resume_path;              // the checkpoint to go on from; ""
  std::optional<TrainerState> resumed;  // of resume_path
  std::vector<std::string> damaged;     // newer checkpoints of the output folder that are not whole
  std::vector<std::string> notices;     // worth a line each
  Json course;                          // see run_options.h
  std::unique_ptr<Network> network;     // weights not yet set; null for a plan
  TrainPlan plan;
};

// The chat template that the run writes, "" for that of the tokenizer's folder: what chat needs to
// write conversations as the data had them.
std::string template_text(const TrainOptions& options, const RunSetup& setup);

// How a step of the run uses memory.
StepOptions step_options(const TrainOptions& options);

// Throws for whatever is wrong with options, files, memory or the output folder. With plan_only the
// output folder is not looked at, but for a checkpoint to resume from, no memory is taken for the
// model, and that this machine has too little is a notice.
RunSetup prepare_run(const TrainOptions& options, bool plan_only);

}  // namespace mamba
