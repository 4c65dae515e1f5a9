// SPDX-License-Identifier: Apache-2.0
// Which tensors decay, how the flat buffer is cut into ranges, clipping, and norms by tensor.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <set>

#include "model/cases.h"
#include "model/network.h"
#include "support/expect_error.h"
#include "train/optimizer.h"

namespace mamba {
namespace {

std::unique_ptr<Network> network_of(const Config& config) {
  return std::make_unique<Network>(config, Device::create({"cpu", 1}), Product::kF32);
}

bool ends_with(const std::string& name, const std::string& tail) {
  return name.size() >= tail.size() && name.substr(name.size() - tail.size()) == tail;
}

TEST(Optimizer, MatricesPackedForInferenceAreRefused) {
  ModelOptions options;
  options.dtype = DType::kQ8_0;
  Config config;
  config.d_model = 32;
  config.n_layer = 1;
  config.vocab_size = 64;
  Model model = Model::create(config, 1, options);
  Network& network = model.network();
  const int32_t ids[] = {1, 2, 3, 4};
  Batch batch;
  batch.B = 1;
  batch.L = 3;
  batch.ids = ids;
  batch.targets = ids + 1;
  const AdamwOptions adamw = {0.9, 0.95, 1e-8, 0.1};
  for (const std::function<void()>& use :
       {std::function<void()>([&] { AdamW(network, adamw); }),
        std::function<void()>([&] { network.forward_backward(batch, 1); }),
        std::function<void()>([&] { network.parameters(); })}) {
    EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument,
                                 {"packed for inference (q8_0)", "f32 or bf16"}, use));
  }
}

TEST(Optimizer, DecaysMatricesAndNothingElse) {
  std::set<std::string> kept;
  for (const test::Case& c : test::model_cases()) {
    const std::unique_ptr<Network> network = network_of(c.config);
    for (const ParamSpec& spec : network->table().specs()) {
      const bool exempt = ends_with(spec.name, "A_log") || ends_with(spec.name, ".D") ||
                          ends_with(spec.name, "bias") || ends_with(spec.name, "norm.weight") ||
                          ends_with(spec.name, "norm2.weight") ||
                          ends_with(spec.name, "norm_f.weight") ||
                          ends_with(spec.name, "init_states");
      EXPECT_EQ(spec.decay, !exempt) << c.name << " " << spec.name;
      if (exempt) kept.insert(spec.name.substr(spec.name.rfind('.') + 1));
    }
  }
  EXPECT_EQ(kept,
            (std::set<std::string>{"A_log", "D", "bias", "dt_bias", "init_states", "weight"}));
}

TEST(Optimizer, RangesCoverTheFlatBufferOnce) {
  for (const test::Case& c : test::model_cases()) {
    const std::unique_ptr<Network> network = network_of(c.config);
    const std::vector<DecayRange> ranges = decay_ranges(network->table(), network->trained());
    int64_t at = 0;
    for (size_t i = 0; i < ranges.size(); ++i) {
      EXPECT_EQ(ranges[i].begin, at);
      EXPECT_GT(ranges[i].count, 0);
      EXPECT_TRUE(i == 0 || ranges[i].decay != ranges[i - 1].decay);
      at += ranges[i].count;
    }
    EXPECT_EQ(at, network->table().flat_count());
    for (const ParamSpec& spec : network->table().specs()) {
      for (const DecayRange& range : ranges) {
        if (spec.offset < range.begin || spec.offset >= range.begin + range.count) continue;
        EXPECT_EQ(spec.decay, range.decay) << spec.name;
        EXPECT_LE(spec.offset + spec.count, range.begin + range.count) << spec.name;
      }
    }
  }
}

// One update against the formula of AdamW in f64, with gradients that differ by tensor.
TEST(Optimizer, UpdatesEveryTensorByItsGroup) {
  const double lr = 0.01, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1, scale = 0.5;
  const std::unique_ptr<Network> network = network_of(test::small_mamba2());
  const ParamTable& table = network->table();
  float* p = network->parameters().as<float>();
  table.initialize(network->config(), 3, p);
  const std::vector<float> before(p, p + table.flat_count());
  float* g = network->gradients().as<float>();
  for (size_t t = 0; t < table.specs().size(); ++t) {
    const ParamSpec& spec = table.specs()[t];
    // Every third tensor has no gradient: it must not move, but for decay.
    for (int64_t i = 0; i < spec.count; ++i) {
      g[spec.offset + i] = t % 3 == 0 ? 0.0f : 0.01f * static_cast<float>(i % 7 - 3);
    }
  }
  AdamW optimizer(*network, {beta1, beta2, eps, decay});
  double squares = 0;
  for (int64_t i = 0; i < table.flat_count(); ++i) squares += double(g[i]) * double(g[i]);
  EXPECT_NEAR(optimizer.grad_norm(), std::sqrt(squares), 1e-12 * std::sqrt(squares));
  optimizer.update(1, lr, scale);
  for (const ParamSpec& spec : table.specs()) {
    for (int64_t i = spec.offset; i < spec.offset + spec.count; ++i) {
      const double grad = double(g[i]) * scale;
      const double m = (1 - beta1) * grad, v = (1 - beta2) * grad * grad;
      double want = double(before[i]) * (spec.decay ? 1 - lr * decay : 1.0);
      want -= lr * (m / (1 - beta1)) / (std::sqrt(v / (1 - beta2)) + eps);
      // About ten f32 operations, each half an ulp of values up to |p| + lr.
      ASSERT_NEAR(p[i], want, 10 * 6e-8 * (std::fabs(want) + lr)) << spec.name;
      ASSERT_TRUE(grad != 0 || spec.decay || p[i] == before[i]) << spec.name;
    }
  }
}

TEST(Optimizer, ClipsOnlyAboveTheNorm) {
  EXPECT_EQ(clip_scale(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_scale(1.0, 1.0), 1.0);
  EXPECT_NEAR(clip_scale(4.0, 1.0), 0.25, 1e-6);  // the 1e-6 in the divisor
  EXPECT_EQ(clip_scale(1e9, 0.0), 1.0);
}

TEST(Optimizer, ListsNormsWithTheBrokenOnesFirst) {
  const std::unique_ptr<Network> network = network_of(test::small_mamba1());
  const ParamTable& table = network->table();
  std::vector<float> flat(static_cast<size_t>(table.flat_count()), 0.0f);
  EXPECT_TRUE(all_finite(table, flat.data()));
  flat[static_cast<size_t>(table[2].offset)] = 3.0f;
  flat[static_cast<size_t>(table[2].offset) + 1] = -4.0f;
  flat[static_cast<size_t>(table[5].offset)] = std::numeric_limits<float>::quiet_NaN();
  flat[static_cast<size_t>(table[7].offset)] = 2.0f;
  EXPECT_FALSE(all_finite(table, flat.data()));
  const auto norms = tensor_norms(table, flat.data());
  ASSERT_EQ(norms.size(), table.specs().size());
  EXPECT_EQ(norms[0].first, table[5].name);
  EXPECT_EQ(norms[1], (std::pair<std::string, double>(table[2].name, 5.0)));
  EXPECT_EQ(norms[2], (std::pair<std::string, double>(table[7].name, 2.0)));
}

}  // namespace
}  // namespace mamba
