// SPDX-License-Identifier: Apache-2.0
// Batches: each answer is that of a run alone, bit for bit, whatever the batch, the threads, the
// type of the weights and the neighbours.
#include <gtest/gtest.h>

#include "generate/support.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::byte_model;
using test::fails_with;

// Prompts of unequal lengths, with every sampler on.
std::vector<GenerateRequest> requests(int count) {
  std::vector<GenerateRequest> all;
  for (int i = 0; i < count; ++i) {
    GenerateRequest r;
    for (int k = 0; k < 1 + i * 7 % 23; ++k) r.prompt.push_back((i * 31 + k * k * 5) % 256);
    SamplingOptions& s = r.sampling;
    s.temperature = i % 5 == 4 ? 0 : 0.9;
    s.top_k = 40;
    s.top_p = 0.95;
    s.min_p = 0.01;
    s.typical_p = 0.97;
    s.repeat_penalty = 1.2;
    s.presence_penalty = 0.1;
    s.frequency_penalty = 0.05;
    s.repeat_last_n = i % 2 == 0 ? 16 : -1;
    s.no_repeat_ngram = 3;
    s.logit_bias = {{65, 1}, {0, -std::numeric_limits<double>::infinity()}};
    s.min_tokens = i % 3;
    s.stop_ids = {7, 8, 9, 10};
    s.logprobs = 3;
    s.seed = static_cast<uint64_t>(i) / 2;
    r.max_tokens = i == 3 ? 0 : i == 6 ? 60 : 5 + i * 11 % 17;
    if (i % 4 == 1) r.stop = {"a", "e", "zz"};
    r.sampling.min_tokens = std::min(s.min_tokens, r.max_tokens);
    all.push_back(r);
  }
  return all;
}

Generation alone(Generator& generator, const GenerateRequest& request) {
  Session session = generator.start();
  keep_history_for(session, request.sampling);
  generator.prefill(session, request.prompt);
  GenerateOptions options;
  options.sampling = request.sampling;
  options.max_tokens = request.max_tokens;
  options.stop = request.stop;
  return generator.generate(session, options)[0];
}

void expect_same(const Generation& got, const Generation& want) {
  EXPECT_EQ(got.ids, want.ids);
  EXPECT_EQ(got.text, want.text);
  EXPECT_EQ(got.finish_reason, want.finish_reason);
  ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
  for (size_t i = 0; i < got.logprobs.size(); ++i) {
    EXPECT_EQ(got.logprobs[i].logprob, want.logprobs[i].logprob);  // every bit
    ASSERT_EQ(got.logprobs[i].top.size(), want.logprobs[i].top.size());
    for (size_t k = 0; k < got.logprobs[i].top.size(); ++k) {
      EXPECT_EQ(got.logprobs[i].top[k].id, want.logprobs[i].top[k].id);
      EXPECT_EQ(got.logprobs[i].top[k].logprob, want.logprobs[i].top[k].logprob);
    }
  }
}

std::vector<Generation> batch(Generator& generator, const std::vector<GenerateRequest>& all,
                              BatchOptions options) {
  std::vector<Generation> results;
  size_t next = 0;
  const bool whole = generator.generate_batch(
      [&](GenerateRequest& request) {
        if (next == all.size()) return false;
        request = all[next++];
        return true;
      },
      [&](int64_t index, Generation&& g) {
        EXPECT_EQ(index, static_cast<int64_t>(results.size())) << "in order";
        results.push_back(std::move(g));
      },
      options);
  EXPECT_TRUE(whole);
  return results;
}

class EveryMixer : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Batch, EveryMixer, testing::Values("mamba1", "mamba2"));

TEST_P(EveryMixer, EqualsSingleRunsForEveryBatchSizeThreadCountAndType) {
  const auto tokenizer = make_tokenizer("bytes");
  const std::vector<GenerateRequest> all = requests(17);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    std::vector<Generation> want;
    for (const int threads : {1, 2}) {
      ModelOptions model_options;
      model_options.threads = threads;
      model_options.dtype = dtype;
      Model model = byte_model(GetParam(), 1, model_options);
      Generator generator(model, tokenizer.get());
      if (want.empty()) {
        for (const GenerateRequest& r : all) want.push_back(alone(generator, r));
      }
      for (const int64_t size : {1, 2, 3, 7}) {
        SCOPED_TRACE(testing::Message()
                     << dtype_name(dtype) << ", " << threads << " threads, batch " << size);
        BatchOptions options;
        options.batch_size = size;
        const std::vector<Generation> got = batch(generator, all, options);
        ASSERT_EQ(got.size(), all.size());
        for (size_t i = 0; i < all.size(); ++i) expect_same(got[i], want[i]);
      }
    }
  }
}

TEST(Batch, SomeEndEarlyAndSomeLate) {  // what the test above relies on
  Model model = byte_model("mamba1");
  const auto tokenizer = make_tokenizer("bytes");
  Generator generator(model, tokenizer.get());
  bool length = false, stop = false;
  for (const GenerateRequest& r : requests(17)) {
    const FinishReason reason = alone(generator, r).finish_reason;
    length = length || reason == FinishReason::kLength;
    stop = stop || reason == FinishReason::kStop;
  }
  EXPECT_TRUE(length && stop);
}

TEST(Batch, TakesNoMoreThanItsWindowFromTheSource) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  int64_t taken = 0, given = 0, most = 0, running = 0;
  BatchOptions options;
  options.batch_size = 2;
  options.on_progress = [&](const BatchProgress& p) {
    running = std::max(running, p.running);
    EXPECT_EQ(p.finished + p.running, taken);
  };
  const bool whole = generator.generate_batch(
      [&](GenerateRequest& request) {
        if (taken == 200) return false;
        request.prompt = {1, 2};
        request.max_tokens = taken++ == 0 ? 400 : 2;  // all wait for the first
        most = std::max(most, taken - given);
        return true;
      },
      [&](int64_t, Generation&&) { ++given; }, options);
  EXPECT_TRUE(whole);
  EXPECT_EQ(given, 200);
  EXPECT_EQ(most, 32);
  EXPECT_EQ(running, 2);
}

TEST(Batch, InterruptionGivesWholeAnswersInOrder) {
  Model model = byte_model("mamba2");
  Generator generator(model);
  int polls = 0;
  BatchOptions options;
  options.batch_size = 3;
  options.interrupted = [&] { return ++polls > 40; };
  int64_t taken = 0, given = 0;
  const bool whole = generator.generate_batch(
      [&](GenerateRequest& request) {
        request.prompt = {5};
        request.max_tokens = 1 + taken++ % 9;
        return true;  // without end
      },
      [&](int64_t index, Generation&& g) {
        EXPECT_EQ(index, given++);
        EXPECT_EQ(static_cast<int64_t>(g.ids.size()), 1 + index % 9);
      },
      options);
  EXPECT_FALSE(whole);
  EXPECT_GT(given, 0);
}

TEST(Batch, RefusesWhatCannotBeAnswered) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  BatchOptions options;
  const auto refuses = [&](std::initializer_list<std::string> parts, const GenerateRequest& r) {
    int left = 1;
    return fails_with(ErrorCode::kInvalidArgument, parts, [&] {
      generator.generate_batch(
          [&](GenerateRequest& request) {
            request = r;
            return left-- > 0;
          },
          [](int64_t, Generation&&) {}, options);
    });
  };
  GenerateRequest good;
  good.prompt = {1};
  GenerateRequest bad = good;
  bad.prompt = {};
  EXPECT_TRUE(refuses({"at least one token"}, bad));
  bad.prompt = {256};
  EXPECT_TRUE(refuses({"0..255", "256"}, bad));
  bad = good;
  bad.max_tokens = -1;
  EXPECT_TRUE(refuses({"max_tokens"}, bad));
  bad = good;
  bad.stop = {"x"};
  EXPECT_TRUE(refuses({"tokenizer"}, bad));
  options.batch_size = 0;
  EXPECT_TRUE(refuses({"batch_size", "1..4096", "0"}, good));
}

TEST(Batch, ProgressCountsAnswersThatNeedNoStep) {
  Model model = byte_model("mamba1");
  const auto tokenizer = make_tokenizer("bytes");
  Generator generator(model, tokenizer.get());
  for (const int64_t tokens : {0, 1}) {
    int asked = 0;
    BatchProgress last;
    BatchOptions options;
    options.batch_size = 2;
    options.on_progress = [&](const BatchProgress& p) { last = p; };
    generator.generate_batch(
        [&](GenerateRequest& request) {
          request.prompt = {65, 66};
          request.max_tokens = tokens;
          return ++asked <= 5;
        },
        [](int64_t, Generation&&) {}, options);
    EXPECT_EQ(last.finished, 5);
    EXPECT_EQ(last.generated_tokens, 5 * tokens);
    EXPECT_EQ(last.prompt_tokens, 10);
    EXPECT_EQ(last.running, 0);
  }
}

}  // namespace
}  // namespace mamba
