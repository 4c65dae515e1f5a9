// SPDX-License-Identifier: Apache-2.0
// AdamW over a network's flat buffers: two moments, ranges with and without weight decay.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "device/arena.h"
#include "model/network.h"
#include "model/params.h"

namespace mamba {

struct AdamwOptions {
  double beta1, beta2, epsilon, weight_decay;
};

// Consecutive trained tensors (and the gaps behind them) that are updated alike.
struct DecayRange {
  int64_t begin, count;  // in elements of the flat buffer of parameters
  int64_t trained;       // where it begins in that of gradients and moments
  bool decay;
  bool operator==(const DecayRange&) const = default;
};
std::vector<DecayRange> decay_ranges(const ParamTable& table, const TrainedLayout& trained);

class AdamW {
 public:
  // The network must outlive it.
  AdamW(Network& network, const AdamwOptions& options);

  // Norm over all gradients of the network's trained parameters.
  double grad_norm();
  // One update with gradients times grad_scale; step is 1 for the first.
  void update(int64_t step, double learning_rate, double grad_scale);

  // First and second moments, f32 in the layout of the network's trained(), in its memory().
  Buf exp_avg() { return Buf(exp_avg_.data(), DType::kF32); }
  Buf exp_avg_sq() { return Buf(exp_avg_sq_.data(), DType::kF32); }

 private:
  Network& network_;
  AdamwOptions options_;
  std::vector<DecayRange> ranges_;
  AlignedBlock exp_avg_, exp_avg_sq_;
  AlignedBlock sum_of_squares_;  // f64
};

// PyTorch's rule for a gradient norm above max_norm (0: never): max_norm / (norm + 1e-6), else 1.
double clip_scale(double norm, double max_norm);

// L2 norm of each tensor of a flat buffer, those that are not finite first, then the largest. With
// `trained`, of a buffer in that layout.
std::vector<std::pair<std::string, double>> tensor_norms(const ParamTable& table, const float* flat,
                                                         const TrainedLayout* trained = nullptr);
// No NaN and no infinity in the tensors of a flat buffer.
bool all_finite(const ParamTable& table, const float* flat);

}  // namespace mamba
