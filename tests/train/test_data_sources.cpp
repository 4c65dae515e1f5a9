// SPDX-License-Identifier: Apache-2.0
// Weighted sources: exact shares, an order that is a function of the sample alone.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>

#include "support/expect_error.h"
#include "train/data_sources.h"

namespace mamba {
namespace {

using test::fails_with;
using test::ScratchFolder;

TEST(WeightedOrder, KeepsExactShares) {
  const std::vector<std::vector<double>> all = {
      {1}, {0.7, 0.3}, {1, 1, 1}, {0.5, 0.25, 0.25}, {0, 2, 1}, {0.9, 0.05, 0.03, 0.02}, {1e-6, 1}};
  for (const std::vector<double>& weights : all) {
    WeightedOrder order(weights);
    double sum = 0;
    for (const double weight : weights) sum += weight;
    std::vector<int64_t> taken(weights.size(), 0);
    for (int64_t i = 0; i < 20000; ++i) {
      const WeightedOrder::Place place = order.at(i);
      ASSERT_EQ(place.index, taken[place.source]++) << "a source skips or repeats a sample";
      for (size_t k = 0; k < weights.size(); ++k) {
        const double exact = weights[k] / sum * static_cast<double>(i + 1);
        const double ahead = static_cast<double>(taken[k]) - exact;
        // Ahead by less than one sample: the largest deficit is above 0 before it is taken from.
        ASSERT_LT(ahead, 1) << i;
        // And as all deficits add up to 0, behind by less than one for each other source.
        ASSERT_GT(ahead, -std::max(1.0, static_cast<double>(weights.size()) - 1)) << i;
      }
    }
  }
}

TEST(WeightedOrder, RepeatsWhereWeightsAreWhole) {
  WeightedOrder order({3, 1});
  for (int64_t round = 0; round < 1000; ++round) {
    std::map<size_t, int64_t> taken;
    for (int64_t i = 0; i < 4; ++i) ++taken[order.at(4 * round + i).source];
    ASSERT_EQ(taken[0], 3);
    ASSERT_EQ(taken[1], 1);
  }
}

TEST(WeightedOrder, GoesOnAtAnySample) {
  WeightedOrder whole({0.61, 0.3, 0.09});
  std::vector<WeightedOrder::Place> places;
  for (int64_t i = 0; i < 500; ++i) places.push_back(whole.at(i));
  for (const int64_t from : {499, 0, 250, 250, 249, 7}) {
    WeightedOrder other({0.61, 0.3, 0.09});
    EXPECT_EQ(other.at(from).source, places[static_cast<size_t>(from)].source);
    EXPECT_EQ(whole.at(from).index, places[static_cast<size_t>(from)].index);
  }
}

struct Row {
  explicit Row(size_t L) : ids(L), targets(L), documents(L) {}
  DataRow view() { return {ids.data(), targets.data(), documents.data()}; }
  std::vector<int32_t> ids, targets, documents;
};

TEST(DataSet, MixesSourcesByWeight) {
  const ScratchFolder folder;
  std::ofstream(folder / "a") << std::string(101, 'a');
  std::ofstream(folder / "b") << std::string(61, 'b');
  const auto tokenizer = make_tokenizer("bytes");
  for (const Packing packing : {Packing::kStream, Packing::kDocuments}) {
    DataSet data({folder / "a", folder / "b"}, {3, 1}, *tokenizer, "--data",
                 {10, packing, DataOrder::kShuffled, 4, {}});
    Row row(10);
    std::string letters;
    for (int64_t i = 0; i < 400; ++i) {
      data.read(i, row.view());
      letters += static_cast<char>(row.ids[0]);
    }
    EXPECT_EQ(std::count(letters.begin(), letters.end(), 'a'), 300);
    const std::vector<TrainSource> sources = data.describe();
    ASSERT_EQ(sources.size(), 2u);
    EXPECT_EQ(sources[0].name, folder / "a");
    EXPECT_EQ(sources[0].weight, 0.75);
    EXPECT_EQ(sources[1].tokens, 61);
    // 60 tokens fill 6 windows; as a document, the last token alone has no target.
    EXPECT_EQ(sources[1].sequences, 6);
    EXPECT_EQ(data.identity().size(), 2u);
  }
}

TEST(DataSet, ShufflesEachSourceInItsOwnOrder) {
  const ScratchFolder folder;
  std::string text;
  for (int i = 0; i < 100; ++i) text += static_cast<char>(27 + i);
  std::ofstream(folder / "a", std::ios::binary) << text + text;
  DataSet data({folder / "a", folder / "a"}, {1, 1}, *make_tokenizer("bytes"), "--data",
               {1, Packing::kStream, DataOrder::kShuffled, 4, {}});
  Row row(1);
  std::vector<int32_t> first, second;
  for (int64_t i = 0; i < 200; ++i) {
    data.read(i, row.view());
    (i % 2 == 0 ? first : second).push_back(row.ids[0]);
  }
  EXPECT_FALSE(first == second);
}

TEST(DataSet, RefusesDataWithoutALoss) {
  const ScratchFolder folder;
  std::ofstream(folder / "p.jsonl") << R"({"prompt": "abc", "response": ""})"
                                    << "\n";
  std::ofstream(folder / "blank.jsonl") << "\n\n";
  for (const Packing packing : {Packing::kStream, Packing::kDocuments}) {
    const auto open = [&](const std::string& name) {
      DataSet({folder / name}, {}, *make_tokenizer("bytes"), "--data",
              {2, packing, DataOrder::kShuffled, 0, {}});
    };
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"--data", "p.jsonl", "with a loss", "got none"},
                           [&] { open("p.jsonl"); }));
    EXPECT_TRUE(fails_with(ErrorCode::kBadFile, {"--data", "blank.jsonl", "without a token"},
                           [&] { open("blank.jsonl"); }));
  }
}

}  // namespace
}  // namespace mamba
