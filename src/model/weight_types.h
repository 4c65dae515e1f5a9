// SPDX-License-Identifier: Apache-2.0
// Which type each matrix of a model has when its weights are asked for in few bits.
#pragma once

#include "mamba/dtype.h"
#include "model/network.h"

namespace mamba {

// The type of parameter `spec` where the model is wanted in `wanted` (f32, bf16, f16 or a type of
// blocks). What is no matrix stays f32. In few bits the projections to and from dt, B and C
// (x_proj, dt_proj) are bf16: they are small, steer the recurrence, and rows of dt_proj are no
// whole blocks. So are rows that are no multiple of 32; where they are one of 32 but not of the
// block, a type of blocks of 32 with at least as many bits stands in (Q4_K: Q5_0, Q5_K: Q5_1, Q6_K:
// Q8_0).
DType weight_type(const ParamSpec& spec, DType wanted);

// Gives the network a parameter in the type that weight_type says, from f32 or bf16 rows.
// Throws bad_file for values that a type of blocks cannot hold.
void set_weight(Network& network, int index, CBuf values, DType wanted);

}  // namespace mamba
