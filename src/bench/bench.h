// SPDX-License-Identifier: Apache-2.0
// Benchmarks of kernels, of a model's prefill and decode, and of training steps. Nothing is
// printed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench/kernel_cases.h"
#include "bench/measure.h"
#include "bench/profile.h"
#include "bench/roofline.h"
#include "mamba/model.h"

namespace mamba {

struct KernelReport {
  std::string name, shape, device;
  int threads = 0;
  double error = 0, tolerance = 0;  // against the reference, relative to the largest value
  Measurement time;                 // of one call
  Cost cost;
};

// Checks the kernel against the reference on the same buffers, then times it. `cold`: flushes the
// caches before each run. Throws internal when results differ, invalid_argument for unknown sizes.
KernelReport bench_kernel(const KernelEntry& entry, const Shape& shape, const ModelOptions& options,
                          const MeasureOptions& timing, bool cold);

struct ModelReport {
  std::string device;
  DType dtype = DType::kF32;  // of most elements of matrices
  int threads = 0;
  int64_t parameters = 0, state_bytes = 0;  // state of one sequence
  int64_t batch_size = 0, prompt = 0;
  Measurement prefill;  // of `prompt` tokens of every row
  Measurement decode;   // of one token of every row
  // Read by one decode step: every matrix once, every state twice (read and written).
  double decode_bytes = 0;
  double flops_per_token = 0;  // of the matrices: a multiply-add for each element
  std::vector<ProfileLine> prefill_profile, decode_profile;  // of one call; empty unless asked for
};

ModelReport bench_model(Model& model, int64_t batch_size, int64_t prompt,
                        const MeasureOptions& timing, bool profile = false);

struct TrainReport {
  std::string device, isa, model_type;
  int threads = 0;
  int64_t state_bytes = 0;  // of one sequence
  int64_t parameters = 0, batch_size = 0, seq_len = 0;
  Measurement step;                      // forward, backward, gradient norm and update
  double first_loss = 0, last_loss = 0;  // nats a token, on one batch of random tokens
  int64_t planned_bytes = 0;             // by Network::plan_training
  int64_t peak_rss_bytes = 0;            // of this process
  std::vector<ProfileLine> profile;      // of one more step; empty unless asked for
};

// Training steps exist in f32 and bf16: weights in blocks have no gradient.
bool can_train_in(DType dtype);
// Random weights, no files. Throws invalid_argument for another type of weights. `poll` (may be
// empty) is called between steps, untimed, and throws to end the run.
TrainReport bench_train(const Config& config, const ModelOptions& options, int64_t batch_size,
                        int64_t seq_len, int64_t steps, bool profile = false,
                        const std::function<void()>& poll = {});

// Largest resident size of this process so far.
int64_t peak_rss_bytes();

}  // namespace mamba
