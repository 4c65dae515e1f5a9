// SPDX-License-Identifier: Apache-2.0
// Checkpoints of a run: folders checkpoint-<step> that appear whole or not at all, with the weights
// in the transformers form, the optimizer's moments (of what is trained), and where the run stands.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/network.h"
#include "train/optimizer.h"

namespace mamba {

// trainer_state.json. The generator of the data's order needs nothing else: it is a function of the
// seed and the number of samples.
struct TrainerState {
  int64_t step = 0;
  int64_t samples = 0;   // sequences consumed since step 0
  double seconds = 0;    // of training since step 0
  double loss = 0;       // of the last step
  double grad_norm = 0;  // of the last step
  Json options;          // those that decide the course of the run, by flag (see run_options.h)
};

struct CheckpointEntry {
  int64_t step;
  std::string path;
};

// "checkpoint-00000150"
std::string checkpoint_name(int64_t step);
// The checkpoints in a folder, oldest first; temporary and foreign names are not among them.
std::vector<CheckpointEntry> list_checkpoints(const std::string& folder);

// Writes output_dir/checkpoint-<step> with the files of `tokenizer` and `chat_template` as
// copy_tokenizer_files() takes them, and `card` as its README.md unless it is empty; when it
// returns, the checkpoint is durable. Returns its path.
std::string save_checkpoint(const std::string& output_dir, const TrainerState& state,
                            const Network& network, AdamW& optimizer,
                            const std::string& tokenizer = "bytes",
                            const std::string& chat_template = "", const std::string& card = "");

// Reads the state and checks every file against the size and the hash it was written with. Throws
// bad_file for a folder that is no checkpoint or is damaged.
TrainerState read_checkpoint(const std::string& path);
// The seed of its run, without looking at anything else of it; 0 where it does not say.
uint64_t seed_of_checkpoint(const std::string& path);
// Fills weights and moments from a checkpoint.
void load_checkpoint(const std::string& path, Network& network, AdamW& optimizer);

// Removes the oldest checkpoints so that `limit` are left (0: keeps all).
void remove_old_checkpoints(const std::string& folder, int64_t limit);
// Removes what killed processes left unfinished in a folder.
void remove_leftovers(const std::string& folder);

}  // namespace mamba
