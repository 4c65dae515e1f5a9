// SPDX-License-Identifier: Apache-2.0
// Which type each matrix of a model has when its weights are asked for in few bits.
#pragma once

#include "mamba/dtype.h"
#include "model/network.h"

namespace mamba {

// `wanted`, or the type of blocks next to it in bits whose blocks make up rows of `columns`; bf16
// where none does.
DType fitting_blocks(DType wanted, int64_t columns);

// The type of parameter `spec` where the model is wanted in `wanted` (f32, bf16, f16 or a type of
// blocks). What is no matrix stays f32. In few bits the projections to and from dt, B and C
// (x_proj, dt_proj) are bf16: they are small and steer the recurrence. So are rows that no blocks
// make up.
DType weight_type(const ParamSpec& spec, DType wanted);

// Gives the network a parameter in the type that weight_type says, from f32 or bf16 rows.
// Throws bad_file for values that a type of blocks cannot hold.
void set_weight(Network& network, int index, CBuf values, DType wanted);

}  // namespace mamba
