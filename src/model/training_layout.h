// SPDX-License-Identifier: Apache-2.0
// Where a training step keeps what its backward reads: one layout for the plan and for the step.
#pragma once

#include <cstdint>
#include <vector>

#include "device/arena.h"
#include "mamba/config.h"
#include "mamba/train.h"
#include "model/mixer.h"
#include "model/parameter_table.h"

namespace mamba {

// How a training step trades time for memory; the gradients stay the same.
struct StepOptions {
  int64_t segments = 1;  // parts of the sequences, 1..L, with the state carried between them
  Recompute recompute = Recompute::kNone;
};

// Bytes of one training step, planned by the code that will use them.
struct MemoryPlan {
  int64_t parameters = 0, gradients = 0, optimizer = 0, activations = 0, scratch = 0;
  int64_t total() const { return parameters + gradients + optimizer + activations + scratch; }
};

// Input and statistics of one norm: what its backward reads.
struct NormIO {
  Buf r;           // (rows, D) residual after the addition
  Buf y;           // (rows, D) normalised, an activation
  Buf mean, rstd;  // (rows); mean for LayerNorm alone
};
NormIO layout_norm(const Config& config, const Context& ctx, bool with_r, Arena& arena);

// Rows of logits at a time.
int64_t head_rows(const Config& config, const Device& device);

// Bytes of a forward of ctx's tokens beside parameters and states.
int64_t inference_bytes(const Config& config, const std::vector<const Mixer*>& ops,
                        const Context& ctx);

// The residual sub-layers of a model and what is frozen of them.
struct LayerList {
  std::vector<const Mixer*> ops;
  int64_t state_elements = 0;  // of all
  int first_trained = 0;       // sub-layers before have no gradient to compute, nor what is before
};
// The first sub-layer whose backward is needed; ops.size() if that of the last norm and the head is
// enough.
int first_trained_layer(const Config& config, const std::vector<const Mixer*>& ops,
                        const TrainedLayout& trained);

class TrainingLayout {
 public:
  // ctx is that of one segment (of the longest). An arena without memory counts.
  void lay_out(const Config& config, const LayerList& layers, const Context& ctx,
               const StepOptions& options, Arena arena);

  std::vector<NormIO> norms;  // by sub-layer, then the last
  std::vector<Arena> saved;   // by sub-layer
  Buf states;     // (segments, B, state_elements) at the start of each; only with more than one
  Buf dstates;    // by sub-layer (B, its state_count()); likewise
  Buf h, dr;      // (rows, D) output of an operator, later dx; gradient of the residual
  Buf nll;        // (rows) losses
  Arena scratch;  // of operators and the head
  int64_t kept_bytes = 0;     // from forward to backward
  int64_t scratch_bytes = 0;  // the rest, and at least what an evaluation needs

 private:
  void lay_out_segments(const LayerList& layers, const Context& ctx, int64_t segments,
                        Arena& arena);
};

}  // namespace mamba
