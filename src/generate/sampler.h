// SPDX-License-Identifier: Apache-2.0
// From logits to a token by SamplingOptions, reproducible by (seed, sample, position).
#pragma once

#include <cstdint>

#include "device/device.h"
#include "mamba/generate.h"

namespace mamba {

// Throws invalid_argument naming the first option that is out of range (see SamplingOptions).
void validate(const SamplingOptions& options);

// Draws from the first `vocab` of a row of logits. `position` counts the tokens before the one
// drawn, so that neither batch nor threads nor a saved session in between changes the draw.
int32_t sample_token(Device& device, const float* logits, int64_t vocab,
                     const SamplingOptions& options, int64_t sample, int64_t position);

}  // namespace mamba
