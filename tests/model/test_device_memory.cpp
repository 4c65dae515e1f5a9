// SPDX-License-Identifier: Apache-2.0
// Models whose device has a memory of its own: nothing of a pass over tokens, of states, weights
// and training reads or writes it but through the device, and the results are those of the CPU.
// GPUs, where there are some, are held to the reference.
#include <gtest/gtest.h>

#include <cmath>

#include "model/cases.h"
#include "model/model_io.h"
#include "model/network.h"
#include "support/close.h"
#include "support/expect_error.h"
#include "support/locked_memory.h"
#include "support/random.h"
#include "train/checkpoint.h"
#include "train/optimizer.h"

namespace mamba::test {
namespace {

constexpr int64_t kB = 3, kL = 21;

struct Tokens {
  std::vector<int32_t> ids, targets, documents;
  explicit Tokens(int64_t vocab) : documents(kB * kL, 0) {
    Random random(5);
    for (int64_t i = 0; i < kB * kL; ++i) {
      ids.push_back(static_cast<int32_t>(random.below(vocab)));
      targets.push_back(static_cast<int32_t>(random.below(vocab)));
    }
    targets[2] = -1;
    for (size_t t = 8; t < kL; ++t) documents[t] = 1;
    for (size_t t = 17; t < kL; ++t) ids[kL + t] = targets[kL + t] = -1;
  }
  Batch batch(bool with_documents) const {
    return {kB, kL, ids.data(), targets.data(), with_documents ? documents.data() : nullptr};
  }
};

std::unique_ptr<Network> make(const Config& config, std::unique_ptr<Device> device,
                              Matrices matrices = Matrices::kKept) {
  auto net = std::make_unique<Network>(config, std::move(device), Product::kF32, matrices);
  const ParamTable& table = net->table();
  std::vector<float> flat(static_cast<size_t>(table.flat_count()));
  table.initialize(config, 3, flat.data());
  Random random(9);
  for (size_t i = 0; i < table.specs().size(); ++i) {
    const ParamSpec& spec = table.specs()[i];
    float* values = flat.data() + spec.offset;
    for (int64_t k = 0; k < spec.count; ++k) {
      values[k] += static_cast<float>(random.uniform(-0.2, 0.2));
    }
    net->set_parameter(static_cast<int>(i), CBuf(values));
  }
  net->parameters_changed(false);
  return net;
}

// Everything that a network computes, as numbers by name.
using Results = std::vector<std::pair<std::string, std::vector<float>>>;

std::vector<float> values_of(const Network& net, CBuf data, int64_t count) {
  const HostView view(net.memory(), data, count);
  return {view.as<float>(), view.as<float>() + count};
}

std::vector<float> values_of(const State& state) {
  std::vector<float> values(static_cast<size_t>(state.batch() * state.elements()));
  for (int64_t row = 0; row < state.batch(); ++row) {
    state.read(row, values.data() + row * state.elements());
  }
  return values;
}

void infer(Network& net, const Tokens& tokens, Results* results) {
  const int64_t V = net.config().vocab_size;
  for (const bool documents : {false, true}) {
    const Batch batch = tokens.batch(documents);
    State state = net.new_state(kB);
    std::vector<float> all(kB * kL * V), last(kB * V, 7), nll(kB * kL);
    net.forward(batch, &state, Logits::kAll, Buf(all.data()), Buf(nll.data()));
    results->emplace_back("logits", all);
    results->emplace_back("nll", nll);
    net.forward(batch, &state, Logits::kLast, Buf(last.data()), Buf());
    results->emplace_back("last logits", last);
    const std::vector<int32_t> next = {1, 2, 3};
    net.step(next.data(), state, Buf(last.data()));
    results->emplace_back("logits of a step", last);
    results->emplace_back("state", values_of(state));
  }
}

void train(Network& net, const Tokens& tokens, Results* results) {
  // A large epsilon: what rounding makes of gradients near zero must not decide their sign.
  AdamW optimizer(net, {0.9, 0.95, 1e-2, 0.1});
  int64_t step = 0;
  for (const int64_t segments : {1, 3}) {
    for (const Recompute recompute : {Recompute::kNone, Recompute::kScan, Recompute::kBlock}) {
      net.zero_gradients();
      const LossSum sum = net.forward_backward(tokens.batch(segments == 3 || step == 1), 1.0 / 50,
                                               {segments, recompute});
      const std::string name = std::to_string(segments) + " segments";
      results->emplace_back("loss of " + name, std::vector<float>{static_cast<float>(sum.nll)});
      results->emplace_back("gradients of " + name,
                            values_of(net, net.gradients(), net.trained().count));
      const double norm = optimizer.grad_norm();
      results->emplace_back("their norm", std::vector<float>{static_cast<float>(norm)});
      optimizer.update(++step, 1e-3, clip_scale(norm, 1.0));
      net.parameters_changed(false);
    }
  }
  const int64_t count = net.trained().count;
  results->emplace_back("parameters", values_of(net, net.parameters(), net.table().flat_count()));
  results->emplace_back("first moments", values_of(net, optimizer.exp_avg(), count));
  results->emplace_back("second moments", values_of(net, optimizer.exp_avg_sq(), count));
}

Results run(const Case& c, std::unique_ptr<Device> device) {
  const std::unique_ptr<Network> net = make(c.config, std::move(device));
  const Tokens tokens(c.config.vocab_size);
  Results results;
  infer(*net, tokens, &results);
  train(*net, tokens, &results);
  infer(*net, tokens, &results);
  return results;
}

TEST(DeviceMemory, ModelsReachItThroughTheDeviceAlone) {
  for (const Case& c : model_cases()) {
    SCOPED_TRACE(c.name);
    const Results want = run(c, Device::create({"cpu:base", 2}));
    const Results got = run(c, locked_device("cpu:base", 2));
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], want[i]) << want[i].first;
  }
}

TEST(DeviceMemory, FrozenMatricesAndTheirBiases) {
  Config config = small_mamba2();
  config.use_bias = true;
  const auto gradients = [&](std::unique_ptr<Device> device) {
    const std::unique_ptr<Network> net = make(config, std::move(device));
    std::vector<bool> frozen;
    for (const ParamSpec& spec : net->table().specs()) {
      frozen.push_back(spec.matrix && spec.name.find("proj") != std::string::npos);
    }
    net->freeze(frozen);
    net->zero_gradients();
    net->forward_backward(Tokens(config.vocab_size).batch(true), 1.0);
    return values_of(*net, net->gradients(), net->trained().count);
  };
  EXPECT_EQ(gradients(locked_device("ref", 1)), gradients(Device::create({"ref", 1})));
}

TEST(DeviceMemory, PackedModelsKeepTheirRows) {
  for (const Config& config : {small_mamba1(), small_mamba2()}) {
    const auto net = make(config, locked_device("cpu:base", 1), Matrices::kPackedOnly);
    const auto plain = make(config, Device::create({"cpu:base", 1}), Matrices::kPackedOnly);
    EXPECT_EQ(net->fingerprint(), plain->fingerprint());
    Results got, want;
    infer(*net, Tokens(config.vocab_size), &got);
    infer(*plain, Tokens(config.vocab_size), &want);
    EXPECT_EQ(got, want);
  }
}

TEST(DeviceMemory, StatesAreValuesThere) {
  const Config config = small_mamba1();
  std::unique_ptr<Network> net = make(config, locked_device("cpu:base", 1));
  const Tokens tokens(config.vocab_size);
  State state = net->new_state(kB);
  net->forward(tokens.batch(false), &state, Logits::kNone, Buf(), Buf());
  EXPECT_FALSE(state.on_host());
  const State copy = state, host = state.to_host();
  EXPECT_TRUE(host.on_host());
  EXPECT_TRUE(copy == state && host == state && state == host);
  State one = state.fork(1);
  EXPECT_FALSE(one == state.fork(0));
  one.assign(0, host, 0);  // from main memory
  EXPECT_TRUE(one == state.fork(0));
  EXPECT_EQ(one.max_difference(host.fork(0)), 0);
  const State half = state.as(DType::kBF16);
  EXPECT_FALSE(half.on_host());
  EXPECT_TRUE(half == host.as(DType::kBF16));
  EXPECT_LE(half.as(DType::kF32).max_difference(state), 0.1);
  State empty = net->new_state(0);
  EXPECT_TRUE(empty == State(empty));
  net.reset();  // states outlive the device
  EXPECT_TRUE(copy == host);
  EXPECT_TRUE(State(copy) == state);
}

TEST(DeviceMemory, CheckpointsMoveBetweenDevices) {
  const Config config = small_mamba2();
  const ScratchFolder folder;
  const std::unique_ptr<Network> net = make(config, locked_device("cpu:base", 1));
  AdamW optimizer(*net, {0.9, 0.95, 1e-8, 0.1});
  const auto step = [&](Network& on, AdamW& with, int64_t number) {
    on.zero_gradients();
    on.forward_backward(Tokens(config.vocab_size).batch(true), 0.02);
    with.update(number, 1e-2, 1.0);
    on.parameters_changed(false);
  };
  step(*net, optimizer, 1);
  TrainerState state;
  state.step = 1;
  const std::string path = save_checkpoint(folder.path(), state, *net, optimizer, "bytes", "");
  const std::unique_ptr<Network> other = make(config, Device::create({"cpu:base", 1}));
  AdamW others(*other, {0.9, 0.95, 1e-8, 0.1});
  load_checkpoint(path, *other, others);
  step(*net, optimizer, 2);
  step(*other, others, 2);
  const int64_t count = net->table().flat_count();
  EXPECT_EQ(values_of(*net, net->parameters(), count),
            values_of(*other, other->parameters(), count));
}

// f32 products are f32 there too, so what differs is the order of sums: 1e-4 of the largest value.
TEST(DeviceMemory, GpusComputeWhatTheReferenceDoes) {
  for (const std::string& name : Device::available()) {
    if (name.rfind("cuda:", 0) != 0) continue;
    for (const Case& c : model_cases()) {
      SCOPED_TRACE(name + " " + c.name);
      const Results want = run(c, Device::create({"ref", 1}));
      const Results got = run(c, Device::create({name, 1}));
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) {
        const std::vector<double> wide(want[i].second.begin(), want[i].second.end());
        ASSERT_EQ(got[i].second.size(), wide.size());
        EXPECT_LE(
            relative_to_max(got[i].second.data(), wide.data(), static_cast<int64_t>(wide.size())),
            1e-4)
            << want[i].first;
      }
      const Results again = run(c, Device::create({name, 1}));
      for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(again[i], got[i]) << want[i].first;
    }
  }
}

}  // namespace
}  // namespace mamba::test
