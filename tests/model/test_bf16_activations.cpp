// SPDX-License-Identifier: Apache-2.0
// Models with bf16 activations, which run on GPUs: layouts and types of every variant, option and
// policy, by the CPU's kernels with what they write rounded to bf16; against f32 activations.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/choices.h"
#include "model/cases.h"
#include "model/network.h"
#include "support/random.h"
#include "support/rounded_device.h"

namespace mamba::test {
namespace {

constexpr int64_t kB = 3;

struct Tokens {
  int64_t L;
  std::vector<int32_t> ids, targets, documents;
  Tokens(int64_t vocab, int64_t length) : L(length), documents(static_cast<size_t>(kB * L), 0) {
    Random random(5);
    for (int64_t i = 0; i < kB * L; ++i) {
      ids.push_back(static_cast<int32_t>(random.below(vocab)));
      targets.push_back(static_cast<int32_t>(random.below(vocab)));
    }
    targets[2] = -1;
    for (int64_t t = 8; t < L; ++t) documents[static_cast<size_t>(t)] = 1;
    for (int64_t t = L - 4; t < L; ++t) {
      ids[static_cast<size_t>(L + t)] = targets[static_cast<size_t>(L + t)] = -1;
    }
  }
  Batch batch(bool with_documents) const {
    return {kB, L, ids.data(), targets.data(), with_documents ? documents.data() : nullptr};
  }
};

std::unique_ptr<Network> make(const Config& config, std::unique_ptr<Device> device,
                              Product product = Product::kBF16,
                              Matrices matrices = Matrices::kKept) {
  auto net = std::make_unique<Network>(config, std::move(device), product, matrices);
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

using Results = std::vector<std::pair<std::string, std::vector<float>>>;

void infer(Network& net, const Tokens& tokens, Results* results) {
  const int64_t V = net.config().vocab_size;
  for (const bool documents : {false, true}) {
    const Batch batch = tokens.batch(documents);
    State state = net.new_state(kB);
    const size_t rows = static_cast<size_t>(kB * tokens.L);
    std::vector<float> all(rows * static_cast<size_t>(V)), last(static_cast<size_t>(kB * V), 7),
        nll(rows);
    net.forward(batch, &state, Logits::kAll, Buf(all.data()), Buf(nll.data()));
    results->emplace_back("logits", all);
    results->emplace_back("nll", nll);
    net.forward(batch, &state, Logits::kLast, Buf(last.data()), Buf());
    results->emplace_back("last logits", last);
    const std::vector<int32_t> next = {1, 2, 3};
    net.step(next.data(), state, Buf(last.data()));
    results->emplace_back("logits of a step", last);
    std::vector<float> values(static_cast<size_t>(kB * state.elements()));
    for (int64_t b = 0; b < kB; ++b) state.read(b, values.data() + b * state.elements());
    for (const StateTensor& t : state.tensors()) {
      std::vector<float> of;
      int64_t count = 1;
      for (const int64_t d : t.shape) count *= d;
      for (int64_t b = 0; b < kB; ++b) {
        const float* from = values.data() + b * state.elements() + t.offset;
        of.insert(of.end(), from, from + count);
      }
      results->emplace_back(t.name, of);
    }
  }
}

// The loss and the gradient of every tensor.
Results gradients(Network& net, const Batch& batch, const StepOptions& options) {
  net.zero_gradients();
  const LossSum sum = net.forward_backward(batch, 1.0 / 50, options);
  Results results = {{"loss", {static_cast<float>(sum.nll)}}};
  const HostView flat(net.memory(), net.gradients(), net.trained().count);
  for (size_t i = 0; i < net.table().specs().size(); ++i) {
    const ParamSpec& spec = net.table().specs()[i];
    const float* from = flat.as<float>() + net.trained().offsets[i];
    results.emplace_back(spec.name, std::vector<float>(from, from + spec.count));
  }
  return results;
}

// |got - want| / |want| in the Euclidean norm.
double relative(const std::vector<float>& got, const std::vector<float>& want) {
  double square = 0, of = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    square += std::pow(double(got[i]) - double(want[i]), 2);
    of += std::pow(double(want[i]), 2);
  }
  return of > 0 ? std::sqrt(square / of) : std::sqrt(square);
}

void expect_near(const Results& got, const Results& want, double bound) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].second.size(), want[i].second.size()) << want[i].first;
    const double error = relative(got[i].second, want[i].second);
    EXPECT_LE(error, bound) << want[i].first;
  }
}

struct Task {
  Case model;
  int64_t L;
};
// All options, then widths that all vectors and copies of the kernels for GPUs take.
std::vector<Task> tasks() {
  std::vector<Task> tasks;
  for (const Case& c : model_cases()) tasks.push_back({c, 21});
  for (Config c : {small_mamba1(), small_mamba2()}) {
    c.vocab_size = 64;
    c.d_model = 64;
    c.d_inner = c.d_ssm = 128;
    c.d_state = c.mixer == "mamba1" ? 16 : 64;
    c.dt_rank = 8;
    c.headdim = 32;
    c.n_groups = c.norm_groups = 1;
    tasks.push_back({{c.mixer + "_aligned", c}, 70});
  }
  return tasks;
}

// A rounding changes what it rounds by 2^-9 of its norm at most: 12 of them a layer on the way
// forwards and 3 around the head, were they to add up. Seen: 0.02.
constexpr double kForward = (2 * 12 + 3) * 0x1p-9;
// As many backwards. Seen: 0.08 and 0.06 for the sums of two A_log, whose terms cancel; 0.05
// else.
constexpr double kBackward = (4 * 12 + 3) * 0x1p-9;

TEST(Bf16Activations, InferenceStaysNearF32) {
  for (const auto& [c, L] : tasks()) {
    SCOPED_TRACE(c.name);
    const Tokens tokens(c.config.vocab_size, L);
    for (const Matrices matrices : {Matrices::kKept, Matrices::kPackedOnly}) {
      Results got, want;
      infer(*make(c.config, rounded_device("cpu:base", 2), Product::kBF16, matrices), tokens, &got);
      infer(*make(c.config, Device::create({"cpu:base", 2}), Product::kBF16, matrices), tokens,
            &want);
      expect_near(got, want, kForward);
    }
  }
}

TEST(Bf16Activations, GradientsStayNearThoseOfF32) {
  for (const auto& [c, L] : tasks()) {
    SCOPED_TRACE(c.name);
    const Tokens tokens(c.config.vocab_size, L);
    const auto net = make(c.config, rounded_device("cpu:base", 2));
    const auto wide = make(c.config, Device::create({"cpu:base", 2}));
    for (const int64_t segments : {1, 3}) {
      const Batch batch = tokens.batch(segments == 3);
      const Results got = gradients(*net, batch, {segments, Recompute::kNone});
      expect_near(got, gradients(*wide, batch, {segments, Recompute::kNone}), kBackward);
      // What is computed anew has the same bits.
      EXPECT_EQ(gradients(*net, batch, {segments, Recompute::kScan}), got);
      EXPECT_EQ(gradients(*net, batch, {segments, Recompute::kBlock}), got);
    }
  }
}

// The same roundings there, of sums in another order: what falls on different sides of a tie moves
// by a step of bf16, so the bounds are those above.
TEST(Bf16Activations, GpusComputeWhatRoundedCpusDo) {
  for (const std::string& name : Device::available()) {
    if (name.rfind("cuda:", 0) != 0) continue;
    for (const auto& [c, L] : tasks()) {
      SCOPED_TRACE(name + " " + c.name);
      const Tokens tokens(c.config.vocab_size, L);
      for (const Matrices matrices : {Matrices::kKept, Matrices::kPackedOnly}) {
        Results got, want;
        infer(*make(c.config, Device::create({name, 1}), Product::kBF16, matrices), tokens, &got);
        infer(*make(c.config, rounded_device("cpu:base", 2), Product::kBF16, matrices), tokens,
              &want);
        expect_near(got, want, kForward);
      }
      const auto net = make(c.config, Device::create({name, 1}));
      const auto reference = make(c.config, rounded_device("cpu:base", 2));
      for (const int64_t segments : {1, 3}) {
        const Batch batch = tokens.batch(segments == 3);
        const Results got = gradients(*net, batch, {segments, Recompute::kNone});
        expect_near(got, gradients(*reference, batch, {segments, Recompute::kNone}), kBackward);
        EXPECT_EQ(gradients(*net, batch, {segments, Recompute::kNone}), got);
        EXPECT_EQ(gradients(*net, batch, {segments, Recompute::kScan}), got);
        EXPECT_EQ(gradients(*net, batch, {segments, Recompute::kBlock}), got);
      }
    }
  }
}

// A prompt of one sequence and steps behind it.
Results one_sequence(Network& net, const Tokens& tokens) {
  const int64_t V = net.config().vocab_size;
  State state = net.new_state(1);
  std::vector<float> last(static_cast<size_t>(V));
  net.forward({1, tokens.L, tokens.ids.data(), nullptr, nullptr}, &state, Logits::kLast,
              Buf(last.data()), Buf());
  Results results;
  for (int32_t i = 0; i < 4; ++i) {  // the later ones are a graph
    const int32_t next = i;
    net.step(&next, state, Buf(last.data()));
    results.emplace_back("logits of step " + std::to_string(i), last);
  }
  std::vector<float> values(static_cast<size_t>(state.elements()));
  state.read(0, values.data());
  results.emplace_back("states", values);
  return results;
}

// Each way of a step of one sequence, where it can run, and tiles for its products.
TEST(Bf16Activations, EveryWayOfAStepComputesThat) {
  struct Forced {
    Operation operation;
    Way way;
  };
  const Forced list[] = {{Operation::kMamba1Step, Way::kFusedInput},
                         {Operation::kMamba1Step, Way::kFused2},
                         {Operation::kMamba1Step, Way::kSequence},
                         {Operation::kMamba2Step, Way::kFusedProduct},
                         {Operation::kMamba2Step, Way::kFusedConvolved},
                         {Operation::kMamba2Step, Way::kSequence},
                         {Operation::kNormLinear, Way::kSequence},
                         {Operation::kLinear, Way::kTiles},
                         {Operation::kLinear, Way::kTensor}};
  for (const std::string& name : Device::available()) {
    if (name.rfind("cuda:", 0) != 0) continue;
    for (const auto& [c, L] : tasks()) {
      const Tokens tokens(c.config.vocab_size, L);
      const Results want = one_sequence(*make(c.config, rounded_device("cpu:base", 2)), tokens);
      const auto net = make(c.config, Device::create({name, 1}));
      for (const Forced& f : list) {
        SCOPED_TRACE(name + " " + c.name + " " + name_of(f.way));
        Choices& choices = net->device().choices();
        choices.forced[static_cast<int>(f.operation)] = bit(f.way);
        ++choices.version;
        expect_near(one_sequence(*net, tokens), want, kForward);
        choices.forced[static_cast<int>(f.operation)] = 0;
      }
    }
  }
}

}  // namespace
}  // namespace mamba::test
