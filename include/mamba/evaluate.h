// SPDX-License-Identifier: Apache-2.0
// How well a model predicts text: perplexity and bits per byte over a stream of any length.
#pragma once

#include <cstdint>
#include <functional>

#include "mamba/model.h"

namespace mamba {

// Fills at most `count` ids and, for each, the bytes of text it stands for; returns how many, 0 at
// the end of the text.
using TokenSource = std::function<int64_t(int32_t* ids, int32_t* bytes, int64_t count)>;

struct PerplexityOptions {
  // Windows of `window` tokens, each from a fresh state, `stride` tokens apart. Every target that
  // an earlier window has scored is context only; the first token of a window is never a target. So
  // stride == window scores window - 1 targets of each, and a smaller stride scores every token but
  // the first of the text exactly once.
  int64_t window = 1024;  // >= 2
  int64_t stride = 512;   // 1..window
  // Instead: one pass with the state carried from the first token to the last.
  bool carry_state = false;
  int64_t chunk =
      512;  // tokens a call when the state is carried; changes results by rounding alone
  // Called after each window or chunk with the targets scored so far; false stops with `cancelled`.
  std::function<bool(int64_t scored)> progress;
};

struct PerplexityResult {
  int64_t tokens = 0;         // read
  int64_t scored = 0;         // targets scored
  int64_t bytes = 0;          // of the scored targets
  double nll_sum = 0;         // nats
  double nll_mean = 0;        // per scored target
  double standard_error = 0;  // of nll_mean, targets taken as independent
  double perplexity = 0;      // exp(nll_mean)
  double bits_per_byte = 0;   // nll_sum / ln 2 / bytes
};

// Reads the source once, at memory that does not grow with the text. Throws invalid_argument for
// options out of range or a text of fewer than two tokens.
PerplexityResult evaluate_perplexity(Model& model, const TokenSource& source,
                                     const PerplexityOptions& options = {});

}  // namespace mamba
