// SPDX-License-Identifier: Apache-2.0
// Choosing tensors by patterns, and the layout of those that are trained.
#include <gtest/gtest.h>

#include <set>

#include "model/cases.h"
#include "model/parameter_table.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

using test::fails_with;

std::set<std::string> frozen_names(const ParamTable& table, const std::vector<std::string>& by) {
  const std::vector<bool> frozen = frozen_by(table, by);
  std::set<std::string> names;
  for (size_t i = 0; i < frozen.size(); ++i) {
    if (frozen[i]) names.insert(table.specs()[i].name);
  }
  return names;
}

TEST(Freeze, MatchesWholeNamesByPattern) {
  Config config = test::small_mamba1();
  config.n_layer = 12;
  const ParamTable table = parameter_table(config);
  using Names = std::set<std::string>;
  EXPECT_EQ(frozen_names(table, {"backbone.embeddings.*"}), Names{"backbone.embeddings.weight"});
  EXPECT_EQ(frozen_names(table, {"*.[01].*.D"}),
            (Names{"backbone.layers.0.mixer.D", "backbone.layers.1.mixer.D"}));
  EXPECT_EQ(frozen_names(table, {"*.1?.mixer.D", "*norm_f*"}),
            (Names{"backbone.layers.10.mixer.D", "backbone.layers.11.mixer.D",
                   "backbone.norm_f.weight"}));
  EXPECT_EQ(frozen_names(table, {"*.[!0-9]*.weight"}).count("backbone.layers.0.norm.weight"), 1u);
  EXPECT_EQ(frozen_names(table, {"backbone.layers.3.*"}).size(), 10u);
  EXPECT_TRUE(frozen_by(table, {}).empty());
}

TEST(Freeze, RefusesPatternsThatNameNothingOrAll) {
  const ParamTable table = parameter_table(test::small_mamba1());
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument,
                         {"--freeze", "'backbone.embedding.weight'", "backbone.embeddings.weight"},
                         [&] { frozen_by(table, {"backbone.embedding.weight"}); }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"'*.[0-1'", "nearest"}, [&] {
    frozen_by(table, {"*norm*", "*.[0-1"});
  }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"1..256 characters", "got 0"},
                         [&] { frozen_by(table, {""}); }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"1..256 characters", "got 300"},
                         [&] { frozen_by(table, {std::string(300, '*')}); }));
  EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"leave something to train"},
                         [&] { frozen_by(table, {"*"}); }));
  EXPECT_TRUE(
      fails_with(ErrorCode::kInvalidArgument, {"'a?b'"}, [&] { frozen_by(table, {"a\nb"}); }));
}

TEST(Freeze, LaysOutWhatIsTrained) {
  for (const test::Case& c : test::model_cases()) {
    const ParamTable table = parameter_table(c.config);
    const TrainedLayout all = layout_trained(table, {});
    EXPECT_EQ(all.count, table.flat_count());
    EXPECT_EQ(all.sink, 0);
    const TrainedLayout some = layout_trained(table, frozen_by(table, {"*.A_log", "*proj.weight"}));
    int64_t at = 0, largest = 0;
    for (size_t i = 0; i < table.specs().size(); ++i) {
      const ParamSpec& spec = table.specs()[i];
      EXPECT_EQ(all.offsets[i], spec.offset);
      if (some.offsets[i] < 0) {
        largest = std::max(largest, spec.matrix ? 0 : spec.count);
        continue;
      }
      EXPECT_EQ(some.offsets[i], at) << spec.name;
      at += (spec.count + 15) / 16 * 16;
    }
    EXPECT_EQ(some.count, at);
    EXPECT_GE(some.sink, largest);
  }
}

}  // namespace
}  // namespace mamba
