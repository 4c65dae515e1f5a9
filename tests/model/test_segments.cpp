// SPDX-License-Identifier: Apache-2.0
// Ways of a training step to save memory: the gradients of segments equal those of the whole
// sequence, recomputation and frozen tensors change no bit of them, and the memory is as planned.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/cases.h"
#include "model/model_io.h"
#include "model/network.h"
#include "support/close.h"
#include "support/expect_error.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr Recompute kPolicies[] = {Recompute::kNone, Recompute::kScan, Recompute::kBlock};

std::unique_ptr<Network> make(const Config& config, const std::string& device,
                              Product product = Product::kF32) {
  auto net = std::make_unique<Network>(config, Device::create({device, 1}), product);
  std::vector<float> flat(static_cast<size_t>(net->table().flat_count()));
  net->table().initialize(config, 3, flat.data());
  Random random(9);  // away from tidy starts, so that nothing can be dropped unnoticed
  for (const ParamSpec& spec : net->table().specs()) {
    for (int64_t i = 0; i < spec.count; ++i) {
      flat[static_cast<size_t>(spec.offset + i)] += static_cast<float>(random.uniform(-0.3, 0.3));
    }
  }
  write_flat(flat.data(), net->table().flat_count(), net->parameters());
  net->parameters_changed(false);
  return net;
}

// Random tokens with what makes segments hard.
struct Tokens {
  static constexpr int64_t kB = 3;
  int64_t L;
  std::vector<int32_t> ids, targets, documents;
  bool with_documents = false;

  explicit Tokens(int64_t vocab, int64_t length = 21) : L(length) {
    Random random(5);
    for (int64_t i = 0; i < kB * L; ++i) {
      ids.push_back(static_cast<int32_t>(random.below(vocab)));
      targets.push_back(static_cast<int32_t>(random.below(vocab)));
    }
    targets[2] = -1;
    documents.assign(ids.size(), 0);
  }
  // One boundary within segments of 7 and 10, one at a border of 3 segments; a document that ends
  // after one token; the same id again after another.
  Tokens& add_documents() {
    with_documents = true;
    for (int64_t t = 0; t < L; ++t) {
      documents[static_cast<size_t>(t)] = t < 4 ? 0 : 1;
      documents[static_cast<size_t>(L + t)] = t < 7 ? 3 : (t < 8 ? 4 : 3);
      documents[static_cast<size_t>(2 * L + t)] = t < 14 ? 0 : 1;
    }
    return *this;
  }
  // On the left over a whole segment, in the middle across a border, on the right.
  Tokens& add_padding() {
    for (int64_t t = 0; t < L; ++t) {
      if (t < 9) pad(t);
      if (t >= 5 && t < 12) pad(L + t);
      if (t >= 19) pad(2 * L + t);
    }
    return *this;
  }
  void pad(int64_t i) { ids[static_cast<size_t>(i)] = targets[static_cast<size_t>(i)] = -1; }
  Batch batch() const {
    return {kB, L, ids.data(), targets.data(), with_documents ? documents.data() : nullptr};
  }
};

template <class T>
std::vector<T> gradients_of(Network& net, const Batch& batch, const StepOptions& options,
                            LossSum* loss = nullptr) {
  net.zero_gradients();
  const LossSum sum = net.forward_backward(batch, 1.0, options);
  if (loss != nullptr) *loss = sum;
  const T* g = net.gradients().as<T>();
  return {g, g + net.trained().count};
}

// The largest error of a tensor relative to its largest element.
template <class T>
double worst_error(const Network& net, const std::vector<T>& got, const std::vector<T>& want,
                   std::string* name) {
  double worst = 0;
  for (size_t i = 0; i < net.table().specs().size(); ++i) {
    const ParamSpec& spec = net.table().specs()[i];
    double error = 0, scale = 0;
    for (int64_t k = 0; k < spec.count; ++k) {
      const auto at = static_cast<size_t>(net.trained().offsets[i] + k);
      const double e = std::fabs(double(got[at]) - double(want[at]));
      if (!(e <= error)) error = e;
      scale = std::fmax(scale, std::fabs(double(want[at])));
    }
    if (scale > 0) error /= scale;
    if (!(error <= worst)) {
      worst = error;
      *name = spec.name;
    }
  }
  return worst;
}

class Segments : public testing::TestWithParam<Case> {
 protected:
  std::vector<std::pair<std::string, Tokens>> inputs() const {
    const int64_t V = GetParam().config.vocab_size;
    return {{"plain", Tokens(V)},
            {"documents", Tokens(V).add_documents()},
            {"padding", Tokens(V).add_padding()},
            {"documents and padding", Tokens(V).add_documents().add_padding()}};
  }
};

TEST_P(Segments, GradientsEqualTheWholeInF64) {
  const std::unique_ptr<Network> net = make(GetParam().config, "ref64");
  for (const auto& [what, tokens] : inputs()) {
    LossSum whole, parts;
    const std::vector<double> want = gradients_of<double>(*net, tokens.batch(), {}, &whole);
    for (const int64_t segments : {2, 3, 5, 21}) {
      const std::vector<double> got =
          gradients_of<double>(*net, tokens.batch(), {segments, Recompute::kNone}, &parts);
      std::string name;
      EXPECT_LE(worst_error(*net, got, want, &name), 1e-10)
          << what << " in " << segments << " segments: " << name;
      EXPECT_EQ(parts.targets, whole.targets);
      EXPECT_NEAR(parts.nll, whole.nll, 1e-11 * whole.nll);
    }
  }
}

TEST_P(Segments, GradientsEqualTheWholeInF32) {
  const std::unique_ptr<Network> net = make(GetParam().config, "cpu");
  for (const auto& [what, tokens] : inputs()) {
    const std::vector<float> want = gradients_of<float>(*net, tokens.batch(), {});
    for (const int64_t segments : {2, 3, 10}) {
      const std::vector<float> got =
          gradients_of<float>(*net, tokens.batch(), {segments, Recompute::kNone});
      std::string name;
      EXPECT_LE(worst_error(*net, got, want, &name), 1e-5)
          << what << " in " << segments << " segments: " << name;
    }
  }
}

TEST_P(Segments, EqualFiniteDifferencesThroughABorder) {
  const std::unique_ptr<Network> net = make(GetParam().config, "ref64");
  const Tokens tokens = Tokens(GetParam().config.vocab_size, 16).add_documents();
  const std::vector<double> grad =
      gradients_of<double>(*net, tokens.batch(), {2, Recompute::kBlock});
  double* p = net->parameters().as<double>();
  const auto loss = [&](double* at, double value) {
    *at = value;
    net->parameters_changed(false);
    return net->forward(tokens.batch(), nullptr, Logits::kNone, Buf(), Buf()).nll;
  };
  Random random(1);
  for (const ParamSpec& spec : net->table().specs()) {
    for (int k = 0; k < 4; ++k) {
      const int64_t i = spec.offset + random.below(spec.count);
      const double h = 1e-4, x = p[i];
      const double want = (8 * (loss(p + i, x + h) - loss(p + i, x - h)) -
                           (loss(p + i, x + 2 * h) - loss(p + i, x - 2 * h))) /
                          (12 * h);
      loss(p + i, x);
      // As in test_gradients.cpp: rounding 1e-10, terms of h^4 below.
      EXPECT_NEAR(grad[static_cast<size_t>(i)], want, 1e-8 + 1e-7 * std::fabs(want))
          << spec.name << " element " << i - spec.offset;
    }
  }
}

TEST_P(Segments, RecomputationChangesNoBit) {
  for (const Product product : {Product::kF32, Product::kBF16}) {
    const std::unique_ptr<Network> net = make(GetParam().config, "cpu", product);
    for (const auto& [what, tokens] : inputs()) {
      for (const int64_t segments : {1, 3}) {
        const std::vector<float> want =
            gradients_of<float>(*net, tokens.batch(), {segments, Recompute::kNone});
        for (const Recompute policy : {Recompute::kScan, Recompute::kBlock}) {
          const std::vector<float> got =
              gradients_of<float>(*net, tokens.batch(), {segments, policy});
          EXPECT_TRUE(same_bits(got.data(), want.data(), static_cast<int64_t>(got.size())))
              << what << ", " << segments << " segments, policy " << static_cast<int>(policy);
        }
      }
    }
  }
}

// The gradients of `net`, which trains a part, beside those of one that trains all.
void expect_same_gradients(const Network& net, const std::vector<float>& got,
                           const std::vector<float>& all, const std::string& where) {
  for (size_t i = 0; i < net.table().specs().size(); ++i) {
    const ParamSpec& spec = net.table().specs()[i];
    if (net.trained().offsets[i] < 0) continue;
    if (spec.name.ends_with("out_proj.bias")) {
      // The bias of a frozen matrix is summed up in another order, over 63 terms.
      const std::vector<double> want(all.begin() + spec.offset,
                                     all.begin() + spec.offset + spec.count);
      EXPECT_LE(relative_to_max(got.data() + net.trained().offsets[i], want.data(), spec.count),
                4e-6)
          << where << ": " << spec.name;
      continue;
    }
    EXPECT_TRUE(
        same_bits(got.data() + net.trained().offsets[i], all.data() + spec.offset, spec.count))
        << where << ": " << spec.name;
  }
}

TEST_P(Segments, FrozenTensorsChangeNoBitOfTheOthers) {
  const Config& config = GetParam().config;
  const Tokens tokens = Tokens(config.vocab_size).add_documents();
  const std::unique_ptr<Network> full = make(config, "cpu");
  const std::vector<std::vector<std::string>> choices = {
      {"backbone.embeddings.*"},
      {"backbone.layers.0.*"},
      {"backbone.embeddings.*", "backbone.layers.0.*"},
      {"backbone.embeddings.*", "backbone.layers.*"},
      {"*.out_proj.weight", "*.A_log", "*norm*"}};
  for (const StepOptions& options :
       {StepOptions{1, Recompute::kNone}, StepOptions{3, Recompute::kScan},
        StepOptions{2, Recompute::kBlock}}) {
    const std::vector<float> all = gradients_of<float>(*full, tokens.batch(), options);
    for (const std::vector<std::string>& freeze : choices) {
      const std::unique_ptr<Network> net = make(config, "cpu");
      net->freeze(frozen_by(net->table(), freeze));
      const std::vector<float> got = gradients_of<float>(*net, tokens.batch(), options);
      EXPECT_LT(got.size(), all.size());
      expect_same_gradients(*net, got, all, freeze.back());
    }
  }
}

TEST_P(Segments, TakeTheMemoryThatIsPlanned) {
  Config config = GetParam().config;
  config.n_layer = 3;
  const Tokens tokens(config.vocab_size, 64);
  for (const bool freeze : {false, true}) {
    for (const int64_t segments : {1, 4}) {
      int64_t before = std::numeric_limits<int64_t>::max();
      for (const Recompute policy : kPolicies) {
        const std::unique_ptr<Network> net = make(config, "cpu");
        if (freeze) net->freeze(frozen_by(net->table(), {"*embeddings*", "*.layers.0.*"}));
        const StepOptions options = {segments, policy};
        const MemoryPlan plan = net->plan_training(Tokens::kB, tokens.L, options);
        net->forward_backward(tokens.batch(), 1.0, options);
        const int64_t bytes = plan.activations + plan.scratch;
        EXPECT_EQ(net->workspace_bytes(), bytes);
        EXPECT_EQ(net->workspace_peak(), bytes);
        // Nor do an evaluation of the same size and another step take more.
        const Batch part = {Tokens::kB, tokens.L / segments, tokens.ids.data(),
                            tokens.targets.data()};
        net->forward(part, nullptr, Logits::kNone, Buf(), Buf());
        net->forward_backward(tokens.batch(), 1.0, options);
        EXPECT_EQ(net->workspace_bytes(), bytes);
        EXPECT_LT(plan.activations, before);  // none, scan, block: less and less is kept
        before = plan.activations;
      }
    }
  }
}

TEST_P(Segments, TenOfThemTakeLessThanAFifth) {
  const std::unique_ptr<Network> net = make(GetParam().config, "cpu");
  const auto bytes = [&](int64_t length, int64_t segments) {
    const MemoryPlan plan = net->plan_training(2, length, {segments, Recompute::kNone});
    return plan.activations + plan.scratch;
  };
  EXPECT_LT(5 * bytes(5000, 10), bytes(5000, 1));
  // With more segments of the same length only their first states are added.
  const int64_t states = 10 * 2 * net->state_elements() * 4;
  EXPECT_NEAR(static_cast<double>(bytes(10000, 20) - bytes(5000, 10)), static_cast<double>(states),
              64);
}

INSTANTIATE_TEST_SUITE_P(All, Segments, testing::ValuesIn(model_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(SegmentsErrors, CannotBeMoreThanTokens) {
  const std::unique_ptr<Network> net = make(small_mamba1(), "cpu");
  const Tokens tokens(29, 16);
  for (const int64_t segments : {0, 17, -1}) {
    EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"1..16 segments", "got"}, [&] {
      net->forward_backward(tokens.batch(), 1.0, {segments, Recompute::kNone});
    }));
  }
}

}  // namespace
}  // namespace mamba::test
