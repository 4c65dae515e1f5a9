// SPDX-License-Identifier: Apache-2.0
// Means, perplexities and their standard errors as lm-evaluation-harness computes them.
#pragma once

#include <string>
#include <vector>

#include "mamba/evaluate.h"

namespace mamba {

// The mean, with sample standard deviation / sqrt(n).
TaskMetric mean_metric(const std::string& name, const std::vector<double>& values);

// exp(-mean of log_probs), with the bootstrap of the harness: the standard deviation over 100
// chunks, seeded 0..99, of 1000 resamples each, drawn as Python's random.choices draws them.
TaskMetric perplexity_metric(const std::vector<double>& log_probs, int threads);

}  // namespace mamba
