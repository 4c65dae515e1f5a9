// SPDX-License-Identifier: Apache-2.0
// Perplexity over sliding windows or in one pass with the state carried, at constant memory.
#include <algorithm>
#include <cmath>
#include <vector>

#include "eval/running_mean.h"
#include "eval/windows.h"
#include "mamba/evaluate.h"
#include "model/finite.h"

namespace mamba {

PerplexityResult evaluate_perplexity(Model& model, const TokenSource& source,
                                     const PerplexityOptions& options) {
  constexpr const char* kWhere = "eval ppl";
  PerplexityResult result;
  RunningMean mean;
  State state;
  std::vector<int32_t> targets;  // (1, inputs)
  std::vector<float> nll;        // (1, inputs)
  result.tokens = visit_windows(source, options, kWhere, [&](const Window& window) {
    if (window.fresh) state = model.new_state(1);
    const int64_t inputs = window.length - 1;
    targets.assign(window.ids + 1, window.ids + window.length);
    std::fill(targets.begin(), targets.begin() + (window.first_target - 1), -1);
    nll.resize(static_cast<size_t>(inputs));
    // A bf16 state is rounded after every call: token by token, as in decoding.
    const int64_t step = state.dtype() == DType::kBF16 ? 1 : inputs;
    for (int64_t at = 0; at < inputs; at += step) {
      model.score(window.ids + at, targets.data() + at, step, state, nll.data() + at);
    }
    expect_finite(model, nll.data(), inputs, kWhere);
    for (int64_t i = window.first_target; i < window.length; ++i) {
      const double value = nll[static_cast<size_t>(i - 1)];
      result.nll_sum += value;
      result.bytes += window.bytes[i];
      mean.add(value);
    }
    result.scored = mean.count();
    report_progress(options, kWhere, result.scored);
  });
  result.nll_mean = result.nll_sum / static_cast<double>(result.scored);
  result.perplexity = std::exp(result.nll_mean);
  result.standard_error = mean.standard_error();
  if (result.bytes > 0) {
    result.bits_per_byte = result.nll_sum / std::log(2.0) / static_cast<double>(result.bytes);
  }
  return result;
}

}  // namespace mamba
