// SPDX-License-Identifier: Apache-2.0
// Weights in files against the tensors that a configuration has.
#pragma once

#include "formats/tensor_table.h"
#include "mamba/config.h"

namespace mamba {

// Throws bad_file naming the first of the tensors that is missing, has another shape or belongs to
// no layer. A tied model may have "lm_head.weight" too; it must equal the embedding.
void check_tensors(const TensorTable& table, const Config& config);

}  // namespace mamba
