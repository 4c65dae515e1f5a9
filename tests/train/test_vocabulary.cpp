// SPDX-License-Identifier: Apache-2.0
// A model whose vocabulary grows when a run starts from it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "formats/safetensors.h"
#include "mamba/model.h"
#include "model/model_io.h"
#include "train/run_setup.h"
#include "train/small_run.h"

namespace mamba {
namespace {

using test::fails_with;
using test::SmallRun;
using test::write_text;

// A trained model in "first"; the options then start a new run from it.
SmallRun& trained(SmallRun& run, bool tied) {
  Config config = read_config(run.folder() / "config.json");
  config.tie_embeddings = tied;
  write_text(run.options.model_config, write_config(config));
  run.options.max_steps = 3;
  run.options.output_dir = run.out("first");
  train(run.options);
  run.options.init_from = run.out("first");
  run.options.model_config = "";
  run.options.output_dir = run.out("second");
  return run;
}

std::vector<float> tensor(const Network& net, const std::string& name) {
  for (size_t i = 0; i < net.table().specs().size(); ++i) {
    const ParamSpec& spec = net.table().specs()[i];
    if (spec.name != name) continue;
    std::vector<float> values(static_cast<size_t>(spec.count));
    net.get_rows(static_cast<int>(i), 0, spec.shape[0], values.data());
    return values;
  }
  return {};
}

std::unique_ptr<Network> load(const std::string& folder, int64_t rows, int64_t from,
                              uint64_t seed) {
  Config config = read_config(folder);
  config.vocab_size = rows;
  auto net = std::make_unique<Network>(config, Device::create({"cpu", 1}), Product::kF32);
  load_weights(*net, folder, false, {from, seed});
  return net;
}

TEST(Vocabulary, KeepsOldRowsAndStartsNewOnesNearTheirMean) {
  for (const bool tied : {true, false}) {
    SmallRun run;
    const std::string folder = trained(run, tied).options.init_from;
    const auto old = load(folder, 256, 0, 0), grown = load(folder, 301, 256, 5);
    const auto again = load(folder, 301, 256, 5), other = load(folder, 301, 256, 6);
    for (const ParamSpec& spec : old->table().specs()) {
      const std::vector<float> before = tensor(*old, spec.name), after = tensor(*grown, spec.name);
      EXPECT_TRUE(std::equal(before.begin(), before.end(), after.begin())) << spec.name;
      EXPECT_TRUE(after == tensor(*again, spec.name)) << spec.name;
      const bool grows = spec.shape[0] == 256 && spec.matrix;
      EXPECT_EQ(after.size() > before.size(), grows) << spec.name;
      EXPECT_EQ(after != tensor(*other, spec.name), grows) << spec.name;
      if (!grows) continue;
      for (size_t d = 0; d < 16; ++d) {
        double mean = 0, square = 0;
        for (size_t r = 0; r < 256; ++r) mean += double(before[r * 16 + d]) / 256;
        for (size_t r = 0; r < 256; ++r) square += std::pow(double(before[r * 16 + d]) - mean, 2);
        const double deviation = std::sqrt(square / 256);
        for (size_t r = 256; r < 301; ++r) {
          // Noise of a hundredth of the deviation: within five times of it.
          EXPECT_NEAR(after[r * 16 + d], mean, 0.05 * deviation);
          EXPECT_NE(after[r * 16 + d], after[(r - 1) * 16 + d]);
        }
      }
    }
  }
}

TEST(Vocabulary, GrowsByTheFlagAndGoesOn) {
  for (const bool tied : {true, false}) {
    SmallRun run;
    trained(run, tied).options.vocab_size = 301;
    int64_t grown_from = 0;
    TrainCallbacks callbacks;
    callbacks.on_start = [&](const TrainPlan& plan) { grown_from = plan.grown_from; };
    const TrainResult result = train(run.options, callbacks);
    EXPECT_EQ(result.status, TrainStatus::kFinished);
    EXPECT_TRUE(std::isfinite(result.last.loss));
    EXPECT_EQ(grown_from, 256);
    EXPECT_EQ(Model::load(run.out("second")).config().vocab_size, 301);
    // The run goes on from its own checkpoint with the same flag.
    run.options.init_from = "";
    run.options.resume = true;
    EXPECT_EQ(train(run.options).status, TrainStatus::kFinished);
  }
}

TEST(Vocabulary, GrowsByAConfiguration) {
  SmallRun run;
  trained(run, true);
  Config config = read_config(run.out("first"));
  config.vocab_size = 264;
  write_text(run.out("larger.json"), write_config(config));
  run.options.model_config = run.out("larger.json");
  EXPECT_EQ(prepare_run(run.options, true).plan.grown_from, 256);
  train(run.options);
  EXPECT_EQ(Model::load(run.out("second")).config().vocab_size, 264);
}

TEST(Vocabulary, AutoIsTheTokenizersInWholeEights) {
  SmallRun run;
  run.options.vocab_size = kVocabAuto;
  EXPECT_EQ(prepare_run(run.options, true).plan.config.vocab_size, 256);
  trained(run, true);
  run.options.vocab_size = kVocabAuto;
  const RunSetup setup = prepare_run(run.options, true);
  EXPECT_EQ(setup.plan.config.vocab_size, 256);
  EXPECT_EQ(setup.plan.grown_from, 0);
}

TEST(Vocabulary, AutoFitsATokenizerOfWords) {
  const char* data = std::getenv("MAMBA_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "set MAMBA_TEST_DATA to a folder with tokenizers/";
  SmallRun run;
  trained(run, true).options.vocab_size = kVocabAuto;
  run.options.tokenizer = std::string(data) + "/tokenizers/gpt-neox-20b";
  const RunSetup setup = prepare_run(run.options, true);
  EXPECT_EQ(setup.plan.config.vocab_size, 50280);  // 50,277 ids in whole eights
  EXPECT_EQ(setup.plan.grown_from, 256);
}

TEST(Vocabulary, RefusesToShrink) {
  SmallRun run;
  trained(run, true).options.vocab_size = 301;
  train(run.options);
  run.options.init_from = run.out("second");
  run.options.output_dir = run.out("third");
  run.options.vocab_size = 300;
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument,
                         {"--vocab-size", "at least the 301 tokens", "got 300", "only grow"},
                         [&] { train(run.options); }));
  run.options.vocab_size = kVocabAuto;
  EXPECT_TRUE(
      fails_with(ErrorCode::kInvalidArgument, {"301", "got 256"}, [&] { train(run.options); }));
}

}  // namespace
}  // namespace mamba
