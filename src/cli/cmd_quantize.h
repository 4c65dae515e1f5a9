// SPDX-License-Identifier: Apache-2.0
// Writing GGUF files with progress on standard error, for quantize and convert.
#pragma once

#include <string>

#include "mamba/quantize.h"

namespace mamba::cli {

// quantize_model with Ctrl-C, and its notices on standard error.
QuantizeResult run_with_progress(const std::string& in, const std::string& out,
                                 QuantizeOptions options);

}  // namespace mamba::cli
