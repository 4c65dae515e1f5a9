// SPDX-License-Identifier: Apache-2.0
// What models say of the kernels that they run, --backend, and tune; on a GPU too where there is
// one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "bench/tune.h"
#include "device/choice_file.h"
#include "mamba/model.h"
#include "mamba/state.h"
#include "model/explain.h"
#include "model/network.h"
#include "model/two_mixers.h"
#include "support/expect_error.h"

namespace mamba::test {
namespace {

using nlohmann::json;

Model model_on(const std::string& device, const std::string& mixer, DType dtype,
               const std::string& backend = "auto", const std::string& folder = "") {
  ModelOptions options;
  options.device = device;
  options.dtype = dtype;
  options.backend = backend;
  options.choices_folder = folder;
  return Model::create(config_of(mixer, 64, 3), 5, options);
}

// Logits after eight steps of `batch` rows.
std::vector<float> steps_of(Model& model, int64_t batch) {
  State state = model.new_state(batch);
  std::vector<float> logits(static_cast<size_t>(batch * kVocab));
  const std::vector<int32_t> ids = tokens_of(8 * batch);
  for (int64_t t = 0; t < 8; ++t) model.step(ids.data() + t * batch, state, logits.data());
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

// The way of the only class of an operation in a phase, and how often it was called.
std::pair<std::string, int64_t> way_in(const json& phase, const std::string& operation) {
  std::pair<std::string, int64_t> found = {"", 0};
  for (const json& c : phase["choices"]) {
    if (c["operation"] != operation) continue;
    EXPECT_EQ(found.second, 0) << operation << " twice";
    found = {c["chosen"], c["calls"]};
  }
  return found;
}

void expect_sound(const json& explained) {
  EXPECT_EQ(explained["phases"].size(), 2u);
  for (const json& phase : explained["phases"]) {
    EXPECT_FALSE(phase["choices"].empty());
    for (const json& c : phase["choices"]) {
      const auto& ways = c["alternatives"];
      EXPECT_NE(std::find(ways.begin(), ways.end(), c["chosen"]), ways.end()) << c;
      EXPECT_EQ(c["why"] == text_of(Why::kOnlyOne), ways.size() == 1) << c;
      EXPECT_GT(c["calls"], 0) << c;
    }
  }
}

TEST(Explain, OnTheCpuEverythingRunsInOneWay) {
  for (const char* device : {"cpu", "ref", "ref64", "cpu:onednn"}) {
    for (const char* mixer : {"mamba1", "mamba2"}) {
      SCOPED_TRACE(std::string(device) + " " + mixer);
      Model model = model_on(device, mixer, DType::kF32);
      const json explained = json::parse(model.explain(2));
      expect_sound(explained);
      EXPECT_EQ(explained["backend"], "auto");
      EXPECT_EQ(explained["device"], model.device_name());
      const json& decode = explained["phases"][1];
      EXPECT_EQ(decode["batch"], 2);
      const std::string step = std::string(mixer) + "_step";
      EXPECT_EQ(way_in(decode, step), std::pair(std::string("sequence"), int64_t{3}));
      EXPECT_EQ(way_in(explained["phases"][0], step).second, 0);
      EXPECT_EQ(steps_of(model, 2), steps_of(model, 2));  // it leaves nothing behind
    }
  }
}

TEST(Explain, SaysWhatOneDnnMultiplies) {
  Model model = model_on("cpu:onednn", "mamba1", DType::kBF16);
  const json explained = json::parse(model.explain());
  for (const json& c : explained["phases"][0]["choices"]) {
    EXPECT_EQ(c["operation"] == "linear", c["chosen"] == "onednn") << c;
  }
}

TEST(Backend, ReferenceIsTheSameOnTheCpu) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    Model a = model_on("cpu", mixer, DType::kBF16);
    Model b = model_on("cpu", mixer, DType::kBF16, "reference");
    EXPECT_EQ(steps_of(a, 3), steps_of(b, 3));
    EXPECT_EQ(json::parse(b.explain())["backend"], "reference");
  }
}

TEST(Backend, WhatCannotRunIsOneClearError) {
  for (const char* device : {"cpu", "ref", "ref64", "cpu:base"}) {
    EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument,
                           {"[--backend]", "mamba1_step", device, "use --backend auto"},
                           [&] { model_on(device, "mamba1", DType::kF32, "fused"); }));
  }
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"auto, reference or fused", "fast"},
                         [] { model_on("cpu", "mamba1", DType::kF32, "fast"); }));
}

TEST(Tune, ClassesAreOctavesAndRunsOfRows) {
  const ChoiceRow row =
      class_of(linear_request({4, 3072, 768, DType::kBF16, DType::kBF16, Product::kBF16, true}), 3);
  EXPECT_EQ(row.rows.low, 3);
  EXPECT_EQ(row.rows.high, 4);
  EXPECT_EQ(row.size.low, 2048);
  EXPECT_EQ(row.size.high, 4095);
  EXPECT_EQ(row.depth.low, 512);
  EXPECT_EQ(row.depth.high, 1023);
  const ChoiceRow step = class_of(mamba1_step_request(64, 1536, DType::kBF16, false, false), 33);
  EXPECT_EQ(step.size.high, kNoLimit);
  EXPECT_EQ(step.depth.low, 1024);
}

TEST(Tune, TheUsualWayStaysUnlessAnotherIsClearlyFaster) {
  ChoiceRow row = {};
  row.microseconds[static_cast<int>(Way::kRow)] = 100;
  row.microseconds[static_cast<int>(Way::kTensor)] = 99.8f;
  EXPECT_EQ(winner_of(row, Way::kRow), Way::kRow);
  EXPECT_EQ(winner_of(row, Way::kTensor), Way::kTensor);
  row.microseconds[static_cast<int>(Way::kTensor)] = 99;
  EXPECT_EQ(winner_of(row, Way::kRow), Way::kTensor);
  row.microseconds[static_cast<int>(Way::kGeneral)] = 98.9f;
  EXPECT_EQ(winner_of(row, Way::kRow), Way::kGeneral);
  EXPECT_EQ(winner_of(row, Way::kPlain), Way::kGeneral);  // which was not measured
}

TEST(Tune, FreshRowsReplaceThoseOfTheirClass) {
  ChoiceRow a = class_of(scan_step_request(1, 64, DType::kF32, true), 1);
  ChoiceRow b = class_of(scan_step_request(2, 64, DType::kF32, true), 2);
  a.winner = Way::kLanes, b.winner = Way::kLanes;
  ChoiceRow again = a;
  again.winner = Way::kChannels;
  const std::vector<ChoiceRow> all = merged({again}, {a, b});
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].winner, Way::kChannels);
  EXPECT_EQ(all[1].rows.low, 2);
}

TEST(Tune, NothingIsToChooseOnACpu) {
  ModelOptions options;
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument,
                         {"[tune] expected a GPU", "nothing to choose"},
                         [&] { tune(config_of("mamba1", 64, 1), options, {}, {}); }));
}

class GpuChoices : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (cuda::inventory().count == 0) GTEST_SKIP() << "no GPU: " << cuda::inventory().why_none;
    std::printf("backends: cuda:0\n");
  }
};
INSTANTIATE_TEST_SUITE_P(Mixers, GpuChoices, testing::Values("mamba1", "mamba2"));

TEST_P(GpuChoices, BackendsAgreeAndAreTold) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t batch : {int64_t{1}, int64_t{3}, int64_t{20}}) {
      Model reference = model_on("cuda", GetParam(), dtype, "reference");
      const std::vector<float> expected = steps_of(reference, batch);
      for (const char* backend : {"auto", "fused"}) {
        Model model = model_on("cuda", GetParam(), dtype, backend);
        // Sums run in another order; in bf16 what is between the kernels is rounded elsewhere.
        EXPECT_LT(relative(steps_of(model, batch), expected), dtype == DType::kF32 ? 1e-4 : 0.02)
            << backend << " " << dtype_name(dtype) << " " << batch;
        const json explained = json::parse(model.explain(batch));
        expect_sound(explained);
        const auto [way, calls] = way_in(explained["phases"][1], GetParam() + "_step");
        EXPECT_EQ(calls, 3);
        EXPECT_TRUE(std::string(backend) == "auto" || way.starts_with("fused")) << way;
      }
      const json explained = json::parse(reference.explain(batch));
      EXPECT_EQ(way_in(explained["phases"][1], GetParam() + "_step").first, "sequence");
      for (const json& c : explained["phases"][1]["choices"]) {
        const std::string way = c["chosen"];
        EXPECT_TRUE(way == "general" || way == "sequence" || way == "lanes") << c;
      }
    }
  }
}

// States in bf16 through the parts of a step, which more than 16 rows of Mamba-1 take.
TEST_P(GpuChoices, NarrowStatesTakeEveryBackend) {
  const auto run = [&](const char* backend) {
    ModelOptions options;
    options.device = "cuda";
    options.state_dtype = DType::kBF16;
    options.backend = backend;
    Model model = Model::create(config_of(GetParam(), 64, 3), 5, options);
    return steps_of(model, 20);
  };
  const std::vector<float> expected = run("reference");
  for (const char* backend : {"auto", "fused"}) {
    // A value near the middle of two of bf16 may go either way: 2^-9 of a state, in three layers.
    EXPECT_LT(relative(run(backend), expected), 24 * std::ldexp(1.0, -9)) << backend;
  }
}

TEST(GpuBackend, BlocksHaveNoFusedStep) {
  if (cuda::inventory().count == 0) GTEST_SKIP() << "no GPU: " << cuda::inventory().why_none;
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument,
                         {"[--backend]", "mamba1_step", "in blocks", "use --backend auto"},
                         [] { model_on("cuda", "mamba1", DType::kQ8_0, "fused"); }));
}

TEST_P(GpuChoices, TuneWritesWhatIsThenChosen) {
  ModelOptions options;
  options.device = "cuda";
  options.dtype = DType::kBF16;
  TuneOptions tuning;
  tuning.batches = {1, 4};
  tuning.rounds = 1, tuning.steps = 3;
  const Config config = config_of(GetParam(), 64, 3);
  ChoiceFile file;
  file.rows = tune(config, options, {}, tuning);
  ASSERT_FALSE(file.rows.empty());
  // What is known is not measured again.
  EXPECT_TRUE(tune(config, options, file.rows, tuning).empty());
  Model plain = model_on("cuda", GetParam(), DType::kBF16);
  file.card = plain.network().device().card();
  file.hardware = plain.network().device().hardware();
  const ScratchFolder folder;
  write_file_atomic(folder / choice_file_name(file.card), to_json_text(file));
  Model tuned = model_on("cuda", GetParam(), DType::kBF16, "auto", folder.path());
  EXPECT_EQ(tuned.network().device().choices().tuned.count, static_cast<int64_t>(file.rows.size()));
  const json explained = json::parse(tuned.explain(4));
  int64_t by_tune = 0;
  for (const json& c : explained["phases"][1]["choices"]) {
    if (c["why"] != text_of(Why::kTuned)) continue;
    ++by_tune;
    EXPECT_TRUE(c["step_microseconds"].contains(c["chosen"])) << c;
  }
  EXPECT_GT(by_tune, 0);
  EXPECT_LT(relative(steps_of(tuned, 4), steps_of(plain, 4)), 0.02);
  std::vector<std::string> warnings;
  options.choices_folder = folder.path();
  options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  write_file_atomic(folder / choice_file_name(file.card), "{");
  Model damaged = Model::create(config, 5, options);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("tune' again"), std::string::npos) << warnings[0];
}

}  // namespace
}  // namespace mamba::test
