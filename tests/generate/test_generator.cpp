// SPDX-License-Identifier: Apache-2.0
// Generation: greedy equals the argmax of one forward, samples do not depend on their batch,
// answers end where they should.
#include <gtest/gtest.h>

#include <algorithm>

#include "generate/support.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::byte_model;
using test::prefilled;
using test::prompt_ids;

GenerateOptions options_with(double temperature, int64_t max_tokens, int64_t samples = 1) {
  GenerateOptions options;
  options.sampling.temperature = temperature;
  options.sampling.seed = 42;
  options.max_tokens = max_tokens;
  options.samples = samples;
  return options;
}

class EveryMixer : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Generate, EveryMixer, testing::Values("mamba1", "mamba2"));

TEST_P(EveryMixer, GreedyEqualsTheArgmaxOfOneForward) {
  Model model = byte_model(GetParam());
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(9));
  const std::vector<int32_t> ids = generator.generate(session, options_with(0, 40))[0].ids;
  ASSERT_EQ(ids.size(), 40u);
  std::vector<int32_t> all = prompt_ids(9);
  all.insert(all.end(), ids.begin(), ids.end());
  std::vector<float> logits(all.size() * 256);
  State state = model.new_state(1);
  model.forward(all.data(), static_cast<int64_t>(all.size()), state, Logits::kAll, logits.data());
  for (size_t t = 8; t + 1 < all.size(); ++t) {
    const float* row = logits.data() + t * 256;
    EXPECT_EQ(std::max_element(row, row + 256) - row, all[t + 1]) << "position " << t;
  }
}

TEST_P(EveryMixer, PromptLongerThanAChunkEqualsShorterPieces) {
  Model model = byte_model(GetParam());
  Generator generator(model);
  const std::vector<int32_t> ids = prompt_ids(1100);
  Session whole = prefilled(generator, ids);
  Session pieces = generator.start();
  for (size_t at = 0; at < ids.size(); at += 275) {
    generator.prefill(pieces, {ids.begin() + at, ids.begin() + at + 275});
  }
  EXPECT_EQ(whole.tokens, 1100);
  EXPECT_EQ(pieces.tokens, 1100);
  EXPECT_EQ(whole.token_hash, pieces.token_hash);
  // Splits change rounding alone: 1e-4 absolute is the bound of the project for equal logits.
  for (size_t v = 0; v < 256; ++v) EXPECT_NEAR(whole.logits[v], pieces.logits[v], 1e-4);
}

TEST_P(EveryMixer, SamplesDoNotDependOnTheirBatch) {
  Model model = byte_model(GetParam());
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(5));
  const std::vector<Generation> five = generator.generate(session, options_with(1, 30, 5));
  const std::vector<Generation> three = generator.generate(session, options_with(1, 30, 3));
  ASSERT_EQ(five.size(), 5u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(five[i].ids, three[i].ids);
  EXPECT_NE(five[0].ids, five[1].ids);
  EXPECT_EQ(five[0].ids, generator.generate(session, options_with(1, 30))[0].ids);
}

TEST_P(EveryMixer, SamplesThatEndLeaveTheOthersAlone) {
  Model model = byte_model(GetParam());
  const auto tokenizer = make_tokenizer("bytes");
  Generator generator(model, tokenizer.get());
  Session session = prefilled(generator, prompt_ids(5));
  const std::vector<Generation> free = generator.generate(session, options_with(1, 40, 6));
  GenerateOptions options = options_with(1, 40, 6);
  options.stop = {tokenizer->token_bytes(free[2].ids[7]), tokenizer->token_bytes(free[4].ids[3])};
  const std::vector<Generation> stopped = generator.generate(session, options);
  int ended = 0;
  for (size_t i = 0; i < 6; ++i) {
    const std::vector<int32_t>& ids = stopped[i].ids;
    ASSERT_LE(ids.size(), free[i].ids.size());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), free[i].ids.begin())) << i;
    EXPECT_EQ(stopped[i].finish_reason,
              ids.size() < 40 ? FinishReason::kStop : stopped[i].finish_reason);
    ended += ids.size() < 40;
  }
  EXPECT_GE(ended, 2);
}

TEST_P(EveryMixer, ThreadsDoNotChangeTheSamples) {
  std::vector<int32_t> first;
  for (const int threads : {1, 2, 3}) {
    ModelOptions model_options;
    model_options.threads = threads;
    Model model = byte_model(GetParam(), 1, model_options);
    Generator generator(model);
    Session session = prefilled(generator, prompt_ids(70));
    const std::vector<int32_t> ids = generator.generate(session, options_with(1, 50))[0].ids;
    if (first.empty()) first = ids;
    EXPECT_EQ(ids, first) << threads << " threads";
  }
}

TEST(Generate, TextIsWhatWasStreamedAndEndsBeforeTheStopString) {
  Model model = byte_model("mamba1");
  const auto tokenizer = make_tokenizer("bytes");
  Generator generator(model, tokenizer.get());
  Session session = prefilled(generator, prompt_ids(5));
  const Generation free = generator.generate(session, options_with(1, 60))[0];
  std::string streamed;
  GenerateOptions options = options_with(1, 60);
  // A stop string of three tokens in the middle, where it stands for the first time.
  options.stop = {tokenizer->decode({free.ids.begin() + 20, free.ids.begin() + 23})};
  options.on_token = [&](int64_t, int32_t, std::string_view text) { streamed += text; };
  session = prefilled(generator, prompt_ids(5));
  const Generation stopped = generator.generate(session, options)[0];
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.ids.size(), tokenizer->decode(free.ids).find(options.stop[0]) + 3);
  EXPECT_EQ(stopped.text, streamed);
  EXPECT_LT(stopped.text.size(), free.text.size());
  EXPECT_EQ(stopped.text, free.text.substr(0, stopped.text.size()));
}

TEST(Generate, EndTokenEndsTheAnswerUnlessIgnored) {
  Model base = byte_model("mamba1");
  Generator first(base);
  Session session = prefilled(first, prompt_ids(5));
  const std::vector<int32_t> ids = first.generate(session, options_with(1, 40))[0].ids;
  Config config = base.config();
  config.eos_token_id = ids[10];
  const int64_t at = std::find(ids.begin(), ids.end(), ids[10]) - ids.begin();
  Model model = Model::create(config, 1);
  Generator generator(model);
  session = prefilled(generator, prompt_ids(5));
  const Generation ended = generator.generate(session, options_with(1, 40))[0];
  EXPECT_EQ(ended.finish_reason, FinishReason::kEos);
  EXPECT_EQ(ended.ids, std::vector<int32_t>(ids.begin(), ids.begin() + at + 1));
  GenerateOptions options = options_with(1, 40);
  options.ignore_eos = true;
  session = prefilled(generator, prompt_ids(5));
  EXPECT_EQ(generator.generate(session, options)[0].ids, ids);
}

TEST(Generate, InterruptionKeepsWhatThereIs) {
  Model model = byte_model("mamba2");
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(5));
  const std::vector<int32_t> ids = generator.generate(session, options_with(1, 40))[0].ids;
  session = prefilled(generator, prompt_ids(5));
  GenerateOptions options = options_with(1, 40);
  int polls = 0;
  options.interrupted = [&] { return ++polls > 7; };
  const Generation result = generator.generate(session, options)[0];
  EXPECT_EQ(result.finish_reason, FinishReason::kInterrupted);
  EXPECT_EQ(result.ids, std::vector<int32_t>(ids.begin(), ids.begin() + 7));
  Session stopped = generator.start();
  EXPECT_FALSE(generator.prefill(stopped, prompt_ids(2000), [&] { return true; }));
  EXPECT_EQ(stopped.tokens, 0);
}

TEST(Generate, RefusesWhatIsOutOfRange) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  Session session = prefilled(generator, prompt_ids(5));
  const auto refuses = [&](std::initializer_list<std::string> parts, auto change) {
    GenerateOptions options = options_with(1, 5);
    change(options);
    return test::fails_with(ErrorCode::kInvalidArgument, parts,
                            [&] { generator.generate(session, options); });
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(refuses({"temperature", "nan"}, [&](auto& o) { o.sampling.temperature = nan; }));
  EXPECT_TRUE(refuses({"temperature", "-1"}, [&](auto& o) { o.sampling.temperature = -1; }));
  EXPECT_TRUE(refuses({"top_k", "-2"}, [&](auto& o) { o.sampling.top_k = -2; }));
  EXPECT_TRUE(refuses({"top_p", "0"}, [&](auto& o) { o.sampling.top_p = 0; }));
  EXPECT_TRUE(refuses({"min_p", "1.5"}, [&](auto& o) { o.sampling.min_p = 1.5; }));
  EXPECT_TRUE(refuses({"max_tokens"}, [&](auto& o) { o.max_tokens = -1; }));
  EXPECT_TRUE(refuses({"samples"}, [&](auto& o) { o.samples = 0; }));
  EXPECT_TRUE(refuses({"tokenizer"}, [&](auto& o) { o.stop = {"x"}; }));
  EXPECT_TRUE(refuses({"one sample"}, [&](auto& o) { o.samples = 2, o.keep_session = true; }));
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"0..255", "256", "position 2"}, [&] {
    generator.prefill(session, {1, 2, 256});
  }));
  Session empty = generator.start();
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"at least one token"},
                               [&] { generator.generate(empty, options_with(1, 5)); }));
}

}  // namespace
}  // namespace mamba
