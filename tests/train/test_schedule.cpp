// SPDX-License-Identifier: Apache-2.0
// Learning rates against values worked out by hand.
#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "train/schedule.h"

namespace mamba {
namespace {

// All of these are a few operations on numbers near 1: 1e-15 is a handful of roundings of f64.
constexpr double kTolerance = 1e-15;

TEST(Schedule, WarmsUpToThePeak) {
  for (const LrSchedule kind :
       {LrSchedule::kConstant, LrSchedule::kLinear, LrSchedule::kCosine, LrSchedule::kWsd}) {
    const Schedule s{kind, 2.0, 0.1, 4, 100};
    EXPECT_NEAR(s.at(1), 0.5, kTolerance);
    EXPECT_NEAR(s.at(3), 1.5, kTolerance);
    EXPECT_NEAR(s.at(4), 2.0, kTolerance);
  }
}

TEST(Schedule, ConstantStays) {
  const Schedule s{LrSchedule::kConstant, 2.0, 0.1, 4, 100};
  EXPECT_EQ(s.at(5), 2.0);
  EXPECT_EQ(s.at(100), 2.0);
}

TEST(Schedule, LinearEndsAtTheRatio) {
  const Schedule s{LrSchedule::kLinear, 2.0, 0.1, 0, 100};
  EXPECT_NEAR(s.at(50), 2.0 * (0.1 + 0.9 * 0.5), kTolerance);
  EXPECT_NEAR(s.at(100), 0.2, kTolerance);
}

TEST(Schedule, CosineFallsHalfwayInTheMiddle) {
  const Schedule s{LrSchedule::kCosine, 2.0, 0.0, 20, 100};
  EXPECT_NEAR(s.at(60), 1.0, kTolerance);                        // (1 + cos(pi/2)) / 2
  EXPECT_NEAR(s.at(40), 1.0 + 0.70710678118654752, kTolerance);  // 1 + cos(pi/4)
  EXPECT_NEAR(s.at(100), 0.0, kTolerance);
}

TEST(Schedule, WsdHoldsThenDecaysInTheLastFifth) {
  const Schedule s{LrSchedule::kWsd, 2.0, 0.1, 10, 100};
  EXPECT_EQ(s.at(11), 2.0);
  EXPECT_EQ(s.at(80), 2.0);
  EXPECT_NEAR(s.at(90), 2.0 * (0.1 + 0.9 * 0.5), kTolerance);
  EXPECT_NEAR(s.at(100), 0.2, kTolerance);
}

TEST(Schedule, StaysAtTheEndPastTheLastStep) {
  const Schedule s{LrSchedule::kCosine, 2.0, 0.25, 0, 10};
  EXPECT_EQ(s.at(1000), s.at(10));
}

TEST(Schedule, WarmUpOfAllStepsNeverDecays) {
  const Schedule s{LrSchedule::kCosine, 1.0, 0.0, 8, 8};
  EXPECT_EQ(s.at(8), 1.0);
}

TEST(Schedule, NamesReadBack) {
  for (const char* name : {"constant", "linear", "cosine", "wsd"}) {
    EXPECT_STREQ(lr_schedule_name(lr_schedule_from_name(name)), name);
  }
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument,
                               {"--lr-scheduler-type", "constant, linear, cosine, wsd", "cosin"},
                               [] { lr_schedule_from_name("cosin"); }));
}

}  // namespace
}  // namespace mamba
