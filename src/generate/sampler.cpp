// SPDX-License-Identifier: Apache-2.0
// Sampling options on the sample kernel and the counter-based generator.
#include "generate/sampler.h"

#include "base/check.h"
#include "base/rng.h"

namespace mamba {
namespace {

// A comparison with NaN is false, so NaN is refused like any value out of range.
void expect(bool in_range, const char* name, const char* range, double got) {
  if (in_range) return;
  fail(ErrorCode::kInvalidArgument, "[generate] expected {} in {}, got {}", name, range, got);
}

}  // namespace

void validate(const SamplingOptions& o) {
  expect(o.temperature >= 0 && o.temperature <= 1000, "temperature", "0..1000", o.temperature);
  expect(o.top_k >= 0, "top_k", "0.. (0: all tokens)", static_cast<double>(o.top_k));
  expect(o.top_p > 0 && o.top_p <= 1, "top_p", "(0, 1]", o.top_p);
  expect(o.min_p >= 0 && o.min_p <= 1, "min_p", "0..1", o.min_p);
}

int32_t sample_token(Device& device, const float* logits, int64_t vocab,
                     const SamplingOptions& options, int64_t sample, int64_t position) {
  const CounterRng rng(options.seed, static_cast<uint64_t>(sample));
  int32_t token = 0;
  SampleArgs args{};
  args.vocab = vocab;
  args.logits = CBuf(logits);
  args.temperature = options.temperature;
  args.top_k = options.top_k;
  args.top_p = options.top_p;
  args.min_p = options.min_p;
  args.uniform = rng.uniform(static_cast<uint64_t>(position));
  args.token = &token;
  device.kernels().sample(device.stream(), args);
  device.sync();
  return token;
}

}  // namespace mamba
