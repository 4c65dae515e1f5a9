// SPDX-License-Identifier: Apache-2.0
// A run that was stopped and resumed equals one that was not, to the last bit; what would make it
// differ is refused.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "train/checkpoint.h"
#include "train/small_run.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using test::fails_with;
using test::file_content;
using test::SmallRun;
using test::timeless_metrics;
using test::write_text;

// Runs until `step` is done, then stops as Ctrl-C would.
TrainResult run_until(const TrainOptions& options, int64_t step) {
  int64_t done = 0;
  TrainCallbacks callbacks;
  callbacks.on_step = [&](const TrainProgress& p) { done = p.step; };
  callbacks.should_stop = [&] { return done >= step; };
  return train(options, callbacks);
}

struct Variant {
  std::string mixer;
  bool bf16;
  int threads;
  int64_t accumulation;
  DataOrder order;
  int64_t segments = 1;
  Recompute recompute = Recompute::kNone;
  std::vector<std::string> freeze = {};
};

class ResumeTest : public testing::TestWithParam<Variant> {};

TEST_P(ResumeTest, ContinuesBitForBit) {
  SmallRun run(GetParam().mixer);
  run.options.bf16 = GetParam().bf16;
  run.options.threads = GetParam().threads;
  run.options.gradient_accumulation_steps = GetParam().accumulation;
  run.options.data_order = GetParam().order;
  run.options.bptt_segments = GetParam().segments;
  run.options.recompute = GetParam().recompute;
  run.options.freeze = GetParam().freeze;
  run.options.output_dir = run.out("whole");
  EXPECT_EQ(train(run.options).status, TrainStatus::kFinished);

  run.options.output_dir = run.out("parts");
  const TrainResult first = run_until(run.options, 7);
  EXPECT_EQ(first.status, TrainStatus::kInterrupted);
  EXPECT_EQ(first.checkpoint, run.out("parts") + "/checkpoint-00000007");
  run.options.resume = true;
  EXPECT_EQ(run_until(run.options, 18).last.step, 18);
  // The other number of threads from here on: results do not depend on it.
  run.options.threads = 3 - GetParam().threads;
  const TrainResult last = train(run.options);
  EXPECT_EQ(last.status, TrainStatus::kFinished);

  for (const char* name :
       {"model.safetensors", "config.json", "checkpoint-00000030/model.safetensors",
        "checkpoint-00000030/optimizer.safetensors"}) {
    const std::string whole = file_content(run.out("whole") + "/" + name);
    EXPECT_FALSE(whole.empty()) << name;
    EXPECT_TRUE(whole == file_content(run.out("parts") + "/" + name)) << name;
  }
  EXPECT_EQ(timeless_metrics(run.out("whole")), timeless_metrics(run.out("parts")));
  EXPECT_EQ(timeless_metrics(run.out("whole")).size(), 33u);  // 30 steps and 3 evaluations
}

INSTANTIATE_TEST_SUITE_P(All, ResumeTest,
                         testing::Values(Variant{"mamba1", false, 1, 1, DataOrder::kShuffled},
                                         Variant{"mamba1", false, 2, 3, DataOrder::kShuffled},
                                         Variant{"mamba1", true, 1, 3, DataOrder::kShuffled},
                                         Variant{"mamba1", true, 2, 1, DataOrder::kSequential},
                                         Variant{"mamba2", false, 1, 3, DataOrder::kShuffled},
                                         Variant{"mamba2", false, 2, 1, DataOrder::kSequential},
                                         Variant{"mamba2", true, 1, 1, DataOrder::kShuffled},
                                         Variant{"mamba2", true, 2, 3, DataOrder::kShuffled},
                                         Variant{"mamba1",
                                                 false,
                                                 1,
                                                 3,
                                                 DataOrder::kShuffled,
                                                 5,
                                                 Recompute::kBlock,
                                                 {"*.embeddings.*", "*.0.*"}},
                                         Variant{"mamba2",
                                                 false,
                                                 2,
                                                 2,
                                                 DataOrder::kShuffled,
                                                 3,
                                                 Recompute::kScan,
                                                 {"*norm*", "*.in_proj.*"}}),
                         [](const testing::TestParamInfo<Variant>& info) {
                           const Variant& v = info.param;
                           return v.mixer + (v.bf16 ? "_bf16" : "_f32") + "_threads" +
                                  std::to_string(v.threads) + "_accumulate" +
                                  std::to_string(v.accumulation) + "_" + data_order_name(v.order) +
                                  (v.segments > 1 ? "_segments" + std::to_string(v.segments) : "") +
                                  (v.freeze.empty() ? "" : "_frozen");
                         });

// With two batches an update, should_stop is asked twice a step, and before each of the two batches
// of the evaluations at steps 10, 20 and 30.
TEST(Resume, ContinuesWhereverItWasStopped) {
  SmallRun run;
  run.options.gradient_accumulation_steps = 2;
  run.options.output_dir = run.out("whole");
  train(run.options);
  struct Stop {
    int64_t question, step;
    size_t lines;  // of training and evaluation
  };
  for (const Stop& stop :
       {Stop{1, 0, 0}, Stop{2, 1, 1}, Stop{3, 1, 1}, Stop{19, 9, 9}, Stop{20, 10, 10},
        Stop{21, 10, 10}, Stop{22, 10, 11}, Stop{23, 10, 11}, Stop{64, 30, 32}, Stop{65, 30, 32}}) {
    SCOPED_TRACE(stop.question);
    run.options.output_dir = run.out(fmt::format("parts{}", stop.question));
    run.options.resume = false;
    int64_t asked = 0;
    TrainCallbacks callbacks;
    callbacks.should_stop = [&] { return ++asked >= stop.question; };
    const TrainResult first = train(run.options, callbacks);
    EXPECT_EQ(first.status, TrainStatus::kInterrupted);
    EXPECT_EQ(first.checkpoint, run.options.output_dir + "/" + checkpoint_name(stop.step));
    EXPECT_EQ(timeless_metrics(run.options.output_dir).size(), stop.lines);
    EXPECT_FALSE(fs::exists(run.options.output_dir + "/model.safetensors"));
    run.options.resume = true;
    EXPECT_EQ(train(run.options).status, TrainStatus::kFinished);
    EXPECT_TRUE(file_content(run.options.output_dir + "/model.safetensors") ==
                file_content(run.out("whole") + "/model.safetensors"));
    EXPECT_EQ(timeless_metrics(run.options.output_dir), timeless_metrics(run.out("whole")));
  }
}

// Small sources, so that epochs of each end at different steps.
TEST(Resume, ContinuesEveryKindOfData) {
  for (const Packing packing : {Packing::kStream, Packing::kDocuments}) {
    for (const std::vector<double>& weights : {std::vector<double>{}, {0.7, 0.3}, {2, 1, 0.5}}) {
      SCOPED_TRACE(fmt::format("{} {}", packing_name(packing), weights.size()));
      SmallRun run;
      std::string lines;
      for (int64_t d = 0; d < 90; ++d) {
        const std::string text = test::sample_text(3 + d * 7 % 40);
        lines += d % 2 == 0 ? Json{{"prompt", text}, {"response", "ok"}}.dump()
                            : Json{{"text", text}}.dump();
        lines += "\n";
      }
      write_text(run.out("d.jsonl"), lines);
      std::string tokens;
      for (const char c : test::sample_text(1500)) tokens += {c, '\0'};
      write_text(run.out("t.bin"), tokens);
      run.options.data = {run.out("d.jsonl"), run.out("t.bin"), run.out("valid")};
      if (weights.size() == 2) run.options.data.pop_back();
      run.options.data_weights = weights;
      run.options.packing = packing;
      run.options.valid = {run.out("d.jsonl")};
      run.options.gradient_accumulation_steps = 2;
      run.options.max_steps = 20;
      run.options.output_dir = run.out("whole");
      train(run.options);
      run.options.output_dir = run.out("parts");
      for (const int64_t stop : {1, 6, 11, 12, 19}) {
        EXPECT_EQ(run_until(run.options, stop).last.step, stop);
        run.options.resume = true;
      }
      EXPECT_EQ(train(run.options).status, TrainStatus::kFinished);
      EXPECT_TRUE(file_content(run.out("parts") + "/model.safetensors") ==
                  file_content(run.out("whole") + "/model.safetensors"));
      EXPECT_EQ(timeless_metrics(run.out("parts")), timeless_metrics(run.out("whole")));
    }
  }
}

// A run of 10 steps with checkpoints at 5 and 10, to be resumed with other options.
class StoppedRun : public testing::Test {
 protected:
  void SetUp() override {
    run_.options.lr_schedule = LrSchedule::kConstant;
    run_until(run_.options, 10);
    run_.options.resume = true;
  }
  testing::AssertionResult refuses(std::initializer_list<std::string> parts) {
    const std::string before = file_content(run_.options.output_dir + "/metrics.jsonl");
    const testing::AssertionResult refused =
        fails_with(ErrorCode::kInvalidArgument, parts, [&] { train(run_.options); });
    if (file_content(run_.options.output_dir + "/metrics.jsonl") != before) {
      return testing::AssertionFailure() << "the log was changed";
    }
    return refused;
  }
  SmallRun run_;
};

TEST_F(StoppedRun, MayBecomeLongerWhereTheRatesStay) {
  run_.options.max_steps = 40;
  EXPECT_EQ(train(run_.options).last.step, 40);
}

TEST_F(StoppedRun, RefusesAnotherCourseOfTheRate) {
  run_.options.lr_schedule = LrSchedule::kCosine;
  EXPECT_TRUE(
      refuses({"--lr-scheduler-type", "cosine", "constant", "the learning rate of step 4"}));
  run_.options.lr_schedule = LrSchedule::kConstant;
  run_.options.learning_rate = 2e-2;
  EXPECT_TRUE(refuses({"--learning-rate 0.02 instead of 0.01", "step 1 "}));
}

TEST_F(StoppedRun, RefusesWhatChangesTheSteps) {
  TrainOptions& o = run_.options;
  const TrainOptions same = o;
  o.batch_size = 5;
  EXPECT_TRUE(refuses({"--batch-size", "expected --batch-size 4", "got 5"}));
  o = same, o.seq_len = 12;
  EXPECT_TRUE(refuses({"--seq-len", "24", "12"}));
  o = same, o.bptt_segments = 2;
  EXPECT_TRUE(refuses({"--bptt-segments", "1", "2"}));
  o = same, o.freeze = {"*.D"};
  EXPECT_TRUE(refuses({"--freeze", "[]", "*.D"}));
  o = same, o.vocab_size = 300;
  EXPECT_TRUE(refuses({"--model-config", "a different one"}));
  o = same, o.vocab_size = 300, o.model_config = "";
  EXPECT_TRUE(refuses({"--vocab-size", "256", "300"}));
  o = same, o.seed = 12;
  EXPECT_TRUE(refuses({"--seed", "11", "12"}));
  o = same, o.bf16 = true;
  EXPECT_TRUE(refuses({"--bf16", "false", "true"}));
  o = same, o.weight_decay = 0.2;
  EXPECT_TRUE(refuses({"--weight-decay", "0.1", "0.2"}));
  o = same, o.data = {run_.out("valid")};
  EXPECT_TRUE(refuses({"--data", "6000", "900"}));
  o = same, o.packing = Packing::kDocuments;
  EXPECT_TRUE(refuses({"--data", "6000"}));
  o = same, o.data_weights = {1};
  EXPECT_TRUE(refuses({"--data-weights", "[]", "[1.0]"}));
  o = same, o.max_steps = 8, o.warmup_steps = 3;
  EXPECT_TRUE(refuses({"--max-steps", "at least the 10 steps", "got 8"}));
  o = same, o.init_from = run_.out("x");
  EXPECT_TRUE(refuses({"--init-from", "got both"}));
  Config other = read_config(same.model_config);
  other.n_layer = 3;
  write_text(run_.out("other.json"), write_config(other));
  o = same, o.model_config = run_.out("other.json");
  EXPECT_TRUE(refuses({"--model-config", "a different one"}));
}

TEST_F(StoppedRun, MayChangeWhatDoesNotMatter) {
  run_.options.model_config = "";  // that of the checkpoint
  run_.options.logging_steps = 7;
  run_.options.save_steps = 0;
  run_.options.recompute = Recompute::kBlock;
  run_.options.vocab_size = kVocabAuto;  // the 256 that it has
  run_.options.valid.clear();
  EXPECT_EQ(train(run_.options).status, TrainStatus::kFinished);
}

TEST_F(StoppedRun, ReadsCheckpointsFromBeforeThereWereTheseFlags) {
  const std::string path = run_.options.output_dir + "/checkpoint-00000010/trainer_state.json";
  Json json = Json::parse(file_content(path));
  for (const char* flag : {"--bptt-segments", "--freeze", "--packing", "--data-weights"})
    json["options"].erase(flag);
  write_text(path, json.dump());
  run_.options.bptt_segments = 2;
  EXPECT_TRUE(refuses({"--bptt-segments", "1", "2"}));
  run_.options.bptt_segments = 1;
  EXPECT_EQ(train(run_.options).status, TrainStatus::kFinished);
}

TEST_F(StoppedRun, GoesBackPastADamagedCheckpoint) {
  const std::string newest = run_.options.output_dir + "/checkpoint-00000010";
  const std::string file = newest + "/optimizer.safetensors";
  write_text(file, file_content(file).substr(0, 100));
  std::vector<std::string> notices;
  TrainPlan plan;
  TrainCallbacks callbacks;
  callbacks.on_notice = [&](const std::string& text) { notices.push_back(text); };
  callbacks.on_start = [&](const TrainPlan& p) { plan = p; };
  EXPECT_EQ(train(run_.options, callbacks).status, TrainStatus::kFinished);
  EXPECT_EQ(plan.first_step, 5);
  ASSERT_EQ(notices.size(), 2u);
  EXPECT_NE(notices[0].find("checkpoint-00000010 is damaged"), std::string::npos) << notices[0];
  EXPECT_TRUE(fs::exists(newest + ".damaged"));
  EXPECT_NO_THROW(read_checkpoint(newest));  // written anew on the way
}

TEST_F(StoppedRun, GoesOnWithADamagedLog) {
  const std::string path = run_.options.output_dir + "/metrics.jsonl";
  write_text(path, file_content(path) + std::string(40, '\0'));
  std::vector<std::string> notices;
  TrainCallbacks callbacks;
  callbacks.on_notice = [&](const std::string& text) { notices.push_back(text); };
  EXPECT_EQ(train(run_.options, callbacks).status, TrainStatus::kFinished);
  ASSERT_EQ(notices.size(), 1u);
  EXPECT_NE(notices[0].find("1 unreadable line"), std::string::npos) << notices[0];
  EXPECT_EQ(timeless_metrics(run_.options.output_dir).size(), 33u);
}

TEST_F(StoppedRun, IgnoresAFolderThatWasNeverFinished) {
  const std::string torn = run_.options.output_dir + "/.checkpoint-00000015.mamba-tmp-1-0";
  fs::create_directory(torn);
  write_text(torn + "/model.safetensors", "half");
  TrainPlan plan;
  TrainCallbacks callbacks;
  callbacks.on_start = [&](const TrainPlan& p) { plan = p; };
  train(run_.options, callbacks);
  EXPECT_EQ(plan.first_step, 10);
  EXPECT_FALSE(fs::exists(torn));
}

TEST_F(StoppedRun, GoesOnFromANamedCheckpoint) {
  run_.options.resume_path = run_.options.output_dir + "/checkpoint-00000005";
  EXPECT_TRUE(refuses({"--resume", "no newer checkpoint", "checkpoint-00000010"}));
  run_.options.output_dir = run_.out("elsewhere");
  const TrainResult result = train(run_.options);
  EXPECT_EQ(result.status, TrainStatus::kFinished);
  EXPECT_EQ(timeless_metrics(run_.options.output_dir).size(), 25u + 3u);
}

TEST_F(StoppedRun, RefusesToStartOverWhatIsThere) {
  run_.options.resume = false;
  EXPECT_TRUE(refuses({"--output-dir", "checkpoint-00000010", "--resume"}));
}

TEST_F(StoppedRun, FinishesARunThatLacksOnlyItsModel) {
  train(run_.options);
  const std::string model = run_.options.output_dir + "/model.safetensors";
  const std::string before = file_content(model);
  fs::remove(model);
  const TrainResult again = train(run_.options);
  EXPECT_EQ(again.last.step, 30);
  EXPECT_GT(again.eval.targets, 0);
  EXPECT_TRUE(file_content(model) == before);
}

TEST(Resume, SaysThatThereIsNoCheckpoint) {
  SmallRun run;
  run.options.resume = true;
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"--resume", "expected a checkpoint in", "got none"},
                         [&] { train(run.options); }));
  EXPECT_FALSE(fs::exists(run.options.output_dir));
}

}  // namespace
}  // namespace mamba
