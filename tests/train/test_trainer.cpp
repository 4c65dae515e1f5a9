// SPDX-License-Identifier: Apache-2.0
// A whole run: it learns, writes what it promises, and stops without harm when something is wrong.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <functional>
#include <limits>

#include "formats/safetensors.h"
#include "formats/weight_files.h"
#include "mamba/model.h"
#include "model/size_estimate.h"
#include "train/checkpoint.h"
#include "train/small_run.h"
#include "train/trainer.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using test::fails_with;
using test::file_content;
using test::SmallRun;
using test::timeless_metrics;
using test::write_text;

TEST(Trainer, LearnsAndWritesEverything) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    SmallRun run(mixer);
    run.options.max_steps = 60;
    run.options.save_total_limit = 2;
    run.options.command_line = "mamba-cpp train --data text";
    std::vector<TrainProgress> steps;
    std::vector<EvalReport> evals;
    TrainCallbacks callbacks;
    callbacks.on_step = [&](const TrainProgress& p) { steps.push_back(p); };
    callbacks.on_eval = [&](const EvalReport& r) { evals.push_back(r); };
    const TrainResult result = train(run.options, callbacks);
    ASSERT_EQ(result.status, TrainStatus::kFinished);
    ASSERT_EQ(steps.size(), 60u);
    // Before any learning, every byte is about as likely as any other.
    EXPECT_NEAR(steps.front().loss, std::log(256.0), 0.2);
    EXPECT_LT(steps.back().loss, 3.2);
    ASSERT_EQ(evals.size(), 6u);
    EXPECT_LT(evals.back().loss, evals.front().loss);
    EXPECT_EQ(evals.back().targets, 2 * 4 * 24);
    EXPECT_NEAR(evals.back().bits_per_byte, evals.back().loss / std::log(2.0), 1e-12);
    EXPECT_NEAR(evals.back().perplexity, std::exp(evals.back().loss), 1e-9);

    const std::string out = run.options.output_dir;
    EXPECT_EQ(list_checkpoints(out).size(), 2u);
    EXPECT_EQ(result.checkpoint, out + "/checkpoint-00000060");
    EXPECT_EQ(timeless_metrics(out).size(), 66u);
    EXPECT_NE(file_content(out + "/curves.svg").find("</svg>"), std::string::npos);
    const std::string card = file_content(out + "/README.md");
    EXPECT_NE(card.find("bits per byte"), std::string::npos);
    EXPECT_NE(card.find("mamba-cpp train --data text"), std::string::npos);
    EXPECT_NE(card.find("\ndatasets:\n- \"text\"\nmodel-index:\n- name: \"out\"\n"),
              std::string::npos);
    EXPECT_NE(card.find(fmt::format(
                  "- type: loss\n      name: \"loss (nats a token)\"\n      value: {:.6g}\n",
                  result.eval.loss)),
              std::string::npos)
        << card;
    // So has a checkpoint, which says how far it is.
    const std::string half = file_content(list_checkpoints(out).front().path + "/README.md");
    EXPECT_NE(half.find(fmt::format("after {} of 60 steps", list_checkpoints(out).front().step)),
              std::string::npos)
        << half;
    EXPECT_NE(half.find("loss of the last step"), std::string::npos);
    EXPECT_EQ(half.find("curves.svg"), std::string::npos);
    EXPECT_NO_THROW(read_checkpoint(result.checkpoint));
    // The model is one that others load.
    const Model model = Model::load(out);
    EXPECT_EQ(model.config().d_model, 16);
    EXPECT_TRUE(file_content(out + "/model.safetensors") ==
                file_content(result.checkpoint + "/model.safetensors"));
  }
}

// The largest difference between the weights of two model folders, relative to the largest weight.
double weights_differ(const std::string& a, const std::string& b) {
  const WeightFiles first(a), second(b);
  double difference = 0, scale = 0;
  for (const TensorInfo& tensor : first.tensors()) {
    std::vector<float> x(static_cast<size_t>(tensor.count())), y(x.size());
    read_to_f32(tensor, x.data());
    read_to_f32(second.get(tensor.name, tensor.shape), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      difference = std::max(difference, std::fabs(double(x[i]) - double(y[i])));
      scale = std::max(scale, std::fabs(double(x[i])));
    }
  }
  return difference / scale;
}

TEST(Trainer, AccumulationEqualsTheLargerBatch) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    SmallRun run(mixer);
    run.options.max_steps = 5;
    // Adam divides by the root of the second moment: with the usual 1e-8, a gradient that is zero
    // but for rounding moves a weight by a whole learning rate in either direction.
    run.options.adam_epsilon = 1e-3;
    run.options.output_dir = run.out("large");
    run.options.batch_size = 8;
    train(run.options);
    run.options.output_dir = run.out("small");
    run.options.batch_size = 2;
    run.options.gradient_accumulation_steps = 4;
    train(run.options);
    // Sums of 8 * 24 terms in another order: 1e-5 of the largest weight after five updates.
    EXPECT_LT(weights_differ(run.out("large"), run.out("small")), 1e-5) << mixer;
  }
}

TEST(Trainer, SegmentsAndRecomputationEqualTheWhole) {
  for (const char* mixer : {"mamba1", "mamba2"}) {
    SmallRun run(mixer);
    run.options.max_steps = 5;
    run.options.adam_epsilon = 1e-3;  // as above
    run.options.output_dir = run.out("whole");
    const TrainResult whole = train(run.options);
    run.options.recompute = Recompute::kBlock;
    run.options.output_dir = run.out("block");
    train(run.options);
    EXPECT_TRUE(file_content(run.out("whole") + "/model.safetensors") ==
                file_content(run.out("block") + "/model.safetensors"));
    run.options.bptt_segments = 7;  // 24 tokens in parts of 3 and 4
    run.options.output_dir = run.out("segments");
    const TrainResult segments = train(run.options);
    EXPECT_LT(weights_differ(run.out("whole"), run.out("segments")), 1e-5) << mixer;
    EXPECT_EQ(segments.eval.targets, whole.eval.targets);
    EXPECT_NEAR(segments.eval.loss, whole.eval.loss, 1e-5 * whole.eval.loss);
    EXPECT_EQ(segments.eval.bits_per_byte > 0, true);
  }
}

TEST(Trainer, LeavesFrozenTensorsAlone) {
  SmallRun run;
  run.options.max_steps = 5;
  run.options.save_steps = 1;
  run.options.freeze = {"backbone.embeddings.*", "backbone.layers.0.*"};
  TrainPlan plan;
  TrainCallbacks callbacks;
  callbacks.on_start = [&](const TrainPlan& p) { plan = p; };
  train(run.options, callbacks);
  const WeightFiles first(run.options.output_dir + "/checkpoint-00000001"),
      last(run.options.output_dir);
  const SafetensorsFile moments(run.options.output_dir +
                                "/checkpoint-00000005/optimizer.safetensors");
  int64_t trained = 0;
  for (const TensorInfo& tensor : last.tensors()) {
    const bool frozen = tensor.name.find("embeddings") != std::string::npos ||
                        tensor.name.find("layers.0") != std::string::npos;
    std::vector<float> x(static_cast<size_t>(tensor.count())), y(x.size());
    read_to_f32(tensor, x.data());
    read_to_f32(first.get(tensor.name, tensor.shape), y.data());
    EXPECT_EQ(x == y, frozen) << tensor.name;
    EXPECT_EQ(moments.find("exp_avg." + tensor.name) == nullptr, frozen) << tensor.name;
    EXPECT_EQ(moments.find("exp_avg_sq." + tensor.name) == nullptr, frozen) << tensor.name;
    if (!frozen) trained += tensor.count();
  }
  EXPECT_EQ(plan.trained_parameters, trained);
  EXPECT_LT(plan.optimizer_bytes, plan.parameter_bytes);
}

TEST(Trainer, StartsFromAnotherModel) {
  SmallRun run;
  run.options.max_steps = 10;
  run.options.output_dir = run.out("first");
  const TrainResult first = train(run.options);
  run.options.init_from = run.out("first");
  run.options.model_config = "";
  run.options.output_dir = run.out("second");
  double start = 0;
  TrainCallbacks callbacks;
  callbacks.on_step = [&](const TrainProgress& p) { start = p.step == 1 ? p.loss : start; };
  train(run.options, callbacks);
  EXPECT_LT(start, first.last.loss + 0.3);
  EXPECT_LT(start, 5.2);  // a fresh model starts at ln 256 = 5.5
}

TEST(Trainer, PlansWithoutWriting) {
  SmallRun run;
  run.options.output_dir = "";
  const TrainPlan plan = plan_train(run.options);
  EXPECT_EQ(plan.parameters, parameter_count(plan.config));
  EXPECT_EQ(plan.tokens_per_step, 4 * 24);
  EXPECT_EQ(plan.data_tokens, 6000);
  EXPECT_NEAR(plan.steps_per_epoch, (6000 - 1) / 24 / 4.0, 1e-9);
  EXPECT_EQ(plan.optimizer_bytes, 2 * plan.gradient_bytes);
  EXPECT_GT(plan.activation_bytes, 0);
  EXPECT_EQ(std::distance(fs::directory_iterator(run.folder().path()), {}), 3);
}

TEST(Trainer, PlansWhatTheNetworkNeeds) {
  std::vector<test::Case> cases = test::model_cases();
  Config wide = test::small_mamba2();
  wide.vocab_size = 70'001;  // logits are the largest scratch
  wide.n_layer = 3;
  cases.push_back({"wide", wide});
  for (const test::Case& c : cases) {
    SCOPED_TRACE(c.name);
    for (const Product product : {Product::kF32, Product::kBF16}) {
      std::unique_ptr<Device> device = Device::create();
      device->set_bf16_activations(true);
      Network network(c.config, std::move(device), product);
      int64_t segments = 0;
      for (const auto& [B, L] : {std::pair<int64_t, int64_t>{1, 1}, {3, 37}, {4, 600}}) {
        std::vector<std::string> freeze;
        if (++segments == 3) freeze = {"*.embeddings.*", "*.layers.0.*"};
        const StepOptions options = {std::min(segments, L),
                                     segments == 2 ? Recompute::kScan : Recompute::kBlock};
        network.freeze(frozen_by(network.table(), freeze));
        const MemoryPlan want = network.plan_training(B, L, options);
        const SizeEstimate got =
            estimate_sizes(c.config, network.device(), product, B, L, options, freeze);
        EXPECT_EQ(got.training.parameters, want.parameters);
        EXPECT_EQ(got.training.gradients, want.gradients);
        EXPECT_EQ(got.training.optimizer, want.optimizer);
        EXPECT_EQ(got.training.activations, want.activations);
        EXPECT_EQ(got.training.scratch, want.scratch);
        EXPECT_EQ(got.state_elements, network.state_elements());
        EXPECT_EQ(got.prefill, network.forward_bytes(1, 512));
      }
    }
  }
}

TEST(Trainer, PlansAModelLargerThanThisMachine) {
  SmallRun run;
  Config c = read_config(run.options.model_config);
  c.vocab_size = 16'777'216;
  c.d_model = 16384;
  write_text(run.out("config.json"), write_config(c));
  const RunSetup setup = prepare_run(run.options, true);
  EXPECT_GT(setup.plan.total_bytes(), int64_t{4} << 40);
  EXPECT_EQ(setup.network, nullptr);
  ASSERT_FALSE(setup.notices.empty());
  EXPECT_NE(setup.notices.back().find("this machine has"), std::string::npos);
}

TEST(Trainer, StopsWhenNumbersAreNoLongerFinite) {
  SmallRun run;
  run.options.max_steps = 12;
  run.options.save_steps = 4;
  train(run.options);
  const std::string good = file_content(run.options.output_dir + "/model.safetensors");
  // Weights with one NaN: the first loss is NaN.
  run.options.init_from = run.out("broken");
  fs::copy(run.options.output_dir, run.out("broken"), fs::copy_options::recursive);
  std::string bytes = good;
  bytes.replace(bytes.size() - 4, 4, std::string("\x00\x00\xc0\x7f", 4));
  write_text(run.out("broken") + "/model.safetensors", bytes);
  run.options.output_dir = run.out("next");
  const TrainResult result = train(run.options);
  EXPECT_EQ(result.status, TrainStatus::kDiverged);
  EXPECT_EQ(result.last.step, 1);
  EXPECT_FALSE(std::isfinite(result.last.loss));
  EXPECT_EQ(result.checkpoint, "");
  ASSERT_FALSE(result.norms.empty());
  EXPECT_FALSE(std::isfinite(result.norms.front().second));
  EXPECT_TRUE(list_checkpoints(run.options.output_dir).empty());
  EXPECT_FALSE(fs::exists(run.options.output_dir + "/model.safetensors"));
}

TEST(Trainer, NamesTheLastGoodCheckpointWhenItDiverges) {
  SmallRun run;
  run.options.learning_rate = 1e3;  // far too high: infinite within a few steps
  run.options.warmup_steps = 0;
  run.options.lr_schedule = LrSchedule::kConstant;
  run.options.max_grad_norm = 0;
  run.options.weight_decay = 1e3;  // each step multiplies weights by 1 - 1e6
  run.options.save_steps = 1;
  const TrainResult result = train(run.options);
  ASSERT_EQ(result.status, TrainStatus::kDiverged);
  ASSERT_GT(result.last.step, 1);
  ASSERT_NE(result.checkpoint, "");
  EXPECT_NO_THROW(read_checkpoint(result.checkpoint));
  EXPECT_FALSE(fs::exists(run.options.output_dir + "/model.safetensors"));
}

// Files of this process may hold at most `bytes` while this lives, as if the disk were full.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    old_handler_ = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    rlimit limit = old_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &old_);
    signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int) = nullptr;
};

TEST(Trainer, LosesNothingOnAFullDisk) {
  SmallRun run;
  std::unique_ptr<FullDisk> full;
  TrainCallbacks callbacks;
  callbacks.on_step = [&](const TrainProgress& p) {
    if (p.step == 12) full = std::make_unique<FullDisk>(4000);
  };
  EXPECT_TRUE(fails_with(
      ErrorCode::kIo,
      {"checkpoint-00000015", "free some space", "go on with --resume from", "checkpoint-00000010"},
      [&] { train(run.options, callbacks); }));
  full.reset();
  const std::vector<CheckpointEntry> left = list_checkpoints(run.options.output_dir);
  ASSERT_EQ(left.size(), 2u);
  EXPECT_NO_THROW(read_checkpoint(left.back().path));
  for (const auto& entry : fs::directory_iterator(run.options.output_dir)) {
    EXPECT_NE(entry.path().filename().string()[0], '.') << entry.path();
  }
  run.options.resume = true;
  EXPECT_EQ(train(run.options).status, TrainStatus::kFinished);
}

TEST(Trainer, KeepsASecondRunOutOfItsFolder) {
  SmallRun run;
  TrainCallbacks callbacks;
  callbacks.on_step = [&](const TrainProgress& p) {
    if (p.step != 2) return;
    EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"--output-dir", "no other run uses"},
                           [&] { train(run.options); }));
  };
  EXPECT_EQ(train(run.options, callbacks).status, TrainStatus::kFinished);
}

struct BadInput {
  std::string name;
  ErrorCode code;
  std::vector<std::string> parts;
  std::function<void(SmallRun&)> change;
};

std::vector<BadInput> bad_inputs() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  using R = SmallRun;
  constexpr ErrorCode kArgument = ErrorCode::kInvalidArgument, kFile = ErrorCode::kBadFile;
  return {
      {"no data", kArgument, {"--data", "got none"}, [](R& r) { r.options.data.clear(); }},
      {"absent data",
       kFile,
       {"nope", "found nothing"},
       [](R& r) { r.options.data = {r.out("nope")}; }},
      {"weights without sources",
       kArgument,
       {"--data-weights", "each of the 1 paths", "got 2"},
       [](R& r) {
         r.options.data_weights = {1, 2};
       }},
      {"negative weight",
       kArgument,
       {"--data-weights", "-1"},
       [](R& r) { r.options.data_weights = {-1}; }},
      {"nan weight",
       kArgument,
       {"--data-weights", "nan"},
       [=](R& r) { r.options.data_weights = {nan}; }},
      {"weights of 0",
       kArgument,
       {"--data-weights", "above 0"},
       [](R& r) { r.options.data_weights = {0}; }},
      {"unknown dtype",
       kArgument,
       {"--data-dtype", "uint16, uint32", "int8"},
       [](R& r) { r.options.data_dtype = "int8"; }},
      {"ids of another tokenizer",
       kFile,
       {"x.bin", "0..255", "got 256 at token 0"},
       [](R& r) {
         write_text(r.out("valid"), "");
         std::filesystem::rename(r.out("valid"), r.out("x.bin"));
         write_text(r.out("x.bin"), std::string("\0\1", 2));
         r.options.data = {r.out("x.bin")};
       }},
      {"wrong line",
       kFile,
       {"x.jsonl, line 2", "the keys body"},
       [](R& r) {
         std::filesystem::rename(r.out("valid"), r.out("x.jsonl"));
         write_text(r.out("x.jsonl"), "\n{\"body\": 1}\n");
         r.options.data = {r.out("x.jsonl")};
       }},
      {"short data",
       kFile,
       {"--data", "at least 6001 tokens", "got 6000"},
       [](R& r) { r.options.seq_len = 6000; }},
      {"short valid",
       kFile,
       {"--valid", "at least 1001 tokens", "got 900"},
       [](R& r) { r.options.seq_len = 1000; }},
      {"no config",
       kArgument,
       {"--model-config", "got none"},
       [](R& r) { r.options.model_config = ""; }},
      {"unknown preset",
       kArgument,
       {"tiny", "hugest"},
       [](R& r) { r.options.model_config = "hugest"; }},
      {"config is text", kFile, {"text"}, [](R& r) { r.options.model_config = r.out("text"); }},
      {"vocabulary too small",
       kArgument,
       {"--tokenizer bytes", "256", "vocab_size 100"},
       [](R& r) {
         Config c = read_config(r.options.model_config);
         c.vocab_size = 100;
         write_text(r.out("config.json"), write_config(c));
       }},
      {"unknown tokenizer",
       ErrorCode::kBadFile,
       {"bytes", "words"},
       [](R& r) { r.options.tokenizer = "words"; }},
      {"no output",
       kArgument,
       {"--output-dir", "got none"},
       [](R& r) { r.options.output_dir = ""; }},
      {"output is a file",
       kArgument,
       {"--output-dir", "got a file"},
       [](R& r) { r.options.output_dir = r.out("text"); }},
      {"output in a file",
       ErrorCode::kIo,
       {"--output-dir", "create the folder"},
       [](R& r) { r.options.output_dir = r.out("text") + "/out"; }},
      {"no steps",
       kArgument,
       {"--max-steps", "1..", "got 0"},
       [](R& r) { r.options.max_steps = 0; }},
      {"negative batch",
       kArgument,
       {"--batch-size", "-1"},
       [](R& r) { r.options.batch_size = -1; }},
      {"huge batch",
       kArgument,
       {"--batch-size", "2147483648"},
       [](R& r) { r.options.batch_size = 65536, r.options.seq_len = 1 << 24; }},
      {"zero seq", kArgument, {"--seq-len", "got 0"}, [](R& r) { r.options.seq_len = 0; }},
      {"no accumulation",
       kArgument,
       {"--gradient-accumulation-steps", "got 0"},
       [](R& r) { r.options.gradient_accumulation_steps = 0; }},
      {"nan rate",
       kArgument,
       {"--learning-rate", "nan"},
       [=](R& r) { r.options.learning_rate = nan; }},
      {"zero rate",
       kArgument,
       {"--learning-rate", "above 0"},
       [](R& r) { r.options.learning_rate = 0; }},
      {"ratio above 1",
       kArgument,
       {"--min-lr-ratio", "0..1", "1.5"},
       [](R& r) { r.options.min_lr_ratio = 1.5; }},
      {"beta of 1",
       kArgument,
       {"--adam-beta2", "below 1", "got 1"},
       [](R& r) { r.options.adam_beta2 = 1; }},
      {"nan beta", kArgument, {"--adam-beta1", "nan"}, [=](R& r) { r.options.adam_beta1 = nan; }},
      {"zero epsilon",
       kArgument,
       {"--adam-epsilon", "above 0"},
       [](R& r) { r.options.adam_epsilon = 0; }},
      {"infinite decay",
       kArgument,
       {"--weight-decay", "inf"},
       [](R& r) { r.options.weight_decay = std::numeric_limits<double>::infinity(); }},
      {"negative norm",
       kArgument,
       {"--max-grad-norm", "-1"},
       [](R& r) { r.options.max_grad_norm = -1; }},
      {"long warm-up",
       kArgument,
       {"--warmup-steps", "at most --max-steps 30", "got 31"},
       [](R& r) { r.options.warmup_steps = 31; }},
      {"no logging",
       kArgument,
       {"--logging-steps", "got 0"},
       [](R& r) { r.options.logging_steps = 0; }},
      {"unknown device", kArgument, {"gpu", "cpu:base"}, [](R& r) { r.options.device = "gpu"; }},
      {"reference in f64", kArgument, {"ref64"}, [](R& r) { r.options.device = "ref64"; }},
      {"many threads", kArgument, {"threads", "100000"}, [](R& r) { r.options.threads = 100000; }},
      {"absent init", kFile, {"nowhere"}, [](R& r) { r.options.init_from = r.out("nowhere"); }},
      {"more memory than there is",
       ErrorCode::kOutOfMemory,
       {"GiB", "--batch-size or --seq-len"},
       [](R& r) {
         write_text(r.out("text"), std::string(40000, 'x'));
         write_text(r.out("valid"), std::string(40000, 'x'));
         r.options.batch_size = 65536, r.options.seq_len = 32768;
       }},
      {"a model larger than memory",
       ErrorCode::kOutOfMemory,
       {"GiB", "the weights"},
       [](R& r) {
         Config c = read_config(r.options.model_config);
         c.vocab_size = 16'777'216;
         c.d_model = 16384;
         write_text(r.out("config.json"), write_config(c));
       }},
  };
}

TEST(Trainer, RefusesBadInputAndWritesNothing) {
  for (const BadInput& bad : bad_inputs()) {
    SCOPED_TRACE(bad.name);
    SmallRun run;
    bad.change(run);
    const auto entries = std::distance(fs::directory_iterator(run.folder().path()), {});
    try {
      train(run.options);
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      const std::string message = e.what();
      EXPECT_STREQ(error_code_name(e.code()), error_code_name(bad.code)) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      for (const std::string& part : bad.parts) {
        EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
      }
    }
    EXPECT_EQ(std::distance(fs::directory_iterator(run.folder().path()), {}), entries);
  }
}

}  // namespace
}  // namespace mamba
