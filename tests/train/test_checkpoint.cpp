// SPDX-License-Identifier: Apache-2.0
// Checkpoints: whole or not there, damage is noticed, old ones go last. And the log beside them.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>

#include "model/cases.h"
#include "support/close.h"
#include "support/expect_error.h"
#include "support/random.h"
#include "train/checkpoint.h"
#include "train/run_log.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using test::fails_with;
using test::ScratchFolder;

struct Training {
  std::unique_ptr<Network> network;
  std::unique_ptr<AdamW> optimizer;
  explicit Training(uint64_t seed)
      : network(std::make_unique<Network>(test::small_mamba1(), Device::create({"cpu", 1}),
                                          Product::kF32)),
        optimizer(std::make_unique<AdamW>(*network, AdamwOptions{0.9, 0.95, 1e-8, 0.1})) {
    test::Random random(seed);
    float* p = network->parameters().as<float>();
    for (const ParamSpec& spec : network->table().specs()) {
      for (int64_t i = spec.offset; i < spec.offset + spec.count; ++i) {
        p[i] = static_cast<float>(random.uniform(-1, 1));
        optimizer->exp_avg().as<float>()[i] = static_cast<float>(random.uniform(-1, 1));
        optimizer->exp_avg_sq().as<float>()[i] = static_cast<float>(random.uniform(0, 1));
      }
    }
  }
};

TrainerState state_at(int64_t step) {
  return {step, 8 * step, 12.5, 1.25, 0.5, {{"--seed", "18446744073709551615"}}};
}

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void overwrite(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

TEST(Checkpoint, ReadsBackEveryBit) {
  const ScratchFolder folder;
  Training run(1), other(2);
  const std::string path =
      save_checkpoint(folder.path(), state_at(7), *run.network, *run.optimizer);
  EXPECT_EQ(path, folder / "checkpoint-00000007");
  const TrainerState state = read_checkpoint(path);
  EXPECT_EQ(state.step, 7);
  EXPECT_EQ(state.samples, 56);
  EXPECT_EQ(state.seconds, 12.5);
  EXPECT_EQ(state.loss, 1.25);
  EXPECT_EQ(state.grad_norm, 0.5);
  EXPECT_EQ(state.options["--seed"], "18446744073709551615");
  load_checkpoint(path, *other.network, *other.optimizer);
  const int64_t count = run.network->table().flat_count();
  EXPECT_TRUE(test::same_bits(run.network->parameters().as<float>(),
                              other.network->parameters().as<float>(), count));
  EXPECT_TRUE(test::same_bits(run.optimizer->exp_avg().as<float>(),
                              other.optimizer->exp_avg().as<float>(), count));
  EXPECT_TRUE(test::same_bits(run.optimizer->exp_avg_sq().as<float>(),
                              other.optimizer->exp_avg_sq().as<float>(), count));
}

TEST(Checkpoint, LeavesNothingButTheCheckpoint) {
  const ScratchFolder folder;
  Training run(1);
  save_checkpoint(folder.path(), state_at(7), *run.network, *run.optimizer);
  save_checkpoint(folder.path(), state_at(7), *run.network, *run.optimizer);  // replaces it
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "checkpoint-00000007"), {}), 5);
}

TEST(Checkpoint, ListsWholeNamesInOrderOfSteps) {
  const ScratchFolder folder;
  for (const char* name :
       {"checkpoint-00000020", "checkpoint-00000003", "checkpoint-123456789", "checkpoint-", "x",
        "checkpoint-12.damaged", ".checkpoint-00000009.mamba-tmp-77-0", "checkpoint--5"}) {
    fs::create_directory(folder / name);
  }
  overwrite(folder / "checkpoint-00000099", "a file");
  std::vector<int64_t> steps;
  for (const CheckpointEntry& entry : list_checkpoints(folder.path())) steps.push_back(entry.step);
  EXPECT_EQ(steps, (std::vector<int64_t>{3, 20, 123456789}));
  EXPECT_TRUE(list_checkpoints(folder / "absent").empty());
}

TEST(Checkpoint, RemovesWhatKilledRunsLeft) {
  const ScratchFolder folder;
  fs::create_directory(folder / "checkpoint-00000003");
  fs::create_directories(folder / ".checkpoint-00000009.mamba-tmp-77-0/x");
  overwrite(folder / ".README.md.mamba-tmp-77-1", "half");
  overwrite(folder / ".other", "not ours");
  remove_leftovers(folder.path());
  EXPECT_TRUE(fs::exists(folder / "checkpoint-00000003"));
  EXPECT_TRUE(fs::exists(folder / ".other"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);
}

TEST(Checkpoint, KeepsTheNewest) {
  const ScratchFolder folder;
  for (int64_t step : {1, 2, 30, 400})
    fs::create_directories(folder / checkpoint_name(step) + "/x");
  remove_old_checkpoints(folder.path(), 0);
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 4u);
  remove_old_checkpoints(folder.path(), 2);
  const std::vector<CheckpointEntry> left = list_checkpoints(folder.path());
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].step, 30);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);
}

TEST(Checkpoint, NoticesEveryKindOfDamage) {
  const ScratchFolder folder;
  Training run(1);
  const std::string path =
      save_checkpoint(folder.path(), state_at(7), *run.network, *run.optimizer);
  const auto read = [&] { read_checkpoint(path); };
  for (const char* name : {"config.json", "model.safetensors", "optimizer.safetensors"}) {
    const std::string file = path + "/" + name, whole = content(file);
    overwrite(file, whole.substr(0, whole.size() - 1));
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {name, "bytes", "damaged"}, read));
    for (const size_t at : {size_t{0}, whole.size() / 2, whole.size() - 1}) {
      std::string flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
      overwrite(file, flipped);
      EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {name, "hash", "damaged"}, read)) << at;
    }
    fs::remove(file);
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {name, "found nothing there"}, read));
    overwrite(file, whole);
    EXPECT_NO_THROW(read());
  }
}

TEST(Checkpoint, ACardIsAPartOfIt) {
  const ScratchFolder folder;
  Training run(1);
  const std::string path = save_checkpoint(folder.path(), state_at(7), *run.network, *run.optimizer,
                                           "bytes", "", "card");
  EXPECT_EQ(content(path + "/README.md"), "card");
  EXPECT_NO_THROW(read_checkpoint(path));
  overwrite(path + "/README.md", "Card");
  EXPECT_TRUE(
      fails_with(ErrorCode::kBadFile, {"README.md", "hash"}, [&] { read_checkpoint(path); }));
}

TEST(Checkpoint, TrustsNothingInTheState) {
  const ScratchFolder folder;
  Training run(1);
  const std::string path =
      save_checkpoint(folder.path(), state_at(7), *run.network, *run.optimizer);
  const std::string file = path + "/trainer_state.json", whole = content(file);
  const auto read = [&] { read_checkpoint(path); };
  const auto with = [&](auto change) {
    Json json = Json::parse(whole);
    change(json);
    overwrite(file, json.dump());
  };
  overwrite(file, whole.substr(0, whole.size() / 2));
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"trainer_state.json"}, read));
  with([](Json& j) { j["format"] = 3; });
  EXPECT_TRUE(fails_with(ErrorCode::kUnsupported, {"format 2", "3"}, read));
  with([](Json& j) { j["step"] = -3; });
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"step", "-3"}, read));
  with([](Json& j) { j.erase("samples"); });
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"samples"}, read));
  with([](Json& j) { j["files"] = Json::object(); });
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"files"}, read));
  with([](Json& j) { j["files"]["../x"] = {{"bytes", 1}, {"hash", "0"}}; });
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"../x"}, read));
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"--resume", "checkpoint folder"},
                         [&] { read_checkpoint(folder.path()); }));
}

TrainProgress progress_at(int64_t step) {
  TrainProgress p;
  p.step = step;
  p.loss = 3.0 / static_cast<double>(step);
  p.learning_rate = 1e-3;
  return p;
}

TEST(RunLog, DropsLinesPastTheStepAndTornOnes) {
  const ScratchFolder folder;
  const std::string path = folder / "metrics.jsonl";
  std::string before;
  {
    RunLog log(path, 0);
    for (int64_t step = 10; step <= 30; step += 10) log.write(progress_at(step));
    EvalReport report;
    report.step = 30;
    report.loss = 1.5;
    log.write(report);
    before = content(path);
    log.write(progress_at(40));
  }
  std::ofstream(path, std::ios::app) << "{\"step\":50,\"lo";
  RunLog log(path, 30);
  EXPECT_EQ(content(path), before);
  ASSERT_EQ(log.curves().loss.size(), 3u);
  EXPECT_EQ(log.curves().loss[2].value, 3.0 / 30);  // numbers are written so that they read back
  ASSERT_EQ(log.curves().eval_loss.size(), 1u);
  EXPECT_EQ(log.curves().eval_loss[0].step, 30);
  log.write(progress_at(40));
  EXPECT_EQ(log.curves().loss.size(), 4u);
  EXPECT_GT(content(path).size(), before.size());
}

TEST(RunLog, LeavesOutWhatItCannotRead) {
  const ScratchFolder folder;
  const std::string path = folder / "metrics.jsonl";
  {
    RunLog log(path, 0);
    for (int64_t step = 10; step <= 20; step += 10) log.write(progress_at(step));
    log.sync();
  }
  const std::string good = content(path);
  const std::string first = good.substr(0, good.find('\n') + 1), second = good.substr(first.size());
  const std::string nuls(100, '\0');
  overwrite(path, nuls + "\nold\n5\n" + first + "{\"step\":15,\"loss\":1}\n\n" + second + nuls);
  RunLog log(path, 20);
  EXPECT_EQ(log.unreadable(), 6);
  EXPECT_EQ(content(path), good);
  EXPECT_EQ(log.curves().loss.size(), 2u);
  EXPECT_EQ(log.curves().learning_rate.size(), 2u);
}

TEST(RunLog, StartsEmptyForANewRun) {
  const ScratchFolder folder;
  const std::string path = folder / "metrics.jsonl";
  overwrite(path, "old\n");
  RunLog log(path, 0);
  EXPECT_EQ(content(path), "");
  EXPECT_EQ(log.unreadable(), 0);
}

}  // namespace
}  // namespace mamba
