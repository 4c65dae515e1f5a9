// SPDX-License-Identifier: Apache-2.0
// Whole models on a GPU beside the CPU: chunks, steps replayed as graphs, batches, other types.
// Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "mamba/model.h"
#include "mamba/state.h"
#include "model/model_io.h"
#include "model/network.h"
#include "model/two_mixers.h"

namespace mamba::test {
namespace {

Model model_on(const std::string& device, const std::string& mixer, DType dtype) {
  ModelOptions options;
  options.device = device;
  options.dtype = dtype;
  return Model::create(config_of(mixer, 64, 3), 5, options);
}

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0, most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::fmax(worst, std::fabs(double(a[i]) - double(b[i])));
    most = std::fmax(most, std::fabs(double(b[i])));
  }
  return worst / most;
}

class GpuModel : public testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  void SetUp() override {
    if (cuda::inventory().count == 0) GTEST_SKIP() << "no GPU: " << cuda::inventory().why_none;
    std::printf("backends: cuda:0\n");
  }
  const std::string mixer_ = std::get<0>(GetParam());
  const DType dtype_ = std::get<1>(GetParam());
  // Of f32, and of products rounded to 16 bits over three layers; blocks round the activations to
  // 8 bits, which may fall on the other side of a half.
  double bound() const {
    if (dtype_ == DType::kF32) return 1e-4;
    return is_quantized(dtype_) ? 0.06 : 0.02;
  }
};
INSTANTIATE_TEST_SUITE_P(Mixers, GpuModel,
                         testing::Combine(testing::Values("mamba1", "mamba2"),
                                          testing::Values(DType::kF32, DType::kBF16, DType::kF16,
                                                          DType::kQ8_0)));

TEST_P(GpuModel, StepsAreThoseOfTheCpu) {
  Model gpu = model_on("cuda", mixer_, dtype_), cpu = model_on("cpu", mixer_, dtype_);
  for (const int64_t batch : {int64_t{1}, int64_t{3}, int64_t{20}, int64_t{1}}) {
    State on_gpu = gpu.new_state(batch), on_cpu = cpu.new_state(batch);
    const size_t count = static_cast<size_t>(batch * kVocab);
    std::vector<float> got(count), expected(count);
    const std::vector<int32_t> ids = tokens_of(static_cast<int>(8 * batch));
    for (int64_t t = 0; t < 8; ++t) {
      gpu.step(ids.data() + t * batch, on_gpu, got.data());
      cpu.step(ids.data() + t * batch, on_cpu, expected.data());
      EXPECT_LT(relative(got, expected), bound()) << "batch " << batch << ", step " << t;
    }
  }
}

TEST_P(GpuModel, StatesTakeTurns) {
  Model gpu = model_on("cuda", mixer_, dtype_);
  const std::vector<int32_t> ids = tokens_of(12);
  std::vector<float> alone(kVocab), a_logits(kVocab), b_logits(kVocab);
  State one = gpu.new_state(1), a = gpu.new_state(1), b = gpu.new_state(1);
  for (const int32_t id : ids) gpu.step(&id, one, alone.data());
  for (const int32_t id : ids) {
    gpu.step(&id, a, a_logits.data());
    gpu.step(&id, b, b_logits.data());
  }
  EXPECT_EQ(a_logits, alone);
  EXPECT_EQ(b_logits, alone);
  EXPECT_TRUE(a == one);
}

TEST_P(GpuModel, StepsFollowChangedWeights) {
  if (dtype_ != DType::kF32 && dtype_ != DType::kBF16)
    GTEST_SKIP() << "its weights are kept packed";
  Model gpu = model_on("cuda", mixer_, dtype_);
  State state = gpu.new_state(1);
  std::vector<float> before(kVocab), after(kVocab);
  const int32_t id = 3;
  for (int t = 0; t < 4; ++t) {
    state = gpu.new_state(1);
    gpu.step(&id, state, before.data());
  }
  Network& network = gpu.network();
  network.expect_kept();
  HostView values(network.memory(), network.parameters(), network.table().flat_count());
  for (int64_t i = 0; i < network.table().flat_count(); ++i) values.as<float>()[i] *= 0.5f;
  values.write_back();
  network.parameters_changed(true);
  state = gpu.new_state(1);
  gpu.step(&id, state, after.data());
  EXPECT_GT(relative(after, before), 1e-3);
}

TEST_P(GpuModel, ChunksAndStepsAgree) {
  Model gpu = model_on("cuda", mixer_, dtype_);
  const std::vector<int32_t> ids = tokens_of(70);
  State steps = gpu.new_state(1), chunks = gpu.new_state(1);
  std::vector<float> stepped(kVocab), whole(kVocab);
  for (const int32_t id : ids) gpu.step(&id, steps, stepped.data());
  gpu.forward(ids.data(), 70, chunks, Logits::kLast, whole.data());
  EXPECT_LT(relative(whole, stepped), bound());
  State again = gpu.new_state(1);
  std::vector<float> same(kVocab);
  gpu.forward(ids.data(), 70, again, Logits::kLast, same.data());
  EXPECT_EQ(same, whole);
  EXPECT_TRUE(again == chunks);
}

// The second of equal training steps is captured, the third is replayed: all have the gradients of
// the first, those of other weights are others, and shapes take turns.
TEST_P(GpuModel, TrainingStepsAreReplayed) {
  if (dtype_ != DType::kF32 && dtype_ != DType::kBF16) GTEST_SKIP() << "it is not trained";
  const Product product = dtype_ == DType::kBF16 ? Product::kBF16 : Product::kF32;
  Network network(config_of(mixer_, 64, 3), Device::create({"cuda"}), product);
  initialize(network, 5);
  network.parameters_changed(false);
  const std::vector<int32_t> ids = tokens_of(80), targets = tokens_of(81);
  const auto gradients = [&](int64_t B, int64_t L, double* loss) {
    Batch batch;
    batch.B = B, batch.L = L, batch.ids = ids.data(), batch.targets = targets.data() + 1;
    network.zero_gradients();
    *loss = network.forward_backward(batch, 0.5).nll;
    const HostView values(network.memory(), network.gradients(), network.trained().count);
    const float* from = values.as<float>();
    return std::vector<float>(from, from + network.trained().count);
  };
  double loss = 0, other_loss = 0, again = 0;
  const std::vector<float> first = gradients(2, 40, &loss), other = gradients(1, 33, &other_loss);
  EXPECT_NE(loss, other_loss);
  for (int time = 0; time < 3; ++time) {
    EXPECT_EQ(gradients(2, 40, &again), first);
    EXPECT_EQ(again, loss);
    EXPECT_EQ(gradients(1, 33, &again), other);
    EXPECT_EQ(again, other_loss);
  }
  HostView values(network.memory(), network.parameters(), network.table().flat_count());
  for (int64_t i = 0; i < network.table().flat_count(); ++i) values.as<float>()[i] *= 0.9f;
  values.write_back();
  network.parameters_changed(false);
  const std::vector<float> changed = gradients(2, 40, &again);
  EXPECT_NE(again, loss);
  EXPECT_GT(relative(changed, first), 1e-3);
}

}  // namespace
}  // namespace mamba::test
