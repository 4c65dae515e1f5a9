// SPDX-License-Identifier: Apache-2.0
// Training on packed documents and on responses: a packed row is its documents one by one, prompts
// have no loss, and the mean is over targets, however an update is cut into batches.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "formats/weight_files.h"
#include "model/cases.h"
#include "model/network.h"
#include "support/random.h"
#include "tokenizer/bpe_trainer.h"
#include "train/checkpoint.h"
#include "train/held_out.h"
#include "train/row_buffer.h"
#include "train/small_run.h"

namespace mamba {
namespace {

using test::fails_with;
using test::ScratchFolder;
using test::SmallRun;
using test::write_text;

std::unique_ptr<Network> make_network(Config config) {
  config.vocab_size = 256;
  auto net = std::make_unique<Network>(config, Device::create({"cpu", 2}), Product::kF32);
  net->table().initialize(config, 3, net->parameters().as<float>());
  test::Random random(9);
  for (const ParamSpec& spec : net->table().specs()) {
    float* values = net->parameters().as<float>() + spec.offset;
    for (int64_t i = 0; i < spec.count; ++i)
      values[i] += static_cast<float>(random.uniform(-.2, .2));
  }
  net->parameters_changed(false);
  return net;
}

std::vector<float> gradients(Network& net) {
  const float* from = net.gradients().as<float>();
  return {from, from + net.trained().count};
}

// Largest difference, relative to the largest gradient.
double differ(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::fabs(double(a[i]) - double(b[i])));
    scale = std::max(scale, std::fabs(double(a[i])));
  }
  return difference / scale;
}

// Prompts and texts of 1 to 30 letters.
void write_documents(const std::string& path, int64_t count) {
  std::string lines;
  for (int64_t d = 0; d < count; ++d) {
    std::string text;
    for (int64_t i = 0; i < 1 + d * 11 % 30; ++i) text += static_cast<char>('a' + (d + i * i) % 26);
    lines += d % 3 == 0 ? Json{{"prompt", text}, {"response", text + "."}}.dump()
                        : Json{{"text", text}}.dump();
    lines += "\n";
  }
  write_text(path, lines);
}

TEST(Documents, APackedRowIsItsDocumentsOneByOne) {
  const ScratchFolder folder;
  write_documents(folder / "d.jsonl", 20);
  const auto tokenizer = make_tokenizer("bytes");
  constexpr int64_t kL = 64;
  DataSet data({folder / "d.jsonl"}, {}, *tokenizer, "--data",
               {kL, Packing::kDocuments, DataOrder::kShuffled, 3, {}});
  const int64_t B = data.sequences();
  ASSERT_GT(B, 2);
  RowBuffer rows(B, kL, true);
  for (int64_t row = 0; row < B; ++row) data.read(row, rows.row(row));
  const Batch packed = rows.batch(0, B);
  for (const Config& config : {test::small_mamba1(), test::small_mamba2()}) {
    const auto net = make_network(config);
    for (const StepOptions& options : {StepOptions{1, Recompute::kNone}, {3, Recompute::kBlock}}) {
      net->zero_gradients();
      const double scale = 1.0 / static_cast<double>(rows.targets());
      const LossSum sum = net->forward_backward(packed, scale, options);
      const std::vector<float> whole = gradients(*net);
      net->zero_gradients();
      LossSum single;
      int64_t documents = 0;
      for (int64_t i = 0; i < B * kL; ++i) {
        if (packed.ids[i] < 0) continue;
        int64_t end = i + 1;  // of the document that begins at i
        while (end % kL != 0 && packed.doc_ids[end] == packed.doc_ids[i]) ++end;
        const LossSum one =
            net->forward_backward({1, end - i, packed.ids + i, packed.targets + i}, scale);
        single.nll += one.nll;
        single.targets += one.targets;
        ++documents;
        i = end - 1;
      }
      EXPECT_GT(documents, 15);
      EXPECT_EQ(single.targets, sum.targets);
      EXPECT_EQ(single.targets, rows.targets());
      EXPECT_NEAR(single.nll, sum.nll, 1e-5 * sum.nll);
      // Sums of the same terms in another order, in f32.
      EXPECT_LT(differ(whole, gradients(*net)), 1e-5) << config.mixer << options.segments;
    }
  }
}

TEST(Documents, PromptsHaveNoLoss) {
  // One response to all prompts, which are random: were they scored too, 8 of 11 targets would cost
  // about ln 26 = 3.3 nats each and the mean stay above 2.
  SmallRun run;
  std::string lines;
  for (int64_t d = 0; d < 200; ++d) {
    std::string prompt;
    for (int64_t i = 0; i < 8; ++i) prompt += static_cast<char>('a' + (d * d * 7 + i * d * 3) % 26);
    lines += Json{{"prompt", prompt}, {"response", "XYZ"}}.dump() + "\n";
  }
  write_text(run.out("chat.jsonl"), lines);
  run.options.data = run.options.valid = {run.out("chat.jsonl")};
  run.options.packing = Packing::kDocuments;
  run.options.max_steps = 60;
  std::vector<TrainProgress> steps;
  TrainCallbacks callbacks;
  callbacks.on_step = [&](const TrainProgress& p) { steps.push_back(p); };
  TrainPlan plan;
  callbacks.on_start = [&](const TrainPlan& p) { plan = p; };
  const TrainResult result = train(run.options, callbacks);
  EXPECT_LT(result.last.loss, 0.5);
  EXPECT_EQ(result.eval.targets, 8 * 2 * 3);  // 8 rows of two documents of 11 tokens
  EXPECT_NEAR(result.eval.bits_per_byte, result.eval.loss / std::log(2.0), 1e-12);
  // Two documents of 11 tokens in a row of 24.
  for (const TrainProgress& p : steps) {
    EXPECT_EQ(p.targets, 4 * 2 * 3);
    EXPECT_DOUBLE_EQ(p.padding, 1 - 22.0 / 24);
  }
  EXPECT_EQ(plan.sources.front().documents, 200);
  EXPECT_EQ(plan.sources.front().scored, 600);
  EXPECT_DOUBLE_EQ(plan.padding, 1 - 22.0 / 24);
  const std::string card = test::file_content(run.options.output_dir + "/README.md");
  EXPECT_NE(card.find("2,200 tokens in 200 documents, 600 with a loss"), std::string::npos) << card;
  EXPECT_NE(card.find("8.3 % padding"), std::string::npos) << card;
}

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

// Batches of one update have different numbers of targets.
TEST(Documents, AccumulationEqualsTheLargerBatch) {
  for (const Packing packing : {Packing::kStream, Packing::kDocuments}) {
    SmallRun run;
    write_documents(run.out("d.jsonl"), 60);
    run.options.data = {run.out("d.jsonl")};
    run.options.packing = packing;
    run.options.max_steps = 5;
    run.options.adam_epsilon = 1e-3;  // see test_trainer.cpp
    run.options.output_dir = run.out("large");
    run.options.batch_size = 6;
    const TrainResult large = train(run.options);
    run.options.output_dir = run.out("small");
    run.options.batch_size = 1;
    run.options.gradient_accumulation_steps = 6;
    const TrainResult small = train(run.options);
    EXPECT_EQ(large.last.targets, small.last.targets);
    EXPECT_LT(large.last.targets, 6 * 24);
    EXPECT_NEAR(large.last.loss, small.last.loss, 1e-5 * large.last.loss);
    EXPECT_LT(weights_differ(run.out("large"), run.out("small")), 1e-5);
  }
}

TEST(Documents, AnUpdateWithoutATargetChangesNothing) {
  SmallRun run;
  // 24 windows of prompt for one of response, in order.
  std::string lines = Json{{"prompt", std::string(24 * 24, 'p')}, {"response", "r"}}.dump() + "\n";
  write_text(run.out("d.jsonl"), lines);
  run.options.data = {run.out("d.jsonl")};
  run.options.valid = {};
  run.options.data_order = DataOrder::kSequential;
  run.options.batch_size = 1;
  run.options.max_steps = 25;
  run.options.save_steps = 1;
  std::vector<TrainProgress> steps;
  TrainCallbacks callbacks;
  callbacks.on_step = [&](const TrainProgress& p) { steps.push_back(p); };
  EXPECT_EQ(train(run.options, callbacks).status, TrainStatus::kFinished);
  const auto weights = [&](int64_t step) {
    return test::file_content(run.options.output_dir + "/" + checkpoint_name(step) +
                              "/model.safetensors");
  };
  EXPECT_TRUE(weights(1) == weights(23));
  EXPECT_FALSE(weights(23) == weights(24));
  EXPECT_TRUE(weights(24) == weights(25));
  EXPECT_EQ(steps[0].targets, 0);
  EXPECT_EQ(steps[0].loss, 0);
  EXPECT_EQ(steps[0].grad_norm, 0);
  EXPECT_EQ(steps[23].targets, 1);
  EXPECT_EQ(steps[24].loss, steps[23].loss);
  EXPECT_EQ(test::timeless_metrics(run.options.output_dir).size(), 25u);
}

// A tokenizer of 300 tokens with an EOS, in a folder.
void write_tokenizer(const std::string& folder) {
  std::filesystem::create_directory(folder);
  BpeTrainer trainer({300, 2, {"<|endoftext|>"}});
  trainer.add(test::sample_text(2000));
  trainer.end_text();
  write_text(folder + "/tokenizer.json", trainer.train(nullptr));
  write_text(folder + "/tokenizer_config.json", R"({"eos_token": "<|endoftext|>"})");
}

TEST(Documents, TrainsWithATokenizerOfWords) {
  for (const Packing packing : {Packing::kStream, Packing::kDocuments}) {
    SmallRun run;
    write_tokenizer(run.out("tokenizer"));
    run.options.tokenizer = run.out("tokenizer");
    run.options.vocab_size = kVocabAuto;
    std::string lines;
    for (int64_t d = 0; d < 50; ++d) lines += Json{{"text", test::sample_text(90)}}.dump() + "\n";
    write_text(run.out("d.jsonl"), lines);
    run.options.data = run.options.valid = {run.out("d.jsonl")};
    run.options.packing = packing;
    run.options.bptt_segments = 5;
    const TrainResult result = train(run.options);
    EXPECT_EQ(result.status, TrainStatus::kFinished);
    EXPECT_GT(result.eval.targets, 0);
    // A token stands for several bytes: bits a byte are fewer than bits a token.
    EXPECT_GT(result.eval.bits_per_byte, 0);
    EXPECT_LT(result.eval.bits_per_byte, 0.6 * result.eval.loss / std::log(2.0));
  }
}

// Fine-tuning and going on take the tokenizer of the model and of the run without being told.
TEST(Documents, TheTokenizerGoesWithTheModel) {
  SmallRun run;
  write_tokenizer(run.out("words"));
  TrainOptions& o = run.options;
  o.tokenizer = run.out("words");
  o.vocab_size = kVocabAuto;
  o.max_steps = 4;
  o.save_steps = 2;
  train(o);
  const auto words = load_tokenizer(o.tokenizer);
  EXPECT_EQ(load_tokenizer(o.output_dir)->fingerprint(), words->fingerprint());
  o.tokenizer = "auto";
  o.model_config = "";
  o.vocab_size = 0;
  o.init_from = o.output_dir;
  o.output_dir = run.out("tuned");
  o.save_total_limit = 1;  // the checkpoint that it goes on from is removed on the way
  o.warmup_steps = 0;
  const TrainPlan plan = plan_train(o);
  EXPECT_EQ(plan.tokenizer, o.init_from);
  EXPECT_EQ(plan.tokenizer_from, "--init-from");
  EXPECT_EQ(plan.tokenizer_size, words->vocab_size());
  o.lr_schedule = LrSchedule::kConstant;
  train(o);
  EXPECT_EQ(load_tokenizer(o.output_dir)->fingerprint(), words->fingerprint());
  std::filesystem::remove(o.output_dir + "/tokenizer.json");
  o.init_from = "";
  o.resume = true;
  o.max_steps = 8;
  EXPECT_EQ(plan_train(o).tokenizer_from, "--resume");
  EXPECT_EQ(train(o).status, TrainStatus::kFinished);
  EXPECT_EQ(load_tokenizer(o.output_dir)->fingerprint(), words->fingerprint());
  EXPECT_EQ(load_tokenizer(o.output_dir + "/checkpoint-00000008")->fingerprint(),
            words->fingerprint());
  o.tokenizer = "bytes";
  EXPECT_TRUE(test::fails_with(
      ErrorCode::kInvalidArgument,
      {"--tokenizer bytes", "the " + std::to_string(words->vocab_size()) + " ids of", "leave"},
      [&] { train(o); }));
}

// Evaluations in segments carry the state within documents and not across them.
TEST(Documents, EvaluationInSegmentsEqualsTheWhole) {
  SmallRun run;
  write_documents(run.out("d.jsonl"), 40);
  run.options.data = run.options.valid = {run.out("d.jsonl")};
  run.options.packing = Packing::kDocuments;
  run.options.seq_len = 60;
  const auto tokenizer = make_tokenizer("bytes");
  DataSet valid(run.options.valid, {}, *tokenizer, "--valid",
                {60, Packing::kDocuments, DataOrder::kSequential, 0, {}});
  for (const Config& config : {test::small_mamba1(), test::small_mamba2()}) {
    const auto net = make_network(config);
    EvalReport whole, parts;
    HeldOut(run.options, *net, valid, *tokenizer).evaluate(nullptr, &whole);
    for (const int64_t segments : {2, 7, 60}) {
      TrainOptions options = run.options;
      options.bptt_segments = segments;
      HeldOut(options, *net, valid, *tokenizer).evaluate(nullptr, &parts);
      EXPECT_EQ(parts.targets, whole.targets);
      EXPECT_NEAR(parts.loss, whole.loss, 1e-6 * whole.loss) << segments;
    }
  }
}

TEST(Documents, TrainsOnConversationsInBothPackings) {
  SmallRun run;
  std::string lines;
  for (int i = 0; i < 60; ++i) {
    const std::string number = std::to_string(i % 7);
    const Json talk = {{{"role", "user"}, {"content", "say " + number}},
                       {{"role", "assistant"}, {"content", number + number}}};
    lines += Json{{"messages", talk}}.dump() + "\n";
  }
  write_text(run.out("talk.jsonl"), lines);
  run.options.data = run.options.valid = {run.out("talk.jsonl")};
  run.options.max_steps = 3;
  run.options.warmup_steps = 0;
  run.options.seq_len = 64;
  for (const Packing packing : {Packing::kStream, Packing::kDocuments}) {
    for (const std::string choice : {"", "chatml"}) {
      run.options.packing = packing;
      run.options.chat_template = choice;
      run.options.output_dir = run.out(packing_name(packing) + choice);
      const TrainPlan plan = plan_train(run.options);
      // " 33\nUser:", and "33<|im_end|>".
      EXPECT_EQ(plan.sources[0].scored, 60 * (choice.empty() ? 9 : 12));
      const TrainResult result = train(run.options);
      EXPECT_EQ(result.status, TrainStatus::kFinished);
      EXPECT_GT(result.eval.targets, 0);
      // The folder knows how to talk; without a choice it is as the tokenizer was.
      const std::string written = run.options.output_dir + "/chat_template.jinja";
      EXPECT_EQ(std::filesystem::exists(written), !choice.empty());
      EXPECT_EQ(ChatTemplate::load(run.options.output_dir).stops(),
                ChatTemplate::load("", choice).stops());
      EXPECT_EQ(load_tokenizer(run.options.output_dir)->name(), "bytes");
      EXPECT_EQ(std::filesystem::exists(result.checkpoint + "/chat_template.jinja"),
                !choice.empty());
    }
  }
  // Resumed without it, the checkpoint's own goes on; another one is named.
  run.options.resume = true;
  run.options.chat_template = "";
  EXPECT_EQ(train(run.options).status, TrainStatus::kFinished);
  EXPECT_EQ(ChatTemplate::load(run.options.output_dir).stops(),
            ChatTemplate::load("", "chatml").stops());
  run.options.chat_template = "zephyr";
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument,
                         {"--resume", "expected --chat-template", "got zephyr", "leave"},
                         [&] { train(run.options); }));
  run.options.resume = false;
  run.options.chat_template = "chat-ml";
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"chat template", "chatml", "'chat-ml'"},
                         [&] { plan_train(run.options); }));
}

TEST(Documents, RefusesHeldOutDataWithoutALoss) {
  SmallRun run;
  write_text(run.out("v.jsonl"),
             Json{{"prompt", std::string(500, 'p')}, {"response", "r"}}.dump() + "\n");
  run.options.valid = {run.out("v.jsonl")};
  EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"--valid", "v.jsonl", "first 8 sequences"},
                         [&] { train(run.options); }));
  run.options.packing = Packing::kDocuments;
  run.options.max_steps = 2;
  run.options.warmup_steps = 0;
  EXPECT_EQ(train(run.options).eval.targets, 1);
}

}  // namespace
}  // namespace mamba
