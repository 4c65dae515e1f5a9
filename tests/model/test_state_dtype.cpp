// SPDX-License-Identifier: Apache-2.0
// States in bf16: half the bytes, rounded after every call, exchangeable with f32 in files and in
// memory, and the facts that hold for any state: rows, threads, forks.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "mamba/model.h"
#include "mamba/state.h"
#include "model/two_mixers.h"
#include "support/expect_error.h"

namespace mamba::test {
namespace {

Model model_of(const std::string& mixer, DType state, const std::string& device = "cpu",
               int threads = 2) {
  ModelOptions options;
  options.device = device;
  options.threads = threads;
  options.state_dtype = state;
  return Model::create(config_of(mixer, 32, 3), 3, options);
}

// Logits of the last of `ids`, taken one by one.
std::vector<float> step_all(Model& model, const std::vector<int32_t>& ids, State& state) {
  std::vector<float> logits(kVocab);
  for (const int32_t id : ids) model.step(&id, state, logits.data());
  return logits;
}

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0, most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::fmax(worst, std::fabs(double(a[i]) - double(b[i])));
    most = std::fmax(most, std::fabs(double(b[i])));
  }
  return worst / most;
}

class StateDtype : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Mixers, StateDtype, testing::Values("mamba1", "mamba2"));

TEST_P(StateDtype, HalvesTheBytesAndStaysClose) {
  Model wide = model_of(GetParam(), DType::kF32), narrow = model_of(GetParam(), DType::kBF16);
  State a = wide.new_state(1), b = narrow.new_state(1);
  EXPECT_EQ(b.dtype(), DType::kBF16);
  EXPECT_EQ(2 * b.bytes_per_sequence(), a.bytes_per_sequence());
  const std::vector<int32_t> ids = tokens_of(200);
  const double error = relative(step_all(narrow, ids, b), step_all(wide, ids, a));
  EXPECT_GT(error, 0.0);  // it is rounded indeed
  // Each of the 4 + 1 states that a logit sees is off by at most 2^-9 of it, over three layers, and
  // decays; a sum over rounding errors of long memories may be a few times that.
  EXPECT_LT(error, 24 * std::ldexp(1.0, -9));
}

TEST_P(StateDtype, ChunksAndStepsAgree) {
  Model model = model_of(GetParam(), DType::kBF16);
  const std::vector<int32_t> ids = tokens_of(40);
  State steps = model.new_state(1), chunks = model.new_state(1);
  const std::vector<float> expected = step_all(model, ids, steps);
  std::vector<float> logits(kVocab);
  // Chunks of one token are rounded where steps are.
  for (const int32_t id : ids) model.forward(&id, 1, chunks, Logits::kLast, logits.data());
  EXPECT_LT(relative(logits, expected), 24 * std::ldexp(1.0, -9));
  State whole = model.new_state(1);
  model.forward(ids.data(), 40, whole, Logits::kLast, logits.data());
  EXPECT_LT(relative(logits, expected), 24 * std::ldexp(1.0, -9));
}

TEST_P(StateDtype, RowsAndThreadsDoNotChangeABit) {
  Model one = model_of(GetParam(), DType::kBF16, "cpu", 1);
  Model two = model_of(GetParam(), DType::kBF16, "cpu", 2);
  const std::vector<int32_t> ids = tokens_of(30);
  State a = one.new_state(1);
  const std::vector<float> expected = step_all(one, ids, a);
  State batch = two.new_state(3);
  std::vector<float> logits(3 * kVocab);
  for (const int32_t id : ids) {
    const int32_t row[3] = {(id + 7) % 61, id, (id * 3) % 61};
    two.step(row, batch, logits.data());
  }
  EXPECT_TRUE(batch.fork(1) == a);
  EXPECT_EQ(std::vector<float>(logits.begin() + kVocab, logits.begin() + 2 * kVocab), expected);
}

TEST_P(StateDtype, TurnsIntoTheOtherAndContinues) {
  Model model = model_of(GetParam(), DType::kBF16);
  const std::vector<int32_t> ids = tokens_of(20);
  State narrow = model.new_state(1);
  step_all(model, ids, narrow);
  State wide = narrow.as(DType::kF32);
  EXPECT_TRUE(wide.as(DType::kBF16) == narrow);  // widening loses nothing
  EXPECT_EQ(wide.as(DType::kBF16).max_difference(narrow), 0.0);
  EXPECT_EQ(narrow.max_difference(wide), std::numeric_limits<double>::infinity());
  std::vector<float> from_narrow(kVocab), from_wide(kVocab);
  const int32_t next = 5;
  model.step(&next, narrow, from_narrow.data());  // the state's own type decides
  model.step(&next, wide, from_wide.data());
  EXPECT_EQ(from_narrow, from_wide);
  EXPECT_TRUE(wide.as(DType::kBF16) == narrow);
}

TEST_P(StateDtype, TheReferenceAgrees) {
  Model model = model_of(GetParam(), DType::kBF16), ref = model_of(GetParam(), DType::kBF16, "ref");
  const std::vector<int32_t> ids = tokens_of(50);
  State a = model.new_state(1), b = ref.new_state(1);
  EXPECT_LT(relative(step_all(model, ids, a), step_all(ref, ids, b)), 8 * std::ldexp(1.0, -9));
}

TEST(StateTypes, OtherTypesAreRefused) {
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"expected states in f32 or bf16, got f16"},
                         [] { model_of("mamba1", DType::kF16); }));
  Model wide = model_of("mamba1", DType::kF32, "ref64");
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"expected f32 or bf16, got f64"},
                         [&] { wide.new_state(1).as(DType::kF32); }));
}

}  // namespace
}  // namespace mamba::test
