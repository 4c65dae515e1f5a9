// SPDX-License-Identifier: Apache-2.0
// Runs the tests on random tokens.
#include "bench/speed.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/rng.h"
#include "bench/token_steps.h"
#include "formats/hf_config.h"
#include "formats/weight_files.h"
#include "model/network.h"

namespace mamba {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class SpeedRun {
 public:
  SpeedRun(Model& model, const SpeedTest& test, const SpeedOptions& options)
      : model_(model),
        tokens_(model),
        test_(test),
        options_(options),
        chunk_(std::max<int64_t>(1, test.chunk / test.sequences)) {
    const int64_t longest =
        std::max<int64_t>({1, std::min(test.prompt, chunk_), std::min(test.depth, chunk_)});
    const CounterRng rng(11);
    ids_.resize(static_cast<size_t>(test.sequences * std::max(longest, kSteps)));
    for (size_t i = 0; i < ids_.size(); ++i) {
      ids_[i] =
          static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(model.config().vocab_size)));
    }
    logits_.resize(static_cast<size_t>(test.sequences * model.config().vocab_size));
  }

  std::vector<double> run() {
    if (options_.warm_up) {
      State state = model_.new_state(test_.sequences);
      read(std::min(test_.prompt, chunk_), state);
      generate(std::min<int64_t>(test_.gen, 4), state);
    }
    State start = model_.new_state(test_.sequences);
    read(test_.depth, start);
    std::vector<double> seconds;
    for (int64_t i = 0; i < options_.repetitions; ++i) {
      options_.poll();
      State state = start;
      const Clock::time_point begin = Clock::now();
      read(test_.prompt, state);
      generate(test_.gen, state);
      seconds.push_back(seconds_since(begin));
    }
    return seconds;
  }

 private:
  static constexpr int64_t kSteps = 64;  // after so many the same tokens come again

  void read(int64_t count, State& state) {
    for (int64_t at = 0; at < count; at += chunk_) {
      const int64_t length = std::min(chunk_, count - at);
      const bool last = at + length == count;
      model_.forward(ids_.data(), length, state, last ? Logits::kLast : Logits::kNone,
                     last ? logits_.data() : nullptr);
      options_.poll();
    }
  }

  void generate(int64_t count, State& state) {
    for (int64_t i = 0; i < count; ++i) {
      tokens_.step(ids_.data() + i % kSteps * test_.sequences, state);
      options_.poll();
    }
  }

  Model& model_;
  TokenSteps tokens_;
  const SpeedTest& test_;
  const SpeedOptions& options_;
  int64_t chunk_;              // of each sequence
  std::vector<int32_t> ids_;   // (sequences, chunk), or (steps, sequences)
  std::vector<float> logits_;  // (sequences, V)
};

}  // namespace

std::string SpeedTest::name() const {
  std::string text;
  if (prompt > 0) text = fmt::format("pp{}", prompt);
  if (gen > 0) text += fmt::format("{}tg{}", prompt > 0 ? "+" : "", gen);
  if (sequences > 1) text += fmt::format(" x{}", sequences);
  if (depth > 0) text += fmt::format(" @ d{}", depth);
  return text;
}

std::vector<double> time_speed(Model& model, const SpeedTest& test, const SpeedOptions& options) {
  return SpeedRun(model, test, options).run();
}

MeanAndDeviation mean_and_deviation(const std::vector<double>& values) {
  MeanAndDeviation result;
  if (values.empty()) return result;
  const double n = static_cast<double>(values.size());
  for (const double v : values) result.mean += v / n;
  if (values.size() < 2) return result;
  double squares = 0;
  for (const double v : values) squares += (v - result.mean) * (v - result.mean);
  result.deviation = std::sqrt(squares / (n - 1));
  return result;
}

BenchModel open_bench_model(const std::string& path, const ModelOptions& options) {
  std::error_code ignored;
  const bool is_file = std::filesystem::is_regular_file(path, ignored) && !path.ends_with(".json");
  const Clock::time_point start = Clock::now();
  if (is_file || has_weights(path)) {
    Model model = Model::load(path, options);
    return {std::move(model), seconds_since(start), false};
  }
  return {Model::create(load_config(path), 1, options), 0, true};
}

double weight_bytes(Model& model) {
  const Network& network = model.network();
  double bytes = 0;
  for (size_t i = 0; i < network.table().specs().size(); ++i) {
    bytes += static_cast<double>(network.held_bytes(static_cast<int>(i)));
  }
  return bytes;
}

std::string model_type_name(Model& model) {
  const double count = static_cast<double>(model.parameters());
  const Config& config = model.config();
  const std::string family = config.model_type == "falcon_mamba" ? config.model_type : config.mixer;
  return count < 1e6   ? fmt::format("{} {:.0f}k", family, count * 1e-3)
         : count < 1e9 ? fmt::format("{} {:.0f}M", family, count * 1e-6)
                       : fmt::format("{} {:.1f}B", family, count * 1e-9);
}

void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace mamba
