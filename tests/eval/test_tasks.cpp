// SPDX-License-Identifier: Apache-2.0
// Tasks: what a line may be, and scores, metrics and standard errors against values computed here
// or by lm-evaluation-harness.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "eval/python_random.h"
#include "eval/task_metrics.h"
#include "generate/support.h"
#include "mamba/evaluate.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::byte_model;

void write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// log p(continuation | context) over bytes, by the definition, in f64.
double log_prob(Model& model, const std::string& context, const std::string& continuation) {
  const std::string all = context + continuation;
  std::vector<int32_t> ids;
  for (const char c : all) ids.push_back(static_cast<unsigned char>(c));
  std::vector<float> logits(256 * ids.size());
  State state = model.new_state(1);
  model.forward(ids.data(), static_cast<int64_t>(ids.size()), state, Logits::kAll, logits.data());
  double total = 0;
  for (size_t i = context.size(); i < ids.size(); ++i) {
    const float* row = logits.data() + 256 * (i - 1);
    double sum = 0;
    for (size_t v = 0; v < 256; ++v) sum += std::exp(static_cast<double>(row[v]));
    total += row[ids[i]] - std::log(sum);
  }
  return total;
}

struct Example {
  std::string context;
  std::vector<std::string> choices;
  size_t gold;
};

// Choices of several lengths, with characters of several bytes, and two that are equal.
const std::vector<Example> kExamples = {
    {"Question: what is it?\nAnswer:", {"a stone", "the long way home", "x"}, 0},
    {"She said that", {"\u00e9t\u00e9 \u2014 \u00fcber", "rain", "it was over and done with"}, 1},
    {"One", {"two", "two", "three"}, 2},
    {"The end of the road is", {"near", "\U0001f600\U0001f600", "far away"}, 1},
    {"Why", {"not", "because nobody asked", "so"}, 1},
};

std::string json_line(const Example& e) {
  std::string choices;
  for (const std::string& c : e.choices) choices += (choices.empty() ? "\"" : ", \"") + c + "\"";
  std::string context = e.context;
  for (size_t at; (at = context.find('\n')) != std::string::npos;) context.replace(at, 1, "\\n");
  return "{\"id\": \"q\", \"ctx\": \"" + context + "\", \"choices\": [" + choices +
         "], \"gold\": " + std::to_string(e.gold) + "}\n";
}

size_t characters(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

class Tasks : public testing::Test {
 protected:
  std::unique_ptr<Tokenizer> bytes_ = make_tokenizer("bytes");
  test::ScratchFolder folder_;

  Task load(const std::string& name, const std::string& text, int64_t limit = 0) {
    write(folder_ / (name + ".jsonl"), text);
    return load_task(name, folder_.path(), limit);
  }
  testing::AssertionResult refuses(const std::string& name, const std::string& text,
                                   std::initializer_list<std::string> parts) {
    return test::fails_with(ErrorCode::kBadFile, parts, [&] { load(name, text); });
  }
};

TEST_F(Tasks, ChoicesAreScoredPlainByCharactersAndByBytes) {
  std::string text;
  for (const Example& e : kExamples) text += json_line(e);
  const Task task = load("hellaswag", text);
  EXPECT_TRUE(task.length_normalised);
  for (const char* mixer : {"mamba1", "mamba2"}) {
    Model model = byte_model(mixer);
    std::vector<double> acc, acc_norm, acc_bytes;
    std::vector<std::vector<double>> values;
    for (const Example& e : kExamples) {
      std::vector<double> plain, norm, by_bytes;
      for (const std::string& c : e.choices) {
        plain.push_back(log_prob(model, e.context, " " + c));
        norm.push_back(plain.back() / static_cast<double>(characters(c)));
        by_bytes.push_back(plain.back() / static_cast<double>(c.size()));
      }
      const auto right = [&](const std::vector<double>& v) {
        return static_cast<size_t>(std::max_element(v.begin(), v.end()) - v.begin()) == e.gold;
      };
      acc.push_back(right(plain)), acc_norm.push_back(right(norm));
      acc_bytes.push_back(right(by_bytes));
      values.push_back(plain);
    }
    TaskOptions options;
    int64_t seen = 0;
    options.likelihood.batch_size = 2;
    options.on_item = [&](const TaskItemResult& item) {
      ASSERT_EQ(item.index, seen);
      const size_t i = static_cast<size_t>(seen++);
      for (size_t c = 0; c < values[i].size(); ++c) {
        EXPECT_NEAR(item.likelihoods[c].log_prob, values[i][c], 1e-3);
      }
      EXPECT_EQ(item.scores[0].second, acc[i]);
      EXPECT_EQ(item.scores[1].second, acc_norm[i]);
      EXPECT_EQ(item.scores[2].second, acc_bytes[i]);
    };
    const TaskResult r = evaluate_task(model, *bytes_, task, options);
    EXPECT_EQ(seen, 5);
    EXPECT_FALSE(r.partial());
    ASSERT_EQ(r.metrics.size(), 3u);
    const std::vector<double>* columns[] = {&acc, &acc_norm, &acc_bytes};
    const char* names[] = {"acc", "acc_norm", "acc_bytes"};
    for (size_t m = 0; m < 3; ++m) {
      double mean = 0, squares = 0;
      for (const double v : *columns[m]) mean += v / 5;
      for (const double v : *columns[m]) squares += (v - mean) * (v - mean);
      EXPECT_EQ(r.metrics[m].name, names[m]);
      EXPECT_NEAR(r.metrics[m].value, mean, 1e-12);
      EXPECT_NEAR(r.metrics[m].standard_error, std::sqrt(squares / 4 / 5), 1e-12);
    }
  }
}

TEST_F(Tasks, OfEqualChoicesTheFirstIsTaken) {
  const Task task = load("boolq", R"({"ctx": "One", "choices": ["two", "two"], "gold": 0})"
                                  "\n"
                                  R"({"ctx": "One", "choices": ["two", "two"], "gold": 1})");
  Model model = byte_model("mamba2");
  const TaskResult r = evaluate_task(model, *bytes_, task);
  ASSERT_EQ(r.metrics.size(), 1u);
  EXPECT_EQ(r.metrics[0].value, 0.5);
  EXPECT_EQ(r.metrics[0].standard_error, 0.5);
}

TEST_F(Tasks, ContextsAreScoredByTheSameTarget) {
  const Task task =
      load("wsc273", R"({"contexts": ["the cup was full so the cup", "the cup was full so the )"
                     R"(bottle"], "target": " was put away.", "gold": 1})");
  Model model = byte_model("mamba1");
  const double a = log_prob(model, "the cup was full so the cup", " was put away.");
  const double b = log_prob(model, "the cup was full so the bottle", " was put away.");
  TaskOptions options;
  options.on_item = [&](const TaskItemResult& item) {
    EXPECT_NEAR(item.likelihoods[0].log_prob, a, 1e-3);
    EXPECT_NEAR(item.likelihoods[1].log_prob, b, 1e-3);
    EXPECT_EQ(item.predicted, a >= b ? 0 : 1);
  };
  const TaskResult r = evaluate_task(model, *bytes_, task, options);
  EXPECT_EQ(r.metrics[0].value, a >= b ? 0 : 1);
  EXPECT_TRUE(std::isnan(r.metrics[0].standard_error));  // of one item
}

TEST_F(Tasks, LambadaAsksForTheGreedyContinuation) {
  Model model = byte_model("mamba1");
  Generator generator(model);
  Session session = test::prefilled(generator, bytes_->encode("I said"));
  GenerateOptions greedy;
  greedy.sampling.temperature = 0;
  greedy.max_tokens = 1;
  const int32_t next = generator.generate(session, greedy)[0].ids[0];
  Task task = load("lambada_openai", R"({"ctx": "I said", "target": " no"})"
                                     "\n"
                                     R"({"ctx": "I said", "target": " yes"})");
  task.items[1].pairs[0].second = std::string(1, static_cast<char>(next));
  const TaskResult r = evaluate_task(model, *bytes_, task);
  ASSERT_EQ(r.metrics.size(), 2u);
  EXPECT_EQ(r.metrics[0].name, "perplexity");
  const double mean = (log_prob(model, "I said", " no") +
                       log_prob(model, "I said", task.items[1].pairs[0].second)) /
                      2;
  EXPECT_NEAR(r.metrics[0].value, std::exp(-mean), 1e-3 * std::exp(-mean));
  EXPECT_EQ(r.metrics[1].name, "acc");
  EXPECT_EQ(r.metrics[1].value, 0.5);
}

TEST_F(Tasks, AreCutToTheLimitAndStopWhereAsked) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += json_line(kExamples[static_cast<size_t>(i % 5)]);
  EXPECT_EQ(load("piqa", text, 7).items.size(), 7u);
  EXPECT_EQ(load("piqa", text, 100).items.size(), 40u);
  // Behind the limit nothing is read.
  EXPECT_EQ(load("piqa", json_line(kExamples[0]) + "not JSON", 1).items.size(), 1u);
  const Task task = load("piqa", text);
  Model model = byte_model("mamba1");
  TaskOptions options;
  options.likelihood.batch_size = 1;
  options.progress = [](int64_t done, int64_t total) {
    EXPECT_EQ(total, 40);
    return done < 18;
  };
  int64_t seen = 0;
  options.on_item = [&](const TaskItemResult&) { ++seen; };
  const TaskResult r = evaluate_task(model, *bytes_, task, options);
  EXPECT_TRUE(r.partial());
  EXPECT_EQ(r.items, 16);  // four runs of four batches
  EXPECT_EQ(seen, 16);
  EXPECT_EQ(r.metrics.size(), 3u);
  options.progress = [](int64_t, int64_t) { return false; };
  const TaskResult none = evaluate_task(model, *bytes_, task, options);
  EXPECT_EQ(none.items, 0);
  EXPECT_TRUE(none.metrics.empty());
}

TEST_F(Tasks, CountItemsThatAreCut) {
  const Task task = load("piqa", json_line(kExamples[2]) + json_line(kExamples[0]));
  Model model = byte_model("mamba1");
  TaskOptions options;
  options.likelihood.max_length = 20;
  EXPECT_EQ(evaluate_task(model, *bytes_, task, options).truncated, 1);
}

TEST_F(Tasks, RefuseWhatIsNotAnItem) {
  const std::string good = json_line(kExamples[0]);
  EXPECT_TRUE(refuses("piqa", good + "{\"ctx\": \"x\"", {"piqa.jsonl, line 2"}));
  EXPECT_TRUE(refuses("piqa", good + "\n" + good, {"line 2"}));
  EXPECT_TRUE(refuses("piqa", "[1]", {"an object", "line 1"}));
  EXPECT_TRUE(refuses("piqa", "", {"empty file"}));
  EXPECT_TRUE(refuses("piqa", R"({"choices": ["a", "b"], "gold": 0})", {"ctx", "line 1"}));
  EXPECT_TRUE(refuses("piqa", R"({"ctx": "", "choices": ["a", "b"], "gold": 0})", {"ctx", "none"}));
  EXPECT_TRUE(refuses("piqa", R"({"ctx": "x", "gold": 0})", {"choices"}));
  EXPECT_TRUE(
      refuses("piqa", R"({"ctx": "x", "choices": ["a"], "gold": 0})", {"2..64", "choices"}));
  EXPECT_TRUE(refuses("piqa", R"({"ctx": "x", "choices": ["a", ""], "gold": 0})", {"empty"}));
  EXPECT_TRUE(refuses("piqa", R"({"ctx": "x", "choices": ["a", 3], "gold": 0})", {"texts"}));
  EXPECT_TRUE(refuses("piqa", R"({"ctx": "x", "choices": "ab", "gold": 0})", {"texts"}));
  EXPECT_TRUE(refuses("piqa", good + R"({"ctx": "x", "choices": ["a", "b"], "gold": 2})",
                      {"gold", "2", "line 2"}));
  EXPECT_TRUE(
      refuses("piqa", R"({"ctx": "x", "choices": ["a", "b"], "gold": -1})", {"gold", "-1"}));
  EXPECT_TRUE(refuses("piqa", R"({"ctx": "x", "choices": ["a", "b"]})", {"gold"}));
  EXPECT_TRUE(
      refuses("piqa", "{\"ctx\": \"\xff\", \"choices\": [\"a\", \"b\"], \"gold\": 0}", {"line 1"}));
  EXPECT_TRUE(refuses("wsc273", R"({"contexts": ["a", "b"], "gold": 0})", {"target"}));
  EXPECT_TRUE(refuses("lambada_openai", R"({"ctx": "a", "choices": ["b"]})", {"target"}));
  EXPECT_TRUE(refuses("piqa", std::string(5 << 20, ' '), {"bytes"}));
}

TEST_F(Tasks, AreFoundByName) {
  EXPECT_EQ(task_names().size(), 9u);
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"hellaswag", "'mmlu'"},
                               [&] { load_task("mmlu", folder_.path()); }));
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"boolq.jsonl", "no such file"},
                               [&] { load_task("boolq", folder_.path()); }));
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"folder", "nowhere"},
                               [&] { load_task("boolq", folder_ / "nowhere"); }));
  write(folder_ / "boolq.jsonl.xz", "x");
  EXPECT_TRUE(test::fails_with(ErrorCode::kBadFile, {"xz -dk"},
                               [&] { load_task("boolq", folder_.path()); }));
  write(folder_ / "winograd_wsc273.jsonl", R"({"contexts": ["a", "b"], "target": "c", "gold": 0})");
  EXPECT_EQ(load_task("wsc273", folder_.path()).items[0].id, "0");
}

// By lm_eval.api.metrics of lm-evaluation-harness 0.4.13 over the same numbers.
TEST(TaskMetrics, AreThoseOfTheHarness) {
  const TaskMetric ppl = perplexity_metric({-1.0, -2.5, -0.5, -4.0, -3.25}, 2);
  EXPECT_NEAR(ppl.value, 9.487735836358526, 1e-12 * ppl.value);
  EXPECT_NEAR(ppl.standard_error, 6.9671073141643936, 1e-10);
  EXPECT_EQ(perplexity_metric({-1.0, -2.5, -0.5, -4.0, -3.25}, 1).standard_error,
            ppl.standard_error);
  const TaskMetric acc = mean_metric("acc", {1, 0, 0, 1, 1});
  EXPECT_NEAR(acc.value, 0.6, 1e-15);
  EXPECT_NEAR(acc.standard_error, 0.24494897427831783, 1e-15);
  EXPECT_TRUE(std::isnan(perplexity_metric({-1.0}, 1).standard_error));
}

// By Python's random module.
TEST(PythonRandom, IsPythons) {
  PythonRandom zero(0);
  EXPECT_EQ(zero.next_word(), 3626764237u);
  EXPECT_EQ(zero.next_word(), 1654615998u);
  PythonRandom ninety_nine(99);
  ninety_nine.next_double();
  EXPECT_EQ(ninety_nine.next_double(), 0.20007544457494542);
  PythonRandom seven(7);
  for (int i = 0; i < 1300; ++i) seven.next_word();  // past two refills
  EXPECT_EQ(seven.next_word(), 4175743836u);
}

}  // namespace
}  // namespace mamba
