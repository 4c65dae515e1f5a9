// SPDX-License-Identifier: Apache-2.0
// The public training step: the same numbers as a run of train(), accumulation, bad input.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "formats/hf_config.h"
#include "mamba/learner.h"
#include "mamba/model.h"
#include "model/cases.h"
#include "support/expect_error.h"
#include "support/random.h"
#include "train/small_run.h"

namespace mamba::test {
namespace {

struct Tokens {
  explicit Tokens(int64_t vocab, int64_t count = 4 * 24 + 1) {
    Random random(9);
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.below(vocab)));
  }
  const int32_t* tokens() const { return ids.data(); }
  const int32_t* targets() const { return ids.data() + 1; }
  std::vector<int32_t> ids;
};

TEST(Learner, LearnsWhatItIsShownAndSavesIt) {
  for (const Config& config : {small_mamba1(), small_mamba2()}) {
    const Tokens data(config.vocab_size);
    Learner learner = Learner::create(config, 3, {.threads = 1});
    const double before = learner.evaluate(data.tokens(), data.targets(), 4, 24);
    UpdateReport last;
    for (int i = 0; i < 30; ++i) last = learner.step(data.tokens(), data.targets(), 4, 24, 1e-2);
    EXPECT_EQ(learner.steps(), 30);
    EXPECT_EQ(last.targets, 96);
    EXPECT_TRUE(last.applied);
    const double after = learner.evaluate(data.tokens(), data.targets(), 4, 24);
    EXPECT_LT(after, 0.7 * before);

    const ScratchFolder folder;
    learner.save(folder / "model");
    Model model = Model::load(folder / "model", {"cpu", 1});
    State state = model.new_state(4);
    std::vector<float> nll(96);
    model.score(data.tokens(), data.targets(), 24, state, nll.data());
    double sum = 0;
    for (const float v : nll) sum += static_cast<double>(v);
    EXPECT_NEAR(sum / 96, after, 1e-5 * after);
    Learner again = Learner::load(folder / "model", {.threads = 1});
    EXPECT_DOUBLE_EQ(again.evaluate(data.tokens(), data.targets(), 4, 24), after);
  }
}

TEST(Learner, TwoHalvesAreOneBatch) {
  const Config config = small_mamba2();
  const Tokens data(config.vocab_size);
  Learner whole = Learner::create(config, 3, {.threads = 1});
  Learner halves = Learner::create(config, 3, {.threads = 1});
  const UpdateReport a = whole.step(data.tokens(), data.targets(), 4, 24, 1e-2);
  halves.accumulate(data.tokens(), data.targets(), 2, 24);
  halves.accumulate(data.tokens() + 48, data.targets() + 48, 2, 24);
  const UpdateReport b = halves.update(1e-2);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_NEAR(a.loss, b.loss, 1e-6 * a.loss);
  EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-5 * a.grad_norm);
  const double after = whole.evaluate(data.tokens(), data.targets(), 4, 24);
  EXPECT_NEAR(halves.evaluate(data.tokens(), data.targets(), 4, 24), after, 1e-4 * after);
}

TEST(Learner, UnscoredTargetsDoNotCount) {
  const Config config = small_mamba1();
  const Tokens data(config.vocab_size);
  std::vector<int32_t> masked(data.targets(), data.targets() + 96);
  for (size_t i = 0; i < 90; ++i) masked[i] = -1;
  Learner learner = Learner::create(config, 3, {.threads = 1});
  EXPECT_EQ(learner.step(data.tokens(), masked.data(), 4, 24, 1e-3).targets, 6);
  std::fill(masked.begin(), masked.end(), -1);
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"[learner]", "targets"},
                         [&] { learner.step(data.tokens(), masked.data(), 4, 24, 1e-3); }));
}

TEST(Learner, RefusesIdsOutOfRangeAndDevicesThatDoNotTrain) {
  const Config config = small_mamba1();
  Tokens data(config.vocab_size);
  data.ids[5] = static_cast<int32_t>(config.vocab_size);
  Learner learner = Learner::create(config, 3, {.threads = 1});
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {std::to_string(config.vocab_size)},
                         [&] { learner.step(data.tokens(), data.targets(), 4, 24, 1e-3); }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"[learner]", "ref64"},
                         [&] { Learner::create(config, 1, {.device = "ref64"}); }));
}

}  // namespace
}  // namespace mamba::test
