// SPDX-License-Identifier: Apache-2.0
// Gradients of whole two-layer models: f64 against finite differences, every CPU backend against
// f64.
#include <gtest/gtest.h>

#include <cmath>

#include "mamba/model.h"
#include "model/cases.h"
#include "model/model_io.h"
#include "model/network.h"
#include "support/close.h"
#include "support/random.h"

namespace mamba::test {
namespace {

class Gradients : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    Random random(5);
    const int64_t V = GetParam().config.vocab_size;
    for (int64_t i = 0; i < kB * kL; ++i) {
      ids_.push_back(static_cast<int32_t>(random.below(V)));
      targets_.push_back(static_cast<int32_t>(random.below(V)));
      documents_.push_back(i % kL < 8 ? 0 : 1);
    }
    targets_[2] = -1;
    ids_[kL - 1] = -1;  // padding at the end of row 0
    targets_[kL - 1] = -1;
    batch_.B = kB, batch_.L = kL;
    batch_.ids = ids_.data(), batch_.targets = targets_.data(), batch_.doc_ids = documents_.data();
  }
  static std::unique_ptr<Network> make(const std::string& device) {
    const Config& config = GetParam().config;
    auto net = std::make_unique<Network>(config, Device::create({device, 2}), Product::kF32);
    std::vector<float> flat(static_cast<size_t>(net->table().flat_count()));
    net->table().initialize(config, 3, flat.data());
    Random random(9);
    for (const ParamSpec& spec : net->table().specs()) {
      for (int64_t i = 0; i < spec.count; ++i) {
        flat[static_cast<size_t>(spec.offset + i)] += static_cast<float>(random.uniform(-0.3, 0.3));
      }
    }
    write_flat(flat.data(), net->table().flat_count(), net->parameters());
    net->parameters_changed(false);
    return net;
  }
  static constexpr int64_t kB = 2, kL = 13;
  std::vector<int32_t> ids_, targets_, documents_;
  Batch batch_;
};

TEST_P(Gradients, EqualFiniteDifferencesInF64) {
  std::unique_ptr<Network> net = make("ref64");
  net->forward_backward(batch_, 1.0);
  const double* grad = net->gradients().as<double>();
  double* p = net->parameters().as<double>();
  const auto loss = [&](double* at, double value) {
    *at = value;
    net->parameters_changed(false);
    return net->forward(batch_, nullptr, Logits::kNone, Buf(), Buf()).nll;
  };
  Random random(1);
  for (const ParamSpec& spec : net->table().specs()) {
    // Up to 24 elements of each tensor; five-point differences, error of order h^4.
    const int64_t tries = std::min<int64_t>(spec.count, 24);
    for (int64_t k = 0; k < tries; ++k) {
      const int64_t i = spec.offset + (tries == spec.count ? k : random.below(spec.count));
      const double h = 1e-4, x = p[i];
      const double want = (8 * (loss(p + i, x + h) - loss(p + i, x - h)) -
                           (loss(p + i, x + 2 * h) - loss(p + i, x - 2 * h))) /
                          (12 * h);
      loss(p + i, x);
      // Rounding of a loss of order 100 over 12 h: 100 * 1e-16 * 16 / 1e-3 = 1e-10; h^4 terms
      // below.
      EXPECT_NEAR(grad[i], want, 1e-8 + 1e-7 * std::fabs(want))
          << spec.name << " element " << i - spec.offset;
    }
  }
}

TEST_P(Gradients, OfEveryBackendEqualF64) {
  std::unique_ptr<Network> exact = make("ref64");
  const LossSum want = exact->forward_backward(batch_, 1.0);
  for (const std::string& device : Device::available()) {
    if (device == "ref64") continue;
    std::unique_ptr<Network> net = make(device);
    const LossSum got = net->forward_backward(batch_, 1.0);
    EXPECT_EQ(got.targets, want.targets);
    EXPECT_NEAR(got.nll, want.nll, 1e-5 * want.nll) << device;
    for (const ParamSpec& spec : net->table().specs()) {
      const double error =
          relative_to_max(net->gradients().as<float>() + spec.offset,
                          exact->gradients().as<double>() + spec.offset, spec.count);
      // f32 sums of some hundred terms through two layers.
      EXPECT_LE(error, 3e-5) << device << " " << spec.name;
    }
  }
}

TEST_P(Gradients, AddUpOverCalls) {
  std::unique_ptr<Network> net = make("ref64");
  net->forward_backward(batch_, 1.0);
  const int64_t count = net->table().flat_count();
  const double* g = net->gradients().as<double>();
  const std::vector<double> once(g, g + count);
  net->forward_backward(batch_, 2.0);
  for (int64_t i = 0; i < count; ++i) ASSERT_NEAR(g[i], 3 * once[static_cast<size_t>(i)], 1e-9);
  net->zero_gradients();
  for (int64_t i = 0; i < count; ++i) ASSERT_EQ(g[i], 0);
}

INSTANTIATE_TEST_SUITE_P(All, Gradients, testing::ValuesIn(model_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mamba::test
