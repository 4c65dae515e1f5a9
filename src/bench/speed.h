// SPDX-License-Identifier: Apache-2.0
// Tokens a second of a model, test by test as llama-bench has them: a prompt, generated tokens, or
// both, of one sequence or of several together, behind a context of some depth.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mamba/model.h"
#include "model/params.h"

namespace mamba {

struct SpeedTest {
  int64_t prompt = 0, gen = 0, depth = 0;  // tokens of each sequence
  int64_t sequences = 1;
  int64_t chunk = 512;  // tokens of all sequences that go through the layers together

  // Tokens that count: of all sequences, without those of the depth.
  int64_t tokens() const { return sequences * (prompt + gen); }
  // "pp512", "tg128", "pp512+tg128"; " x8" for 8 sequences, " @ d512" behind 512 tokens.
  std::string name() const;
};

struct SpeedOptions {
  int64_t repetitions = 5;
  bool warm_up = true;
  // Called now and then, also while a repetition is timed; what it throws ends the test.
  std::function<void()> poll = [] {};
};

// Seconds of each repetition.
std::vector<double> time_speed(Model& model, const SpeedTest& test, const SpeedOptions& options);

struct MeanAndDeviation {
  double mean = 0, deviation = 0;  // of the sample: over n - 1; 0 for one value
};
MeanAndDeviation mean_and_deviation(const std::vector<double>& values);

// A model for benchmarks: the weights of a file or folder if there are any, else random ones for a
// configuration or preset.
struct BenchModel {
  Model model;
  double load_seconds = 0;
  bool random = false;
};
BenchModel open_bench_model(const std::string& path, const ModelOptions& options);

// Bytes that all tensors take.
double weight_bytes(Model& model);

// "mamba1 129M".
std::string model_type_name(Model& model);

// Forgets the largest resident size of this process so far, where the system can do that.
void reset_peak_rss();

}  // namespace mamba
