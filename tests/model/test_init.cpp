// SPDX-License-Identifier: Apache-2.0
// Initialisation: ranges, decay groups, counts, independence of tensors, and the loss at the start.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "formats/hf_config.h"
#include "mamba/model.h"
#include "model/cases.h"
#include "model/network.h"

namespace mamba::test {
namespace {

struct Tensor {
  ParamSpec spec;
  std::vector<float> values;
  double largest() const {
    double m = 0;
    for (float v : values) m = std::max(m, std::fabs(static_cast<double>(v)));
    return m;
  }
  double deviation() const {
    double s = 0;
    for (float v : values) s += static_cast<double>(v) * v;
    return std::sqrt(s / static_cast<double>(values.size()));
  }
};

std::map<std::string, Tensor> initialized(const Config& config, uint64_t seed = 1) {
  Network net(config, Device::create({"cpu", 1}), Product::kF32);
  std::vector<float> flat(static_cast<size_t>(net.table().flat_count()));
  net.table().initialize(config, seed, flat.data());
  std::map<std::string, Tensor> tensors;
  for (const ParamSpec& s : net.table().specs()) {
    tensors[s.name] = {s, {flat.begin() + s.offset, flat.begin() + s.offset + s.count}};
  }
  return tensors;
}

double softplus(double x) { return std::log1p(std::exp(x)); }

void expect_dt_bias_in_range(const Tensor& t, const Config& c) {
  for (float v : t.values) {
    EXPECT_GE(softplus(v), c.dt_min * (1 - 1e-4));
    EXPECT_LE(softplus(v), c.dt_max * (1 + 1e-4));
  }
}

TEST(Init, Mamba1FollowsThePaper) {
  Config c = preset_config("tiny");
  const auto t = initialized(c);
  const std::string mixer = "backbone.layers.1.mixer.";
  const double E = static_cast<double>(c.d_inner), D = static_cast<double>(c.d_model);
  EXPECT_LE(t.at(mixer + "in_proj.weight").largest(), 1 / std::sqrt(D));
  EXPECT_NEAR(t.at(mixer + "in_proj.weight").deviation(), 1 / std::sqrt(3 * D),
              0.02 / std::sqrt(D));
  EXPECT_LE(t.at(mixer + "out_proj.weight").largest(),
            1 / std::sqrt(E * static_cast<double>(c.n_layer)));
  EXPECT_LE(t.at(mixer + "dt_proj.weight").largest(),
            1 / std::sqrt(static_cast<double>(c.dt_rank)));
  EXPECT_LE(t.at(mixer + "conv1d.weight").largest(), 0.5);
  EXPECT_NEAR(t.at("backbone.embeddings.weight").deviation(), 0.02, 0.001);
  expect_dt_bias_in_range(t.at(mixer + "dt_proj.bias"), c);
  const Tensor& A = t.at(mixer + "A_log");
  for (size_t i = 0; i < A.values.size(); ++i) {
    EXPECT_FLOAT_EQ(std::exp(A.values[i]),
                    static_cast<float>(i % static_cast<size_t>(c.d_state) + 1));
  }
  for (float v : t.at(mixer + "D").values) EXPECT_EQ(v, 1);
  for (float v : t.at("backbone.norm_f.weight").values) EXPECT_EQ(v, 1);
}

TEST(Init, Mamba2FollowsThePaper) {
  Config c = preset_config("tiny2");
  c.learnable_init_states = true;
  c.conv_init = 0.1;
  const auto t = initialized(c);
  const std::string mixer = "backbone.layers.0.mixer.";
  expect_dt_bias_in_range(t.at(mixer + "dt_bias"), c);
  for (float v : t.at(mixer + "A_log").values) {
    EXPECT_GE(std::exp(v), c.A_init_min * (1 - 1e-5));
    EXPECT_LE(std::exp(v), c.A_init_max * (1 + 1e-5));
  }
  EXPECT_LE(t.at(mixer + "conv1d.weight").largest(), 0.1);
  EXPECT_EQ(t.at(mixer + "init_states").largest(), 0);
}

TEST(Init, ConstantDtProjectionAndUnscaledResidual) {
  Config c = small_mamba1();
  c.dt_init_random = false;
  c.dt_scale = 2;
  c.rescale_prenorm_residual = false;
  c.n_layer = 9;
  const auto t = initialized(c);
  const float want = static_cast<float>(2 / std::sqrt(3.0));
  for (float v : t.at("backbone.layers.0.mixer.dt_proj.weight").values) EXPECT_FLOAT_EQ(v, want);
  EXPECT_GT(t.at("backbone.layers.0.mixer.out_proj.weight").largest(), 1 / std::sqrt(19.0) / 3);
}

TEST(Init, OnlyMatricesDecay) {
  for (const Case& test_case : model_cases()) {
    for (const auto& [name, tensor] : initialized(test_case.config)) {
      const bool plain = name.find("A_log") != std::string::npos ||
                         name.find("bias") != std::string::npos ||
                         name.find("norm") != std::string::npos ||
                         name.find("init_states") != std::string::npos || name.ends_with(".D");
      EXPECT_EQ(tensor.spec.decay, !plain) << name;
    }
  }
}

TEST(Init, DependsOnTheSeedAndTheNameAlone) {
  Config c = small_mamba1();
  const auto a = initialized(c, 1), b = initialized(c, 1), other = initialized(c, 2);
  Config longer = c;
  longer.n_layer = 3;
  const auto more = initialized(longer, 1);
  const std::string name = "backbone.layers.1.mixer.in_proj.weight";
  EXPECT_EQ(a.at(name).values, b.at(name).values);
  EXPECT_EQ(a.at(name).values, more.at(name).values);
  EXPECT_NE(a.at(name).values, other.at(name).values);
  EXPECT_NE(a.at(name).values, a.at("backbone.layers.0.mixer.in_proj.weight").values);
}

TEST(Init, ParameterCountsAreExact) {
  for (const Case& c : model_cases()) {
    Network net(c.config, Device::create({"cpu", 1}), Product::kF32);
    EXPECT_EQ(net.table().parameters(), parameter_count(c.config)) << c.name;
  }
  EXPECT_EQ(parameter_count(preset_config("mamba-130m")), 129135360);
  EXPECT_EQ(parameter_count(preset_config("mamba-2.8b")), 2768345600);
  EXPECT_EQ(parameter_count(preset_config("mamba2-130m")), 128989632);
  EXPECT_EQ(parameter_count(preset_config("mamba2-2.7b")), 2702599680);
}

TEST(Init, TheFirstLossIsThatOfGuessing) {
  for (const char* preset : {"tiny", "tiny2"}) {
    const Config c = preset_config(preset);
    Model model = Model::create(c, 4);
    std::vector<int32_t> ids(200), targets(200);
    for (int i = 0; i < 200; ++i) {
      ids[static_cast<size_t>(i)] = (i * 37) % 256;
      targets[static_cast<size_t>(i)] = (i * 91 + 5) % 256;
    }
    State state = model.new_state(1);
    std::vector<float> nll(200);
    model.score(ids.data(), targets.data(), 200, state, nll.data());
    double sum = 0;
    for (float v : nll) sum += v;
    EXPECT_NEAR(sum / 200, std::log(256.0), 0.15) << preset;
  }
}

}  // namespace
}  // namespace mamba::test
