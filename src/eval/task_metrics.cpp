// SPDX-License-Identifier: Apache-2.0
// Metrics of tasks.
#include "eval/task_metrics.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "eval/python_random.h"

namespace mamba {
namespace {

constexpr int kChunks = 100, kResamples = 1000;

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double sample_deviation(const std::vector<double>& values) {
  const double mu = mean(values);
  double sum = 0;
  for (const double v : values) sum += (v - mu) * (v - mu);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

}  // namespace

TaskMetric mean_metric(const std::string& name, const std::vector<double>& values) {
  TaskMetric metric{name, mean(values), std::numeric_limits<double>::quiet_NaN()};
  if (values.size() > 1) {
    metric.standard_error =
        sample_deviation(values) / std::sqrt(static_cast<double>(values.size()));
  }
  return metric;
}

TaskMetric perplexity_metric(const std::vector<double>& log_probs, int threads) {
  const size_t n = log_probs.size();
  TaskMetric metric{"perplexity", std::exp(-mean(log_probs)),
                    std::numeric_limits<double>::quiet_NaN()};
  if (n < 2) return metric;
  std::vector<double> replicates(size_t{kChunks} * kResamples);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    PythonRandom random(static_cast<uint32_t>(chunk));
    for (int r = 0; r < kResamples; ++r) {
      double sum = 0;
      for (size_t i = 0; i < n; ++i) {
        sum += log_probs[static_cast<size_t>(random.next_double() * static_cast<double>(n))];
      }
      replicates[static_cast<size_t>(chunk * kResamples + r)] =
          std::exp(-sum / static_cast<double>(n));
    }
  }
  metric.standard_error = sample_deviation(replicates);
  return metric;
}

}  // namespace mamba
