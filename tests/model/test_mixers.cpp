// SPDX-License-Identifier: Apache-2.0
// What must hold for every registered mixer: full == any split == token by token, documents,
// batches of unequal prompts, states as values, independence of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "mamba/model.h"
#include "model/cases.h"
#include "model/network.h"
#include "support/close.h"
#include "support/random.h"

namespace mamba::test {
namespace {

// f32 logits of order 1 through two layers: 1e-4 absolute is the project's bound for any way of
// running the same tokens.
constexpr double kTolerance = 1e-4;

class Mixers : public testing::TestWithParam<Case> {
 protected:
  static Model make(int threads = 2, const std::string& device = "cpu", DType dtype = DType::kF32) {
    Model model = Model::create(GetParam().config, 7, {device, threads, dtype});
    // Away from tidy starts (zeros, ones), so that nothing can be dropped unnoticed.
    Network& net = model.network();
    Random random(11);
    for (const ParamSpec& spec : net.table().specs()) {
      for (int64_t i = 0; i < spec.count; ++i) {
        const double noise = static_cast<float>(random.uniform(-0.3, 0.3));
        const Buf at = net.parameters() + (spec.offset + i);
        if (at.dtype == DType::kF64) {
          *at.as<double>() += noise;
        } else {
          *at.as<float>() += static_cast<float>(noise);
        }
      }
    }
    net.parameters_changed(true);
    return model;
  }
  static std::vector<int32_t> tokens(int64_t count, uint64_t seed = 3) {
    Random random(seed);
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = static_cast<int32_t>(random.below(GetParam().config.vocab_size));
    return ids;
  }
  static std::vector<float> full(Model& model, const std::vector<int32_t>& ids, State& state,
                                 const int32_t* documents = nullptr) {
    const int64_t L = static_cast<int64_t>(ids.size()) / state.batch();
    std::vector<float> logits(ids.size() * static_cast<size_t>(model.config().vocab_size));
    model.forward(ids.data(), L, state, Logits::kAll, logits.data(), documents);
    return logits;
  }
  static testing::AssertionResult near(const std::vector<float>& a, const std::vector<float>& b) {
    return close(a, std::vector<double>(b.begin(), b.end()), kTolerance, 0);
  }
};

TEST_P(Mixers, EveryRegisteredMixerHasCases) {
  std::set<std::string> covered;
  for (const Case& c : model_cases()) covered.insert(c.config.mixer);
  for (const std::string& name : mixer_names()) EXPECT_TRUE(covered.count(name)) << name;
}

TEST_P(Mixers, FullEqualsReferenceInF64) {
  const std::vector<int32_t> ids = tokens(45);
  Model exact = make(1, "ref64");
  State exact_state = exact.new_state(1);
  const std::vector<float> want = full(exact, ids, exact_state);
  for (const char* device : {"cpu", "ref", "cpu:base"}) {
    Model model = make(2, device);
    State state = model.new_state(1);
    EXPECT_TRUE(near(full(model, ids, state), want)) << device;
  }
}

TEST_P(Mixers, AnySplitEqualsFullAndSteps) {
  Model model = make();
  const int64_t V = model.config().vocab_size;
  for (const int64_t L : {1, 2, 3, 7, 8, 9, 33, 67}) {
    const std::vector<int32_t> ids = tokens(L, static_cast<uint64_t>(L));
    State whole = model.new_state(1);
    const std::vector<float> want = full(model, ids, whole);
    for (const int64_t cut : {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{16}, L - 1}) {
      if (cut < 1) continue;
      State state = model.new_state(1);
      std::vector<float> got;
      for (int64_t at = 0; at < L; at += cut) {
        const int64_t end = std::min(L, at + cut);
        const std::vector<float> part = full(model, {ids.begin() + at, ids.begin() + end}, state);
        got.insert(got.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(near(got, want)) << "length " << L << " in parts of " << cut;
      EXPECT_LE(state.max_difference(whole), kTolerance);
    }
    State state = model.new_state(1);
    std::vector<float> got(static_cast<size_t>(L * V));
    for (int64_t t = 0; t < L; ++t)
      model.step(&ids[static_cast<size_t>(t)], state, &got[static_cast<size_t>(t * V)]);
    EXPECT_TRUE(near(got, want)) << "length " << L << " step by step";
    EXPECT_LE(state.max_difference(whole), kTolerance);
  }
}

TEST_P(Mixers, GreedyTokensAreEqualFullAndStepByStep) {
  Model model = make();
  const int64_t V = model.config().vocab_size;
  std::vector<int32_t> ids = tokens(5);
  State state = model.new_state(1);
  std::vector<float> logits(static_cast<size_t>(V));
  model.forward(ids.data(), 5, state, Logits::kLast, logits.data());
  for (int i = 0; i < 64; ++i) {
    const auto best = [](const float* p, int64_t n) {
      return static_cast<int32_t>(std::max_element(p, p + n) - p);
    };
    const int32_t next = best(logits.data(), V);
    State fresh = model.new_state(1);
    const std::vector<float> all = full(model, ids, fresh);
    ASSERT_EQ(next, best(all.data() + (ids.size() - 1) * static_cast<size_t>(V), V))
        << "token " << i;
    ids.push_back(next);
    model.step(&next, state, logits.data());
  }
}

TEST_P(Mixers, PackedDocumentsEqualSeparateOnes) {
  Model model = make();
  const int64_t V = model.config().vocab_size;
  const std::vector<int64_t> lengths = {3, 1, 20, 2, 9};
  std::vector<int32_t> ids, documents;
  std::vector<float> want;
  for (size_t d = 0; d < lengths.size(); ++d) {
    const std::vector<int32_t> part = tokens(lengths[d], 100 + d);
    State fresh = model.new_state(1);
    const std::vector<float> logits = full(model, part, fresh);
    want.insert(want.end(), logits.begin(), logits.end());
    ids.insert(ids.end(), part.begin(), part.end());
    documents.insert(documents.end(), part.size(), static_cast<int32_t>(d % 2));
  }
  State state = model.new_state(1);
  EXPECT_TRUE(near(full(model, ids, state, documents.data()), want));
  EXPECT_EQ(want.size(), ids.size() * static_cast<size_t>(V));
}

TEST_P(Mixers, ARowDoesNotDependOnNeighboursOrPaddingByABit) {
  Model model = make();
  const int64_t V = model.config().vocab_size, L = 40;
  const std::vector<int64_t> lengths = {1, 40, 2, 13, 39};
  std::vector<int32_t> batch(lengths.size() * L, -1);
  for (size_t b = 0; b < lengths.size(); ++b) {
    const std::vector<int32_t> ids = tokens(lengths[b], 50 + b);
    // Odd rows are padded on the left, even rows on the right.
    std::copy(ids.begin(), ids.end(),
              batch.begin() + static_cast<int64_t>(b) * L + (b % 2 ? L - lengths[b] : 0));
  }
  State together = model.new_state(static_cast<int64_t>(lengths.size()));
  std::vector<float> last(lengths.size() * static_cast<size_t>(V));
  model.forward(batch.data(), L, together, Logits::kLast, last.data());
  std::vector<int32_t> next = tokens(static_cast<int64_t>(lengths.size()), 77);
  std::vector<float> stepped(last.size());
  State after = together;
  model.step(next.data(), after, stepped.data());
  for (size_t b = 0; b < lengths.size(); ++b) {
    const std::vector<int32_t> ids = tokens(lengths[b], 50 + b);
    State alone = model.new_state(1);
    std::vector<float> logits(static_cast<size_t>(V));
    model.forward(ids.data(), lengths[b], alone, Logits::kLast, logits.data());
    EXPECT_TRUE(same_bits(logits.data(), last.data() + b * static_cast<size_t>(V), V))
        << "row " << b;
    EXPECT_TRUE(alone == together.fork(static_cast<int64_t>(b))) << "row " << b;
    model.step(&next[b], alone, logits.data());
    EXPECT_TRUE(same_bits(logits.data(), stepped.data() + b * static_cast<size_t>(V), V))
        << "row " << b;
    EXPECT_TRUE(alone == after.fork(static_cast<int64_t>(b))) << "row " << b;
  }
}

TEST_P(Mixers, ARestingRowKeepsItsStateAndLogits) {
  Model model = make();
  const int64_t V = model.config().vocab_size;
  State state = model.new_state(3);
  std::vector<float> logits(static_cast<size_t>(3 * V), -5.0f);
  const int32_t first[] = {1, 2, 3};
  model.step(first, state, logits.data());
  const State before = state;
  const std::vector<float> old = logits;
  const int32_t second[] = {4, -1, 5};
  model.step(second, state, logits.data());
  EXPECT_TRUE(state.fork(1) == before.fork(1));
  EXPECT_FALSE(state.fork(0) == before.fork(0));
  EXPECT_TRUE(same_bits(logits.data() + V, old.data() + V, V));
}

TEST_P(Mixers, AForkContinuesLikeTheOriginal) {
  Model model = make();
  const int64_t V = model.config().vocab_size;
  const std::vector<int32_t> ids = tokens(9);
  State state = model.new_state(1);
  full(model, ids, state);
  State fork = state.fork(0);
  EXPECT_TRUE(fork == state);
  std::vector<float> a(static_cast<size_t>(V)), b(a);
  model.step(&ids[0], state, a.data());
  EXPECT_FALSE(fork == state);
  model.step(&ids[0], fork, b.data());
  EXPECT_TRUE(same_bits(a.data(), b.data(), V));
  EXPECT_TRUE(fork == state);
}

TEST_P(Mixers, ResultsAreTheSameBitsForOneTwoAndThreeThreads) {
  const std::vector<int32_t> ids = tokens(3 * 50);
  std::vector<int32_t> targets = tokens(3 * 50, 8);
  targets[3] = -1;
  Batch batch;
  batch.B = 3, batch.L = 50, batch.ids = ids.data(), batch.targets = targets.data();
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    std::vector<float> want, want_grad;
    for (const int threads : {1, 2, 3}) {
      Model model = make(threads, "cpu", dtype);
      State state = model.new_state(3);
      const std::vector<float> logits = full(model, ids, state);
      Network& net = model.network();
      net.forward_backward(batch, 1.0 / 149);
      const float* g = net.gradients().as<float>();
      const std::vector<float> grad(g, g + net.table().flat_count());
      if (threads == 1) {
        want = logits;
        want_grad = grad;
        continue;
      }
      EXPECT_TRUE(same_bits(logits.data(), want.data(), static_cast<int64_t>(want.size())));
      EXPECT_TRUE(same_bits(grad.data(), want_grad.data(), static_cast<int64_t>(grad.size())));
    }
  }
}

TEST_P(Mixers, EmptyChunksChangeNothing) {
  Model model = make();
  State state = model.new_state(2);
  const State before = state;
  model.forward(nullptr, 0, state, Logits::kNone, nullptr);
  EXPECT_TRUE(state == before);
  State none = model.new_state(0);
  const int32_t id = 1;
  model.forward(&id, 1, none, Logits::kAll, nullptr);
  model.step(&id, none, nullptr);
}

TEST_P(Mixers, LongSequencesStayFinite) {
  Model model = make();
  State state = model.new_state(1);
  const std::vector<int32_t> ids = tokens(1000);
  std::vector<float> logits(static_cast<size_t>(model.config().vocab_size));
  for (int i = 0; i < 20; ++i) model.forward(ids.data(), 1000, state, Logits::kLast, logits.data());
  for (const float v : logits) EXPECT_TRUE(std::isfinite(v));
}

INSTANTIATE_TEST_SUITE_P(All, Mixers, testing::ValuesIn(model_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mamba::test
