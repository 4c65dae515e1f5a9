// SPDX-License-Identifier: Apache-2.0
// Names and ranges of the sampler's options.
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/json.h"
#include "mamba/sampling.h"

namespace mamba {
namespace {

constexpr struct {
  SamplerStep step;
  const char* name;
} kSteps[] = {
    {SamplerStep::kPenalties, "penalties"}, {SamplerStep::kTopK, "top_k"},
    {SamplerStep::kTypicalP, "typical_p"},  {SamplerStep::kTopP, "top_p"},
    {SamplerStep::kMinP, "min_p"},          {SamplerStep::kTemperature, "temperature"},
};

// A comparison with NaN is false, so NaN is refused like any value out of range.
void expect(bool in_range, const char* name, const char* range, double got) {
  if (in_range) return;
  fail(ErrorCode::kInvalidArgument, "[generate] expected {} in {}, got {}", name, range, got);
}

void expect_count(bool in_range, const char* name, const char* range, int64_t got) {
  if (in_range) return;
  fail(ErrorCode::kInvalidArgument, "[generate] expected {} in {}, got {}", name, range, got);
}

bool contains(const std::vector<SamplerStep>& order, SamplerStep step) {
  for (const SamplerStep s : order) {
    if (s == step) return true;
  }
  return false;
}

SamplerStep parse_step(std::string_view text) {
  std::string name;
  for (const char c : text) {
    if (c != ' ') name += c == '-' ? '_' : c;
  }
  if (name == "typ_p") name = "typical_p";
  if (name == "temp") name = "temperature";
  std::string known;
  for (const auto& entry : kSteps) {
    if (name == entry.name) return entry.step;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  fail(ErrorCode::kInvalidArgument,
       "[samplers] expected {} with ; between them, got '{}'; correct it", known, printable(text));
}

}  // namespace

const char* sampler_step_name(SamplerStep step) noexcept {
  for (const auto& entry : kSteps) {
    if (entry.step == step) return entry.name;
  }
  return "unknown";
}

std::vector<SamplerStep> default_sampler_order() {
  std::vector<SamplerStep> order;
  for (const auto& entry : kSteps) order.push_back(entry.step);
  return order;
}

std::vector<SamplerStep> parse_sampler_order(std::string_view text) {
  std::vector<SamplerStep> order;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(';', at), text.size());
    const SamplerStep step = parse_step(text.substr(at, end - at));
    if (contains(order, step)) {
      fail(ErrorCode::kInvalidArgument,
           "[samplers] expected each sampler once, got '{}' twice; leave one out",
           sampler_step_name(step));
    }
    order.push_back(step);
    at = end + 1;
  }
  return order;
}

void validate(const SamplingOptions& o) {
  expect(o.temperature >= 0 && o.temperature <= 1000, "temperature", "0..1000", o.temperature);
  expect_count(o.top_k >= 0, "top_k", "0.. (0: all tokens)", o.top_k);
  expect(o.top_p > 0 && o.top_p <= 1, "top_p", "(0, 1]", o.top_p);
  expect(o.min_p >= 0 && o.min_p <= 1, "min_p", "0..1", o.min_p);
  expect(o.typical_p > 0 && o.typical_p <= 1, "typical_p", "(0, 1]", o.typical_p);
  expect(o.repeat_penalty > 0 && o.repeat_penalty <= 1000, "repeat_penalty", "(0, 1000]",
         o.repeat_penalty);
  expect(std::fabs(o.presence_penalty) <= 1000, "presence_penalty", "-1000..1000",
         o.presence_penalty);
  expect(std::fabs(o.frequency_penalty) <= 1000, "frequency_penalty", "-1000..1000",
         o.frequency_penalty);
  expect_count(o.repeat_last_n >= -1, "repeat_last_n", "-1.. (-1: all tokens)", o.repeat_last_n);
  expect_count(o.no_repeat_ngram >= 0, "no_repeat_ngram", "0.. (0: off)", o.no_repeat_ngram);
  expect_count(o.min_tokens >= 0, "min_tokens", "0..", o.min_tokens);
  expect_count(o.logprobs >= -1, "logprobs", "-1.. (-1: none)", o.logprobs);
  for (const LogitBias& b : o.logit_bias) {
    const bool ban = b.bias == -std::numeric_limits<double>::infinity();
    expect(ban || std::isfinite(b.bias), "a logit bias", "the finite numbers or -inf", b.bias);
  }
  for (size_t i = 0; i < o.order.size(); ++i) {
    const std::vector<SamplerStep> before(o.order.begin(),
                                          o.order.begin() + static_cast<int64_t>(i));
    if (!contains(before, o.order[i])) continue;
    fail(ErrorCode::kInvalidArgument,
         "[generate] expected each sampler once in the order, got '{}' twice",
         sampler_step_name(o.order[i]));
  }
}

int64_t history_needed(const SamplingOptions& o) {
  if (o.no_repeat_ngram > 0) return -1;
  const bool penalties =
      o.repeat_penalty != 1 || o.presence_penalty != 0 || o.frequency_penalty != 0;
  return penalties && contains(o.order, SamplerStep::kPenalties) ? o.repeat_last_n : 0;
}

}  // namespace mamba
