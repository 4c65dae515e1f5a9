// SPDX-License-Identifier: Apache-2.0
// The rule by which ways are chosen: every class has one winner that can run, tables count in their
// order, and --backend leaves what it asks for or says that it cannot.
#include <gtest/gtest.h>

#include <bit>
#include <string>
#include <vector>

#include "kernels/choices.h"

namespace mamba::test {
namespace {

constexpr int64_t kSizes[] = {1,
                              2,
                              3,
                              4,
                              5,
                              8,
                              9,
                              15,
                              16,
                              17,
                              32,
                              64,
                              96,
                              768,
                              1024,
                              1032,
                              1535,
                              1536,
                              2560,
                              8447,
                              8448,
                              8449,
                              9999,
                              33791,
                              33792,
                              50280,
                              65535,
                              65536,
                              int64_t{1} << 40};

// Requests of every operation as kernels make them, over sizes at and beside all borders.
std::vector<Request> requests() {
  std::vector<Request> all;
  for (const int64_t rows : kSizes) {
    for (const int64_t size : kSizes) {
      for (const int64_t K : {1, 8, 768, 1024, 1032, 1535, 1536}) {
        for (const DType w : {DType::kF32, DType::kBF16, DType::kF16}) {
          for (const DType x : {DType::kF32, DType::kBF16, DType::kF16}) {
            for (const Product product : {Product::kF32, Product::kBF16}) {
              LinearShape shape = {rows, size, K, w, x, product, K != 1};
              all.push_back(linear_request(shape));
              shape.engine = true;
              all.push_back(linear_request(shape));
              all.push_back(norm_linear_request(shape, DType::kBF16));
            }
          }
        }
      }
      for (const bool fits : {false, true}) {
        all.push_back(linear_q_request(rows, size, 768, DType::kQ8_0, fits));
        all.push_back(scan_step_request(rows, size, DType::kBF16, fits));
        all.push_back(mamba1_step_request(rows, size, DType::kF32, fits, !fits));
        all.push_back(mamba2_step_request(rows, 4, size, DType::kBF16, fits, false));
        all.push_back(mamba2_step_request(rows, 4, size, DType::kBF16, fits, true));
      }
    }
  }
  return all;
}

Way way_of_linear(int64_t M, int64_t N, int64_t K, DType type) {
  const Product product = type == DType::kBF16 ? Product::kBF16 : Product::kF32;
  return choose(Choices{}, linear_request({M, N, K, type, type, product, true})).way;
}

TEST(Choices, EveryRequestGetsAWayThatCanRun) {
  for (const Request& r : requests()) {
    for (const BackendMode mode : {BackendMode::kAuto, BackendMode::kReference}) {
      Choices choices;
      choices.mode = mode;
      const Choice choice = choose(choices, r);
      ASSERT_NE(r.possible & bit(choice.way), 0u) << name_of(r.operation) << " " << r.rows;
      // ssd_step has a block for each sequence in a dimension of 65535.
      if (r.operation == Operation::kMamba2Step && r.rows > 65535 &&
          mode == BackendMode::kReference) {
        ASSERT_EQ(choice.why, Why::kRefused);
        continue;
      }
      ASSERT_NE(choice.why, Why::kRefused);
      const bool several = !std::has_single_bit(r.possible);
      ASSERT_EQ(choice.row != nullptr, several && mode == BackendMode::kAuto);
      ASSERT_EQ(choice.why == Why::kOnlyOne, !several);
      ASSERT_FALSE(mode == BackendMode::kReference && is_fused(choice.way));
    }
  }
}

// What the kernels did before there was a table.
TEST(Choices, GenericRowsAreTheMeasuredBorders) {
  EXPECT_EQ(way_of_linear(1, 3072, 768, DType::kBF16), Way::kRow);
  EXPECT_EQ(way_of_linear(1, 8447, 768, DType::kBF16), Way::kRow);
  EXPECT_EQ(way_of_linear(1, 8448, 1528, DType::kBF16), Way::kTensor);
  EXPECT_EQ(way_of_linear(1, 50280, 1536, DType::kF16), Way::kRow);
  EXPECT_EQ(way_of_linear(2, 3072, 768, DType::kBF16), Way::kTensor);
  EXPECT_EQ(way_of_linear(16, 3072, 768, DType::kF16), Way::kTensor);
  EXPECT_EQ(way_of_linear(17, 3072, 768, DType::kBF16), Way::kGeneral);
  // Of cards that copy tiles.
  const auto tiled = [](int64_t M, int64_t N, int64_t K) {
    return choose(Choices{},
                  linear_request({M, N, K, DType::kBF16, DType::kBF16, Product::kBF16, true, true}))
        .way;
  };
  EXPECT_EQ(tiled(1, 3072, 768), Way::kRow);
  EXPECT_EQ(tiled(2, 3072, 768), Way::kTiles);
  EXPECT_EQ(tiled(64, 80, 1536), Way::kTiles);
  EXPECT_EQ(tiled(16, 1536, 48), Way::kTensor);
  EXPECT_EQ(tiled(17, 1536, 48), Way::kTiles);
  EXPECT_EQ(tiled(65, 3072, 768), Way::kGeneral);
  EXPECT_EQ(tiled(16, 50280, 768), Way::kTensor);
  EXPECT_EQ(tiled(64, 50280, 768), Way::kGeneral);
  EXPECT_EQ(way_of_linear(1, 50280, 768, DType::kF32), Way::kPlain);
  EXPECT_EQ(way_of_linear(8, 50280, 768, DType::kF32), Way::kPlain);
  EXPECT_EQ(way_of_linear(9, 50280, 768, DType::kF32), Way::kGeneral);
  EXPECT_EQ(way_of_linear(1, 64, 7, DType::kBF16), Way::kGeneral);
  const auto step1 = [](int64_t B, int64_t E, bool blocks, bool input = false) {
    return choose(Choices{}, mamba1_step_request(B, E, DType::kBF16, blocks, input)).way;
  };
  EXPECT_EQ(step1(1, 1536, false, true), Way::kFusedInput);
  EXPECT_EQ(step1(2, 1536, false, true), Way::kFused8);
  EXPECT_EQ(step1(1, 1536, false), Way::kFused8);
  EXPECT_EQ(step1(16, 1536, false), Way::kFused8);
  EXPECT_EQ(step1(16, 2112, false), Way::kFused2);
  EXPECT_EQ(step1(17, 1536, false), Way::kSequence);
  EXPECT_EQ(step1(1, 1536, true), Way::kSequence);
  const auto step2 = [](int64_t B, int64_t H, bool vectors, bool product = false) {
    return choose(Choices{}, mamba2_step_request(B, H, 64, DType::kBF16, vectors, product)).way;
  };
  EXPECT_EQ(step2(1, 24, true, true), Way::kFusedProduct);
  EXPECT_EQ(step2(1, 80, true, true), Way::kFused);
  EXPECT_EQ(step2(2, 24, true, true), Way::kFused);
  EXPECT_EQ(step2(1, 24, true), Way::kFused);
  EXPECT_EQ(step2(4, 24, true), Way::kFusedConvolved);
  EXPECT_EQ(step2(4, 24, false), Way::kFused);
  EXPECT_EQ(step2(65536, 24, true), Way::kFused);
  const auto scan = [](int64_t B, int64_t E, bool fits) {
    return choose(Choices{}, scan_step_request(B, E, DType::kF32, fits)).way;
  };
  EXPECT_EQ(scan(1, 8447, true), Way::kLanes);
  EXPECT_EQ(scan(1, 8448, true), Way::kChannels);
  EXPECT_EQ(scan(1, 8448, false), Way::kLanes);
  const auto blocks = [](int64_t M, DType type, bool fits) {
    return choose(Choices{}, linear_q_request(M, 64, 64, type, fits)).way;
  };
  EXPECT_EQ(blocks(4, DType::kQ8_0, true), Way::kFewRows);
  EXPECT_EQ(blocks(5, DType::kQ8_0, true), Way::kGeneral);
  EXPECT_EQ(blocks(1, DType::kQ4_K, true), Way::kGeneral);
  EXPECT_EQ(blocks(1, DType::kQ8_0, false), Way::kGeneral);
  LinearShape one = {1, 3072, kMostNormed, DType::kBF16, DType::kF32, Product::kBF16, true};
  EXPECT_EQ(choose(Choices{}, norm_linear_request(one, DType::kBF16)).way, Way::kFused);
  EXPECT_EQ(choose(Choices{}, norm_linear_request(one, DType::kF32)).way, Way::kSequence);
  one.K += 8;
  EXPECT_EQ(choose(Choices{}, norm_linear_request(one, DType::kBF16)).way, Way::kSequence);
}

TEST(Choices, FileCountsBeforeCardBeforeGeneric) {
  const Request r =
      linear_request({4, 3072, 768, DType::kBF16, DType::kBF16, Product::kBF16, true});
  const auto row = [](DType type, SizeRange rows, Way winner) {
    ChoiceRow of = {};
    of.operation = Operation::kLinear;
    of.type = type;
    of.rows = rows, of.size = {2048, 4095}, of.depth = {512, 1023};
    of.winner = winner;
    return of;
  };
  const ChoiceRow card[] = {row(DType::kBF16, {3, 4}, Way::kGeneral)};
  const ChoiceRow tuned[] = {row(DType::kF32, {3, 4}, Way::kPlain),    // another type
                             row(DType::kBF16, {1, 2}, Way::kRow),     // other numbers of rows
                             row(DType::kBF16, {3, 4}, Way::kRow),     // cannot run
                             row(DType::kBF16, {3, 4}, Way::kTensor),  // counts
                             row(DType::kBF16, {3, 4}, Way::kGeneral)};
  Choices choices;
  EXPECT_EQ(choose(choices, r).why, Why::kGeneric);
  choices.card = {card, 1};
  EXPECT_EQ(choose(choices, r).way, Way::kGeneral);
  EXPECT_EQ(choose(choices, r).why, Why::kCard);
  choices.tuned = {tuned, 5};
  EXPECT_EQ(choose(choices, r).way, Way::kTensor);
  EXPECT_EQ(choose(choices, r).why, Why::kTuned);
  EXPECT_EQ(choose(choices, r).row, tuned + 3);
}

TEST(Choices, BackendFusedTakesWhatThereIsOrRefuses) {
  Choices choices;
  choices.mode = BackendMode::kFused;
  const Choice many = choose(choices, mamba1_step_request(64, 1536, DType::kBF16, false, false));
  EXPECT_EQ(many.way, Way::kFused2);
  EXPECT_EQ(many.why, Why::kBackend);
  const Request blocks = mamba1_step_request(1, 1536, DType::kBF16, true, false);
  EXPECT_EQ(choose(choices, blocks).why, Why::kRefused);
  EXPECT_NE(blocks.why_not, nullptr);
  // A norm with several rows has no such kernel, and its two are as good.
  const LinearShape rows = {4, 3072, 768, DType::kBF16, DType::kBF16, Product::kBF16, true};
  EXPECT_EQ(choose(choices, norm_linear_request(rows, DType::kBF16)).way, Way::kSequence);
  EXPECT_EQ(choose(choices, linear_request(rows)).way, Way::kTensor);
}

TEST(Choices, StreamRemembersTheFirstRefusalAndTellsItsLog) {
  std::vector<Way> told;
  Choices choices;
  choices.mode = BackendMode::kFused;
  choices.log = &told;
  choices.on_choice = [](void* log, const Request&, const Choice& choice) {
    static_cast<std::vector<Way>*>(log)->push_back(choice.way);
  };
  Stream stream;
  EXPECT_EQ(choose(stream, mamba1_step_request(1, 64, DType::kF32, false, false)).way,
            Way::kFused8);
  stream.choices = &choices;
  choose(stream, mamba1_step_request(1, 64, DType::kF32, true, false));
  choose(stream, mamba1_step_request(2, 64, DType::kF32, true, false));
  EXPECT_TRUE(choices.refused);
  EXPECT_EQ(choices.refusal.rows, 1);
  EXPECT_EQ(told, (std::vector<Way>{Way::kSequence, Way::kSequence}));
}

TEST(Choices, MeasuringForcesOneClassAlone) {
  const Request small =
      linear_request({1, 3072, 768, DType::kBF16, DType::kBF16, Product::kBF16, true});
  const Request large =
      linear_request({1, 3072, 1536, DType::kBF16, DType::kBF16, Product::kBF16, true});
  Choices choices;
  choices.focus = &small;
  for (const Way way : {Way::kRow, Way::kTensor, Way::kGeneral}) {
    choices.focus_ways = bit(way);
    EXPECT_EQ(choose(choices, small).way, way);
    EXPECT_EQ(choose(choices, large).way, Way::kRow);
  }
  choices.focus = nullptr;
  choices.forced[static_cast<int>(Operation::kLinear)] = bit(Way::kGeneral);
  EXPECT_EQ(choose(choices, large).way, Way::kGeneral);
}

TEST(Choices, ShippedRowsAreSound) {
  for (const Card card : {Card{90, 132}, Card{100, 148}, Card{80, 108}, Card{}}) {
    const ChoiceTable table = table_of_card(card);
    for (int64_t i = 0; i < table.count; ++i) {
      const ChoiceRow& row = table.rows[i];
      EXPECT_NE(ways_of(row.operation) & bit(row.winner), 0u) << i;
      EXPECT_LE(row.rows.low, row.rows.high) << i;
      EXPECT_LE(row.size.low, row.size.high) << i;
      EXPECT_LE(row.depth.low, row.depth.high) << i;
      EXPECT_GT(row.microseconds[static_cast<int>(row.winner)], 0) << i;
      for (int64_t j = 0; j < i; ++j) {  // one winner for a class
        const ChoiceRow& other = table.rows[j];
        const auto meet = [](const SizeRange& a, const SizeRange& b) {
          return a.low <= b.high && b.low <= a.high;
        };
        EXPECT_FALSE(row.operation == other.operation && row.type == other.type &&
                     meet(row.rows, other.rows) && meet(row.size, other.size) &&
                     meet(row.depth, other.depth))
            << i << " and " << j;
      }
    }
  }
}

TEST(Choices, NamesGoThereAndBack) {
  for (int i = 0; i < kWays; ++i) {
    Way way = Way::kGeneral;
    EXPECT_TRUE(way_of(name_of(static_cast<Way>(i)), &way));
    EXPECT_EQ(way, static_cast<Way>(i));
  }
  for (int i = 0; i < kOperations; ++i) {
    Operation operation = Operation::kLinear;
    EXPECT_TRUE(operation_of(name_of(static_cast<Operation>(i)), &operation));
    EXPECT_EQ(operation, static_cast<Operation>(i));
    EXPECT_GT(std::popcount(ways_of(operation)), 1);
  }
  Way way;
  EXPECT_FALSE(way_of("", &way));
  BackendMode mode;
  EXPECT_FALSE(backend_mode_of("fuse", &mode));
}

}  // namespace
}  // namespace mamba::test
