// SPDX-License-Identifier: Apache-2.0
// The sampler around its kernel: history, bans, biases and log-probabilities, and the distribution
// of whole sets of options by chi-square against a plain definition in f64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "generate/sampler.h"
#include "generate/support.h"
#include "support/expect_error.h"
#include "support/random.h"

namespace mamba {
namespace {

// -1: every token is banned.
int32_t draw(Sampler& sampler, Device& device, const std::vector<float>& logits, int64_t position) {
  int32_t token = -7;
  TokenDrawer(device).draw({sampler.ask(CBuf(logits.data()), position)}, true, &token);
  sampler.take(token);
  return token;
}

using test::byte_model;
using test::fails_with;
using test::prefilled;
using test::prompt_ids;

constexpr double kInf = std::numeric_limits<double>::infinity();

std::unique_ptr<Device> device() { return Device::create(); }

std::vector<float> random_logits(int64_t count, uint64_t seed, double width = 2) {
  test::Random random(seed);
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& x : logits) x = static_cast<float>(random.uniform(-width, width));
  return logits;
}

// What the documentation says, over (id, logit) pairs and without any of the sampler's code.
std::map<int32_t, double> definition(const std::vector<float>& logits, const SamplingOptions& o,
                                     const std::vector<int32_t>& history) {
  std::map<int32_t, double> x;
  for (size_t i = 0; i < logits.size(); ++i) x[static_cast<int32_t>(i)] = logits[i];
  for (const LogitBias& b : o.logit_bias) {
    x[b.id] += b.bias;
    if (b.bias == -kInf) x.erase(b.id);
  }
  const size_t n = static_cast<size_t>(o.no_repeat_ngram);
  for (size_t i = 0; n > 0 && i + n <= history.size(); ++i) {
    if (std::equal(history.begin() + i, history.begin() + i + n - 1, history.end() - (n - 1))) {
      x.erase(history[i + n - 1]);
    }
  }
  const auto softmax = [&] {
    double most = -kInf, sum = 0;
    for (const auto& [id, logit] : x) most = std::max(most, logit);
    std::map<int32_t, double> p;
    for (const auto& [id, logit] : x) sum += p[id] = std::exp(logit - most);
    for (auto& [id, q] : p) q /= sum;
    return p;
  };
  const auto keep = [&](auto key, double mass, size_t count) {
    const std::map<int32_t, double> p = softmax();
    std::vector<int32_t> order;
    for (const auto& [id, logit] : x) order.push_back(id);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return key(a) < key(b); });
    double reached = 0;
    for (size_t r = 0; r < order.size(); ++r) {
      if (r >= count || (r > 0 && reached >= mass)) x.erase(order[r]);
      reached += p.at(order[r]);
    }
  };
  const size_t all = logits.size();
  for (const SamplerStep step : o.order) {
    const std::map<int32_t, double> p = softmax();
    if (step == SamplerStep::kTemperature) {
      for (auto& [id, logit] : x) logit /= o.temperature;
    } else if (step == SamplerStep::kTopK && o.top_k > 0) {
      keep([&](int32_t id) { return -p.at(id); }, 2, static_cast<size_t>(o.top_k));
    } else if (step == SamplerStep::kTopP && o.top_p < 1) {
      keep([&](int32_t id) { return -p.at(id); }, o.top_p, all);
    } else if (step == SamplerStep::kTypicalP && o.typical_p < 1) {
      double entropy = 0;
      for (const auto& [id, q] : p) entropy -= q * std::log(q);
      keep([&](int32_t id) { return std::fabs(-std::log(p.at(id)) - entropy); }, o.typical_p, all);
    } else if (step == SamplerStep::kMinP) {
      double most = 0;
      for (const auto& [id, q] : p) most = std::max(most, q);
      for (const auto& [id, q] : p) {
        if (q < o.min_p * most) x.erase(id);
      }
    } else if (step == SamplerStep::kPenalties) {
      const size_t window = o.repeat_last_n < 0
                                ? history.size()
                                : std::min(history.size(), static_cast<size_t>(o.repeat_last_n));
      std::map<int32_t, int> times;
      for (size_t i = history.size() - window; i < history.size(); ++i) ++times[history[i]];
      for (const auto& [id, count] : times) {
        if (x.count(id) == 0) continue;
        x[id] = x[id] > 0 ? x[id] / o.repeat_penalty : x[id] * o.repeat_penalty;
        x[id] -= o.presence_penalty + count * o.frequency_penalty;
      }
    }
  }
  return softmax();
}

// The quantile of chi-square at 1 - 1e-5 (Wilson and Hilferty); the seeds are fixed.
double chi_square_limit(double degrees) {
  const double z = 4.265, c = 2 / (9 * degrees);
  return degrees * std::pow(1 - c + z * std::sqrt(c), 3);
}

void expect_distribution(const SamplingOptions& options, const std::vector<float>& logits,
                         const std::vector<int32_t>& history, int draws) {
  const std::map<int32_t, double> p = definition(logits, options, history);
  const auto on = device();
  std::map<int32_t, int> hits;
  for (int i = 0; i < draws; ++i) {
    Sampler sampler(options, static_cast<int64_t>(logits.size()), {}, 0, history);
    ++hits[draw(sampler, *on, logits, i)];
  }
  double chi = 0, rest = 0, rest_hits = 0;
  int cells = 0, known = 0;
  for (const auto& [id, q] : p) {
    const double expected = q * draws;
    known += hits[id];
    if (expected < 5) {  // too few for the test alone
      rest += expected;
      rest_hits += hits[id];
      continue;
    }
    chi += (hits[id] - expected) * (hits[id] - expected) / expected;
    ++cells;
  }
  if (rest > 0) {
    chi += (rest_hits - rest) * (rest_hits - rest) / rest;
    ++cells;
  }
  EXPECT_EQ(known, draws) << "only tokens that are kept";
  if (cells > 1) {
    EXPECT_LT(chi, chi_square_limit(cells - 1)) << cells << " cells";
  }
}

SamplingOptions everything() {
  SamplingOptions o;
  o.temperature = 0.8;
  o.top_k = 25;
  o.typical_p = 0.95;
  o.top_p = 0.9;
  o.min_p = 0.02;
  o.repeat_penalty = 1.2;
  o.presence_penalty = 0.3;
  o.frequency_penalty = 0.15;
  o.repeat_last_n = 12;
  o.no_repeat_ngram = 3;
  o.logit_bias = {{4, 1.5}, {9, -kInf}, {11, -0.75}};
  o.seed = 99;
  return o;
}

std::vector<int32_t> repetitive_history() {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 40; ++i) ids.push_back((i * i) % 13);
  ids.insert(ids.end(), {5, 6, 7, 5, 6});
  return ids;
}

TEST(Sampler, EachOptionHasTheDistributionOfItsDefinition) {
  const std::vector<float> logits = random_logits(48, 5);
  const std::vector<int32_t> history = repetitive_history();
  const SamplingOptions all = everything();
  const auto check = [&](auto change) {
    SamplingOptions o;
    o.seed = 3;
    change(o);
    expect_distribution(o, logits, history, 20000);
  };
  check([&](SamplingOptions&) {});
  check([&](SamplingOptions& o) { o.temperature = 0.5; });
  check([&](SamplingOptions& o) { o.temperature = 2; });
  check([&](SamplingOptions& o) { o.top_k = 7; });
  check([&](SamplingOptions& o) { o.top_p = 0.6; });
  check([&](SamplingOptions& o) { o.min_p = 0.3; });
  check([&](SamplingOptions& o) { o.typical_p = 0.4; });
  check([&](SamplingOptions& o) { o.repeat_penalty = 1.7; });
  check([&](SamplingOptions& o) { o.repeat_penalty = 0.6, o.repeat_last_n = -1; });
  check([&](SamplingOptions& o) { o.presence_penalty = 1, o.repeat_last_n = 5; });
  check([&](SamplingOptions& o) { o.frequency_penalty = 0.4, o.repeat_last_n = -1; });
  check([&](SamplingOptions& o) { o.frequency_penalty = 2, o.repeat_last_n = 0; });
  check([&](SamplingOptions& o) { o.no_repeat_ngram = 2; });
  check([&](SamplingOptions& o) { o.logit_bias = all.logit_bias; });
}

TEST(Sampler, TheCombinationHasTheDistributionOfItsDefinitionInEveryOrderTried) {
  const std::vector<float> logits = random_logits(48, 6);
  for (const char* order : {"penalties;top_k;typical_p;top_p;min_p;temperature",
                            "temperature;min_p;top_p;typical_p;top_k;penalties",
                            "top_p;penalties;temperature;top_k", "temperature;typical_p;penalties",
                            "min_p", "top_k;temperature;top_p;min_p;penalties;typical_p"}) {
    SamplingOptions o = everything();
    o.order = parse_sampler_order(order);
    SCOPED_TRACE(order);
    expect_distribution(o, logits, repetitive_history(), 20000);
  }
}

// Greedy, so that the largest of hand-computed values decides.
int32_t greedy(SamplingOptions o, const std::vector<float>& logits,
               const std::vector<int32_t>& history) {
  o.temperature = 0;
  Sampler sampler(o, static_cast<int64_t>(logits.size()), {}, 0, history);
  return draw(sampler, *device(), logits, 0);
}

TEST(Sampler, PenaltiesAgreeWithHandComputedValues) {
  const std::vector<float> logits = {2, 1.5f, -1};
  SamplingOptions o;
  o.repeat_penalty = 1.25;  // 2 / 1.25 = 1.6
  EXPECT_EQ(greedy(o, logits, {0}), 0);
  o.repeat_penalty = 1.5;  // 1.333
  EXPECT_EQ(greedy(o, logits, {0}), 1);
  EXPECT_EQ(greedy(o, logits, {0, 0, 0, 1}), 0);  // 1.333 and 1.0: once, however often it is there
  EXPECT_EQ(greedy(o, {-1, -1.4f}, {0}), 1);      // -1.5
  EXPECT_EQ(greedy(o, {-1, -1.6f}, {0}), 0);
  o.repeat_penalty = 1;
  o.presence_penalty = 0.4;  // 1.6
  EXPECT_EQ(greedy(o, logits, {0, 0}), 0);
  o.presence_penalty = 0.6;
  EXPECT_EQ(greedy(o, logits, {0}), 1);
  o.presence_penalty = 0;
  o.frequency_penalty = 0.2;  // 1.6, then 1.4
  EXPECT_EQ(greedy(o, logits, {0, 0}), 0);
  EXPECT_EQ(greedy(o, logits, {0, 0, 0}), 1);
  o.repeat_last_n = 2;  // one of three has left the window
  EXPECT_EQ(greedy(o, logits, {0, 0, 0}), 0);
  o.repeat_last_n = 0;
  EXPECT_EQ(greedy(o, logits, {0, 0, 0, 0, 0}), 0);
}

TEST(Sampler, DrawnTokensEnterTheWindowAndLeaveIt) {
  const std::vector<float> logits = {2, 1.5f, 1};
  SamplingOptions o;
  o.temperature = 0;
  o.presence_penalty = 10;
  o.repeat_last_n = 2;
  Sampler sampler(o, 3, {}, 0, {2});
  const auto on = device();
  std::vector<int32_t> ids;
  for (int i = 0; i < 7; ++i) ids.push_back(draw(sampler, *on, logits, i));
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 1, 2, 0, 1, 2, 0}));
}

TEST(Sampler, NoNgramAppearsTwice) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  for (const int64_t n : {1, 2, 3}) {
    Session session = generator.start();
    GenerateOptions options;
    options.sampling.no_repeat_ngram = n;
    options.sampling.top_k = n == 1 ? 0 : 2;
    options.max_tokens = 200;
    keep_history_for(session, options.sampling);
    const std::vector<int32_t> prompt = {1, 2, 3, 1, 2, 4};
    generator.prefill(session, prompt);
    std::vector<int32_t> ids = prompt;
    const Generation result = generator.generate(session, options)[0];
    ids.insert(ids.end(), result.ids.begin(), result.ids.end());
    ASSERT_EQ(ids.size(), 206u);
    for (size_t i = prompt.size(); i < ids.size(); ++i) {
      for (size_t j = static_cast<size_t>(n); j <= i; ++j) {  // an earlier one, ending before j
        EXPECT_FALSE(std::equal(ids.begin() + (j - n), ids.begin() + j, ids.begin() + (i + 1 - n)))
            << n << "-gram at " << i << " and before " << j;
      }
    }
  }
}

TEST(Sampler, AnAnswerEndsWhereEveryTokenIsBanned) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  Session session = generator.start();
  GenerateOptions options;
  options.sampling.no_repeat_ngram = 1;
  options.max_tokens = 500;
  keep_history_for(session, options.sampling);
  generator.prefill(session, prompt_ids(5));
  const Generation result = generator.generate(session, options)[0];
  EXPECT_EQ(result.ids.size(), 251u);
  EXPECT_EQ(result.finish_reason, FinishReason::kExhausted);
  EXPECT_EQ(session.tokens, 256);
}

TEST(Sampler, StopIdsAndEndTokensWaitForMinTokens) {
  Config config = byte_model("mamba1").config();
  std::vector<int32_t> ids;
  {
    Model model = Model::create(config, 1);
    Generator generator(model);
    Session session = prefilled(generator, prompt_ids(5));
    GenerateOptions options;
    options.max_tokens = 30;
    ids = generator.generate(session, options)[0].ids;
  }
  const auto first = [&](int32_t id) {
    return std::find(ids.begin(), ids.end(), id) - ids.begin();
  };
  config.eos_token_id = 3;
  config.more_eos_token_ids = {ids[20]};
  Model model = Model::create(config, 1);
  Generator generator(model);
  const auto run = [&](auto change) {
    Session session = prefilled(generator, prompt_ids(5));
    GenerateOptions options;
    options.max_tokens = 30;
    change(options);
    return generator.generate(session, options)[0];
  };
  const Generation ended = run([](GenerateOptions&) {});
  EXPECT_EQ(ended.finish_reason, FinishReason::kEos);
  EXPECT_EQ(static_cast<int64_t>(ended.ids.size()), first(ids[20]) + 1);
  const Generation stopped = run([&](GenerateOptions& o) { o.sampling.stop_ids = {255, ids[4]}; });
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(static_cast<int64_t>(stopped.ids.size()), first(ids[4]) + 1);
  const Generation other = run([&](GenerateOptions& o) { o.sampling.eos_ids = {ids[4]}; });
  EXPECT_EQ(other.finish_reason, FinishReason::kEos);
  EXPECT_EQ(static_cast<int64_t>(other.ids.size()), first(ids[4]) + 1);
  const Generation waits = run([&](GenerateOptions& o) {
    o.sampling.stop_ids = {ids[4]};
    o.sampling.min_tokens = 25;
  });
  for (int i = 0; i < 25; ++i) {
    EXPECT_TRUE(waits.ids[i] != ids[4] && waits.ids[i] != ids[20] && waits.ids[i] != 3) << i;
  }
}

TEST(Sampler, LogprobsAreTheLogSoftmaxOfTheModelsLogits) {
  Model model = byte_model("mamba2");
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(6));
  GenerateOptions options;
  options.sampling = everything();  // none of it shows in the log-probabilities
  options.sampling.logprobs = 4;
  options.max_tokens = 20;
  const Generation result = generator.generate(session, options)[0];
  ASSERT_EQ(result.logprobs.size(), 20u);
  std::vector<int32_t> all = prompt_ids(6);
  all.insert(all.end(), result.ids.begin(), result.ids.end());
  std::vector<float> logits(all.size() * 256);
  State state = model.new_state(1);
  model.forward(all.data(), static_cast<int64_t>(all.size()), state, Logits::kAll, logits.data());
  for (size_t t = 0; t < 20; ++t) {
    const float* row = logits.data() + (5 + t) * 256;
    double sum = 0;
    for (int i = 0; i < 256; ++i) sum += std::exp(static_cast<double>(row[i]));
    const TokenLogprobs& got = result.logprobs[t];
    // A forward of all tokens rounds otherwise than steps: 1e-4, the bound of equal logits, twice.
    EXPECT_NEAR(got.logprob, row[result.ids[t]] - std::log(sum), 2e-4);
    ASSERT_EQ(got.top.size(), 4u);
    std::vector<int32_t> order(256);
    for (int i = 0; i < 256; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    for (int k = 0; k < 4; ++k) {
      EXPECT_NEAR(got.top[k].logprob, row[order[k]] - std::log(sum), 2e-4);
      EXPECT_TRUE(k == 0 || got.top[k].logprob <= got.top[k - 1].logprob);
    }
  }
  double mass = 0;
  for (const TokenLogprob& t : logprobs_of(logits.data(), 256, 256, 0, 300).top) {
    mass += std::exp(t.logprob);
  }
  EXPECT_NEAR(mass, 1, 1e-12);
  EXPECT_TRUE(logprobs_of(logits.data(), 256, 256, 0, 0).top.empty());
}

TEST(Sampler, LooksBackOnlyOnWhatASessionHasKept) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  Session session = generator.start();
  session.history_limit = 10;
  generator.prefill(session, prompt_ids(40));
  const std::vector<int32_t> prompt = prompt_ids(40);
  EXPECT_EQ(session.history, std::vector<int32_t>(prompt.begin() + 30, prompt.end()));
  GenerateOptions options;
  options.max_tokens = 3;
  options.keep_session = true;
  options.sampling.repeat_penalty = 1.3;
  options.sampling.repeat_last_n = 11;
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument,
                         {"last 11 tokens", "repeat_last_n", "10 of 40"},
                         [&] { generator.generate(session, options); }));
  options.sampling.repeat_last_n = -1;
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"last 40 tokens", "10 of 40"},
                         [&] { generator.generate(session, options); }));
  options.sampling.repeat_last_n = 10;
  const std::vector<int32_t> ids = generator.generate(session, options)[0].ids;
  EXPECT_EQ(session.history.size(), 10u);
  EXPECT_EQ(std::vector<int32_t>(session.history.end() - 3, session.history.end()), ids);
}

TEST(Sampler, RefusesWhatIsOutOfRange) {
  const auto refuses = [&](std::initializer_list<std::string> parts, auto change) {
    SamplingOptions o;
    change(o);
    return fails_with(ErrorCode::kInvalidArgument, parts, [&] { validate(o); });
  };
  using O = SamplingOptions;
  const double nan = std::nan("");
  EXPECT_TRUE(refuses({"typical_p", "0"}, [&](O& o) { o.typical_p = 0; }));
  EXPECT_TRUE(refuses({"repeat_penalty", "0"}, [&](O& o) { o.repeat_penalty = 0; }));
  EXPECT_TRUE(refuses({"repeat_penalty", "nan"}, [&](O& o) { o.repeat_penalty = nan; }));
  EXPECT_TRUE(refuses({"presence_penalty", "nan"}, [&](O& o) { o.presence_penalty = nan; }));
  EXPECT_TRUE(refuses({"frequency_penalty", "2000"}, [&](O& o) { o.frequency_penalty = 2000; }));
  EXPECT_TRUE(refuses({"repeat_last_n", "-2"}, [&](O& o) { o.repeat_last_n = -2; }));
  EXPECT_TRUE(refuses({"no_repeat_ngram", "-1"}, [&](O& o) { o.no_repeat_ngram = -1; }));
  EXPECT_TRUE(refuses({"min_tokens", "-1"}, [&](O& o) { o.min_tokens = -1; }));
  EXPECT_TRUE(refuses({"logprobs", "-2"}, [&](O& o) { o.logprobs = -2; }));
  EXPECT_TRUE(refuses({"logit bias", "inf"}, [&](O& o) { o.logit_bias = {{1, kInf}}; }));
  EXPECT_TRUE(refuses({"'top_k' twice"}, [&](O& o) {
    o.order = {SamplerStep::kTopK, SamplerStep::kMinP, SamplerStep::kTopK};
  }));
  const auto bad_order = [](const char* text, std::initializer_list<std::string> parts) {
    return fails_with(ErrorCode::kInvalidArgument, parts, [&] { parse_sampler_order(text); });
  };
  EXPECT_TRUE(bad_order("top_k;mirostat", {"'mirostat'", "penalties, top_k"}));
  EXPECT_TRUE(bad_order("", {"''"}));
  EXPECT_TRUE(bad_order("top_k;", {"''"}));
  EXPECT_TRUE(bad_order("temp;temperature", {"'temperature' twice"}));
  EXPECT_EQ(parse_sampler_order("typ_p; temp;min-p"),
            (std::vector<SamplerStep>{SamplerStep::kTypicalP, SamplerStep::kTemperature,
                                      SamplerStep::kMinP}));
  Model model = byte_model("mamba1");
  Generator generator(model);
  Session session = prefilled(generator, {1});
  GenerateOptions options;
  options.sampling.stop_ids = {256};
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"stop_ids", "0..255", "256"},
                         [&] { generator.generate(session, options); }));
  options.sampling.stop_ids = {};
  options.sampling.logit_bias = {{-1, 0}};
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"logit_bias", "-1"},
                         [&] { generator.generate(session, options); }));
  options.sampling.logit_bias = {};
  options.sampling.min_tokens = 200;
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"min_tokens", "128", "200"},
                         [&] { generator.generate(session, options); }));
}

}  // namespace
}  // namespace mamba
