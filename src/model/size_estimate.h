// SPDX-License-Identifier: Apache-2.0
// What a model of some configuration needs, counted from the lists of its mixers: without its
// memory, so that a large model can be planned on a small machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "model/network.h"

namespace mamba {

// Bytes, on a device whose parameters are f32.
struct SizeEstimate {
  int64_t parameters = 0;  // the flat buffer of training and what is derived from it
  int64_t other = 0;       // all of that but the matrices
  int64_t matrices = 0;    // elements of matrices, which inference holds packed alone
  int64_t state_elements = 0;
  int64_t prefill = 0;  // activations of a chunk of 512 tokens
  MemoryPlan training;

  int64_t state_bytes() const { return 4 * state_elements; }
  int64_t inference(int64_t packed_element) const {
    return other + matrices * packed_element + state_bytes() + prefill;
  }
};

// Equal to what a Network of `config` and `product` would say of itself; `freeze` as in frozen_by.
SizeEstimate estimate_sizes(const Config& config, Device& device, Product product,
                            int64_t batch_size, int64_t seq_len, const StepOptions& options = {},
                            const std::vector<std::string>& freeze = {});

}  // namespace mamba
