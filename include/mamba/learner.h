// SPDX-License-Identifier: Apache-2.0
// Training step by step, for programs with a loop and data of their own. train() (train.h) is the
// whole run: files, schedule, checkpoints.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mamba/config.h"
#include "mamba/dtype.h"

namespace mamba {

class Network;
class AdamW;

struct LearnerOptions {
  std::string device = "cpu";  // see ModelOptions::device; not "ref64"
  int threads = 0;             // 0: one per physical core; results do not depend on it
  bool bf16 = false;           // products of matrices in bf16; weights and the rest stay f32
  double adam_beta1 = 0.9, adam_beta2 = 0.95;  // [0, 1)
  double adam_epsilon = 1e-8;                  // > 0
  double weight_decay = 0.1;   // >= 0; never of A_log, D, dt biases, biases, norms, initial states
  double max_grad_norm = 1.0;  // 0: no clipping
};

// What one update did.
struct UpdateReport {
  double loss = 0;       // mean over the scored targets, nats
  int64_t targets = 0;   // how many were scored
  double grad_norm = 0;  // of the mean loss, before clipping
  bool applied = true;   // false: loss or gradient was NaN or infinite, weights are as before
};

// Weights, their gradients and AdamW's moments. Not thread-safe.
class Learner {
 public:
  // Fresh weights by the rules of the papers, from the seed alone.
  static Learner create(const Config& config, uint64_t seed, const LearnerOptions& options = {});
  // The weights of a model folder; moments start at zero. Throws bad_file, unsupported.
  static Learner load(const std::string& folder, const LearnerOptions& options = {});
  Learner(Learner&&) noexcept;
  Learner& operator=(Learner&&) noexcept;
  ~Learner();

  const Config& config() const;
  int64_t steps() const { return steps_; }  // updates applied

  // Adds the gradient of a batch. tokens and targets are (batch, length) row-major: ids in
  // [0, vocab_size), -1 for padding and for targets that are not scored. documents, when not null,
  // is (batch, length): a change of id between two tokens starts a fresh sequence there. Throws
  // invalid_argument for ids out of range.
  void accumulate(const int32_t* tokens, const int32_t* targets, int64_t batch, int64_t length,
                  const int32_t* documents = nullptr);
  // One AdamW update with the mean gradient over all targets since the last one, which then is
  // forgotten. Throws invalid_argument if no target was scored.
  UpdateReport update(double learning_rate);
  // accumulate() and update().
  UpdateReport step(const int32_t* tokens, const int32_t* targets, int64_t batch, int64_t length,
                    double learning_rate, const int32_t* documents = nullptr);
  // Mean loss over the scored targets, nats; nothing changes.
  double evaluate(const int32_t* tokens, const int32_t* targets, int64_t batch, int64_t length,
                  const int32_t* documents = nullptr);

  // config.json and safetensors in the transformers form: what Model::load takes.
  void save(const std::string& folder, DType dtype = DType::kF32) const;

 private:
  Learner(std::unique_ptr<Network> network, const LearnerOptions& options);
  std::unique_ptr<Network> network_;
  std::unique_ptr<AdamW> optimizer_;
  double max_grad_norm_;
  double nll_ = 0;
  int64_t targets_ = 0, steps_ = 0;
};

}  // namespace mamba
