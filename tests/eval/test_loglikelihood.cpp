// SPDX-License-Identifier: Apache-2.0
// Log-likelihoods: the definition, and no bit that depends on sharing, batches or threads.
#include <gtest/gtest.h>

#include <cmath>

#include "generate/support.h"
#include "mamba/evaluate.h"
#include "model/network.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::byte_model;

using Groups = std::vector<std::vector<LikelihoodRequest>>;
using Results = std::vector<std::vector<Likelihood>>;

std::vector<int32_t> ids(int64_t count, int64_t seed) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(static_cast<int32_t>((i * i + 31 * i + 7 * seed) % 256));
  }
  return out;
}

// Sums the log-probabilities of single steps, in f64.
Likelihood by_steps(Model& model, const LikelihoodRequest& request) {
  State state = model.new_state(1);
  std::vector<float> logits(256);
  for (const int32_t id : request.context) model.step(&id, state, logits.data());
  Likelihood out{0, true};
  for (const int32_t id : request.continuation) {
    double sum = 0;
    size_t top = 0;
    for (size_t v = 0; v < 256; ++v) {
      sum += std::exp(static_cast<double>(logits[v]));
      if (logits[v] > logits[top]) top = v;
    }
    out.log_prob += logits[static_cast<size_t>(id)] - std::log(sum);
    out.is_greedy = out.is_greedy && top == static_cast<size_t>(id);
    model.step(&id, state, logits.data());
  }
  return out;
}

// The continuation that the model would write.
std::vector<int32_t> greedy(Model& model, const std::vector<int32_t>& context, int64_t count) {
  Generator generator(model);
  Session session = test::prefilled(generator, context);
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_tokens = count;
  return generator.generate(session, options)[0].ids;
}

// Groups of one context and several continuations, of contexts that differ at their end, of a
// context longer than a chunk, and of a continuation longer than one.
Groups mixed_groups(Model& model) {
  Groups groups;
  groups.push_back({{ids(40, 1), ids(5, 2)}, {ids(40, 1), ids(9, 3)}, {ids(40, 1), {7}}});
  LikelihoodRequest ends{ids(30, 4), ids(6, 5)}, other = ends;
  other.context.back() = 200;
  other.context.push_back(3);
  groups.push_back({ends, other});
  groups.push_back({{{9}, ids(3, 6)}});
  groups.push_back({{ids(700, 7), ids(4, 8)}, {ids(700, 7), ids(150, 9)}});
  groups.push_back({});
  groups.push_back({{ids(20, 10), greedy(model, ids(20, 10), 6)}});
  return groups;
}

void expect_same_bits(const Results& got, const Results& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t g = 0; g < want.size(); ++g) {
    ASSERT_EQ(got[g].size(), want[g].size());
    for (size_t i = 0; i < want[g].size(); ++i) {
      EXPECT_EQ(got[g][i].log_prob, want[g][i].log_prob) << g << ", " << i;
      EXPECT_EQ(got[g][i].is_greedy, want[g][i].is_greedy) << g << ", " << i;
    }
  }
}

TEST(Loglikelihood, IsTheSumOfSingleSteps) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    Model model = byte_model(mixer);
    const Groups groups = mixed_groups(model);
    const Results results = loglikelihoods(model, groups);
    for (size_t g = 0; g < groups.size(); ++g) {
      for (size_t i = 0; i < groups[g].size(); ++i) {
        const Likelihood want = by_steps(model, groups[g][i]);
        // f32 logits of size 10 at most: each term is good to about 1e-5.
        const double bound = 1e-5 * static_cast<double>(groups[g][i].continuation.size());
        EXPECT_NEAR(results[g][i].log_prob, want.log_prob, bound) << mixer << g << ", " << i;
        EXPECT_EQ(results[g][i].is_greedy, want.is_greedy) << mixer << g << ", " << i;
      }
    }
    EXPECT_TRUE(results.back()[0].is_greedy);
    EXPECT_FALSE(results[0][0].is_greedy);
  }
}

TEST(Loglikelihood, SharingBatchesAndThreadsChangeNoBit) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    Model model = byte_model(mixer);
    const Groups groups = mixed_groups(model);
    LikelihoodOptions options;
    const Results want = loglikelihoods(model, groups, options);
    options.share_prefixes = false;
    expect_same_bits(loglikelihoods(model, groups, options), want);
    for (const int64_t batch : {1, 2, 100}) {
      options.batch_size = batch;
      for (const bool share : {false, true}) {
        options.share_prefixes = share;
        expect_same_bits(loglikelihoods(model, groups, options), want);
      }
    }
    for (const int threads : {1, 2, 3}) {
      ModelOptions with_threads;
      with_threads.threads = threads;
      Model same = byte_model(mixer, 1, with_threads);
      expect_same_bits(loglikelihoods(same, groups), want);
    }
  }
}

TEST(Loglikelihood, ContextsAreCutFromTheLeft) {
  Model model = byte_model("mamba1");
  const std::vector<int32_t> context = ids(30, 1), continuation = ids(4, 2);
  LikelihoodOptions options;
  options.max_length = 9;  // of 10 tokens 9 are inputs
  const std::vector<int32_t> kept(context.end() - 6, context.end());
  EXPECT_EQ(loglikelihoods(model, {{{context, continuation}}}, options)[0][0].log_prob,
            loglikelihood(model, kept, continuation).log_prob);
  options.max_length = 33;  // all 34 tokens fit
  EXPECT_EQ(loglikelihoods(model, {{{context, continuation}}}, options)[0][0].log_prob,
            loglikelihood(model, context, continuation).log_prob);
  options.max_length = 4;  // the longest continuation there may be keeps one token of context
  EXPECT_EQ(loglikelihoods(model, {{{context, continuation}}}, options)[0][0].log_prob,
            loglikelihood(model, {context.back()}, continuation).log_prob);
}

TEST(Loglikelihood, RefusesWhatCannotBeScored) {
  Model model = byte_model("mamba1");
  const auto refuses = [&](std::initializer_list<std::string> parts, LikelihoodRequest request,
                           const LikelihoodOptions& options = {}) {
    return test::fails_with(ErrorCode::kInvalidArgument, parts,
                            [&] { loglikelihoods(model, Groups{{std::move(request)}}, options); });
  };
  EXPECT_TRUE(refuses({"context", "got 0 and 1"}, {{}, {1}}));
  EXPECT_TRUE(refuses({"continuation", "got 1 and 0"}, {{1}, {}}));
  EXPECT_TRUE(refuses({"0..255", "got 256"}, {{256}, {1}}));
  EXPECT_TRUE(refuses({"0..255", "got -1"}, {{5}, {-1}}));
  LikelihoodOptions options;
  options.max_length = 2;
  EXPECT_TRUE(refuses({"1..2", "got 1 and 3"}, {{5}, {1, 2, 3}}, options));
  options.max_length = -1;
  EXPECT_TRUE(refuses({"max_length"}, {{5}, {1}}, options));
  options.max_length = 2;
  options.batch_size = 0;
  EXPECT_TRUE(refuses({"batch_size", "got 0"}, {{5}, {1}}, options));
}

TEST(Loglikelihood, StopsWhereTheCallerSaysSo) {
  Model model = byte_model("mamba1");
  LikelihoodOptions options;
  options.batch_size = 1;
  options.progress = [](int64_t done) { return done < 2; };
  const Groups groups(5, {{{1, 2, 3}, {4}}});
  EXPECT_TRUE(test::fails_with(ErrorCode::kCancelled, {"after 2 groups"},
                               [&] { loglikelihoods(model, groups, options); }));
}

TEST(Loglikelihood, RefusesWeightsThatOverflow) {
  Model model = byte_model("mamba1");
  float* weights = model.network().parameters().as<float>();
  weights[0] = NAN;  // of the embedding of token 0
  model.network().parameters_changed(true);
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"finite", "NaN"},
                               [&] { loglikelihood(model, {0}, {1}); }));
}

// "ab" -> 300 where they stand together: a tokenizer whose ids depend on what follows.
class MergingTokenizer : public Tokenizer {
 public:
  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override { return 301; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> out;
    for (size_t i = 0; i < text.size(); ++i) {
      const bool merged = text.substr(i, 2) == "ab";
      out.push_back(merged ? 300 : static_cast<unsigned char>(text[i]));
      i += merged ? 1 : 0;
    }
    return out;
  }
  std::string token_bytes(int32_t id) const override {
    return id == 300 ? "ab" : std::string(1, static_cast<char>(id));
  }

 private:
  std::string name_ = "merging";
};

TEST(EncodePair, MovesWhiteSpaceOfTheContextToTheContinuation) {
  const auto bytes = make_tokenizer("bytes");
  const LikelihoodRequest r = encode_pair(*bytes, "x \xe3\x80\x80\n", " y");
  EXPECT_EQ(r.context, std::vector<int32_t>({'x'}));
  EXPECT_EQ(r.continuation, std::vector<int32_t>({' ', 0xe3, 0x80, 0x80, '\n', ' ', 'y'}));
}

TEST(EncodePair, CutsTheWholeWhereTheContextAloneEnds) {
  const MergingTokenizer merging;
  // Together the a joins the b: the context keeps its own ids, and the continuation what is left.
  const LikelihoodRequest r = encode_pair(merging, "xa", "bc");
  EXPECT_EQ(r.context, std::vector<int32_t>({'x', 'a'}));
  EXPECT_EQ(r.continuation, std::vector<int32_t>({'c'}));
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"adds a token", "'b'"},
                               [&] { encode_pair(merging, "xa", "b"); }));
}

TEST(EncodePair, GivesAnEmptyContextThePrefix) {
  const auto bytes = make_tokenizer("bytes");
  const LikelihoodRequest r = encode_pair(*bytes, "", "yz", 5);
  EXPECT_EQ(r.context, std::vector<int32_t>({5}));
  EXPECT_EQ(r.continuation, std::vector<int32_t>({'y', 'z'}));
  for (const int32_t prefix : {static_cast<int32_t>('y'), -1}) {  // it begins so, or there is none
    const LikelihoodRequest own = encode_pair(*bytes, "", "yz", prefix);
    EXPECT_EQ(own.context, std::vector<int32_t>({'y'}));
    EXPECT_EQ(own.continuation, std::vector<int32_t>({'z'}));
  }
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"adds a token"},
                               [&] { encode_pair(*bytes, "", "y"); }));
}

}  // namespace
}  // namespace mamba
