// SPDX-License-Identifier: Apache-2.0
// The table of tensors and their initialisation.
#include "model/params.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/check.h"
#include "base/rng.h"

namespace mamba {
namespace {

// FNV-1a: gives every tensor its own stream of random numbers, whatever stands before it.
uint64_t name_hash(const std::string& name) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return h;
}

double dt_bias(const Config& c, double uniform) {
  const double log_min = std::log(c.dt_min), log_max = std::log(c.dt_max);
  const double dt = std::max(std::exp(log_min + uniform * (log_max - log_min)), c.dt_init_floor);
  return dt + std::log(-std::expm1(-dt));  // softplus of this is dt
}

double initial_value(const ParamSpec& spec, const Config& c, const CounterRng& rng, int64_t i) {
  switch (spec.init) {
    case Init::kZero:
      return 0;
    case Init::kOne:
      return 1;
    case Init::kConstant:
      return spec.scale;
    case Init::kNormal:
      return spec.scale * rng.normal(static_cast<uint64_t>(i));
    case Init::kUniform:
      return spec.scale * (2 * rng.uniform(static_cast<uint64_t>(i)) - 1);
    case Init::kDtBias:
      return dt_bias(c, rng.uniform(static_cast<uint64_t>(i)));
    case Init::kLogCount:
      return std::log(static_cast<double>(i % spec.shape.back() + 1));
    case Init::kLogUniform:
      return std::log(c.A_init_min +
                      rng.uniform(static_cast<uint64_t>(i)) * (c.A_init_max - c.A_init_min));
  }
  return 0;
}

}  // namespace

int ParamTable::add(ParamSpec spec) {
  spec.offset = flat_count_;
  flat_count_ += (spec.count + kAlignElements - 1) / kAlignElements * kAlignElements;
  parameters_ += spec.count;
  specs_.push_back(std::move(spec));
  return static_cast<int>(specs_.size()) - 1;
}

void ParamTable::initialize(const Config& config, uint64_t seed, float* flat, int threads,
                            const std::function<bool()>& interrupted) const {
  constexpr int64_t kOften = 1 << 16;  // a millisecond or two
  std::atomic<bool> stopped = false;
  for (const ParamSpec& spec : specs_) {
    const CounterRng rng(seed, name_hash(spec.name));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < spec.count; ++i) {
      if (i % kOften == 0 && interrupted && interrupted()) stopped = true;
      if (stopped) continue;
      flat[spec.offset + i] = static_cast<float>(initial_value(spec, config, rng, i));
    }
    if (stopped) fail(ErrorCode::kCancelled, "interrupted");
  }
}

}  // namespace mamba
