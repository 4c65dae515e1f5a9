// SPDX-License-Identifier: Apache-2.0
// Which type each matrix of a model has when its weights are asked for in few bits.
#pragma once

#include <functional>

#include "mamba/dtype.h"
#include "model/network.h"

namespace mamba {

// `wanted`, or the type of blocks next to it in bits whose blocks make up rows of `columns`; bf16
// where none does.
DType fitting_blocks(DType wanted, int64_t columns);

// The type of a matrix where the model is wanted in `wanted`, whatever its rows: where errors cost
// most, few bits are more than what was asked for. The projections to and from dt, B and C (x_proj,
// dt_proj), which steer the recurrence, are q8_0, and the head, or the embedding that it shares,
// q6_k (q8_0 where its rows are no multiple of 256).
DType matrix_type(const Config& config, const ParamSpec& spec, DType wanted);

// The type of parameter `spec` where the model is wanted in `wanted` (f32, bf16, f16 or a type of
// blocks): that which a file of quantize_model() has. What is no matrix stays f32.
DType weight_type(const Config& config, const ParamSpec& spec, DType wanted);

// Gives the network a parameter in the type that weight_type says, from f32, bf16 or f16 rows.
// Throws bad_file for values that the type cannot hold, cancelled once `interrupted`, which all
// threads ask, says true.
void set_weight(Network& network, int index, CBuf values, DType wanted,
                const std::function<bool()>& interrupted = {});

}  // namespace mamba
