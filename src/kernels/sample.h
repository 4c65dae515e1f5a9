// SPDX-License-Identifier: Apache-2.0
// sample: a token from each row of logits, through a chain of steps.
#pragma once

#include "base/buf.h"
#include "device/stream.h"

namespace mamba {

enum class SampleStep : uint8_t { kPenalties, kTopK, kTypicalP, kTopP, kMinP, kTemperature };

// What *token is where there is none to return.
constexpr int32_t kNoToken = -1;    // biases leave every token at -infinity
constexpr int32_t kNotFinite = -2;  // asked for by check_finite: a logit is infinite or NaN

// The kept tokens have logits x_i, at first all of them (NaN counts as -infinity), with the biases
// added (each sum rounded to f32), and
// probabilities p = softmax(x) over what is kept. The steps, in the order of `steps`:
//   penalties    of each token seen c > 0 times: x = x > 0 ? x / repeat : x * repeat;
//                x = x - presence - c * frequency
//   top_k        keep the top_k largest (0: all; ties by index)
//   typical_p    keep the fewest tokens whose p reaches typical_p (1: all), in ascending order of
//                |-ln p_i - H| with H = -sum p ln p (Meister et al., arXiv 2202.00666); ties by
//                index
//   top_p        keep the fewest most likely tokens whose p reaches top_p (1: all; ties by index)
//   min_p        drop tokens below min_p times the largest p (0: none)
//   temperature  x = x / temperature
// Then one is drawn with `uniform` in [0, 1) by walking the kept tokens in the order of their
// index. temperature <= 0 or NaN is greedy: no step but the penalties, if they are among the steps,
// and the smallest index among the largest. At least one token is always kept, and one of
// -infinity is returned only where there is no other.
struct SampleRow {
  int64_t vocab;
  CBuf logits;  // (vocab)
  bool check_finite;
  const SampleStep* steps;
  int64_t step_count;
  double temperature;
  int64_t top_k;
  double typical_p, top_p, min_p;
  double repeat, presence, frequency;
  const int32_t* biased;  // (biased_count) ids below vocab, which may be there more than once
  const double* bias;     // (biased_count), -infinity bans
  int64_t biased_count;
  const int32_t* seen;        // (seen_count) ids, each once; those from vocab on are passed over
  const int32_t* seen_times;  // (seen_count) how often
  int64_t seen_count;
  double uniform;
  int32_t* token;  // out
};

// The rows and their steps lie in main memory and need not outlive the call, whatever they point to
// in the memory of the device.
struct SampleArgs {
  int64_t count;
  const SampleRow* rows;
};

}  // namespace mamba
