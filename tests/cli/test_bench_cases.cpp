// SPDX-License-Identifier: Apache-2.0
// Every kernel has a benchmark case that runs, agrees with the reference and knows its cost.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>

#include "bench/bench.h"
#include "bench/roofline_chart.h"
#include "support/backends.h"
#include "support/expect_error.h"

namespace mamba {
namespace {

// The sample shape with every large size cut down.
Shape small(const KernelEntry& entry) {
  Shape shape = entry.sample;
  for (const auto& [name, value] : entry.sample.sizes()) {
    if (value > 48) shape.set(name, 33);
  }
  return shape;
}

TEST(BenchCases, EveryKernelAgreesWithTheReferenceOnEveryBackend) {
  MeasureOptions timing;
  timing.seconds = 0;
  timing.min_runs = 1;
  for (const std::string& name : Device::available()) {
    if (name == "ref64") continue;
    ModelOptions options;
    options.device = name;
    options.threads = 2;
    for (const KernelEntry& entry : kernel_entries()) {
      SCOPED_TRACE(name + " " + entry.name);
      const KernelReport r = bench_kernel(entry, small(entry), options, timing, false);
      EXPECT_EQ(r.device, name);
      EXPECT_LE(r.error, r.tolerance);
      EXPECT_GT(r.cost.bytes, 0);
      EXPECT_GE(r.time.runs, 1);
    }
  }
}

TEST(BenchCases, ProductsOfEveryTypeOfBlocks) {
  MeasureOptions timing;
  timing.seconds = 0;
  timing.min_runs = 1;
  ModelOptions options;
  options.threads = 2;
  for (const KernelEntry& entry : quant_kernel_entries()) {
    for (const char* type :
         {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_nl"}) {
      Shape shape = small(entry);
      shape.set_type(type);
      SCOPED_TRACE(std::string(entry.name) + " " + shape.text());
      EXPECT_NE(shape.text().find(std::string("type=") + type), std::string::npos);
      EXPECT_EQ(shape.multiplies(), "int8");
      const KernelReport r = bench_kernel(entry, shape, options, timing, false);
      EXPECT_LE(r.error, r.tolerance);
    }
  }
  Shape shape = quant_kernel_entries()[0].sample;
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"q4_0", "iq4_nl", "'q3_k'"},
                               [&] { shape.set_type("q3_k"); }));
  Shape plain = {{"M", 2}, {"bf16", 0}};
  EXPECT_EQ(plain.multiplies(), "f32");
  plain.set("bf16", 1);
  EXPECT_EQ(plain.multiplies(), "bf16");
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"M=2 bf16=1", "'type'"},
                               [&] { plain.set_type("q4_0"); }));
}

TEST(BenchCases, TheRooflineDrawsEveryTypeOfBlocksAtDecode) {
  std::set<std::string> types;
  for (const KernelEntry& entry : quant_kernel_entries()) {
    for (const Shape& shape : kernel_shapes(entry)) {
      const std::string text = shape.text();
      if (text.starts_with("M=1 ")) types.insert(text.substr(text.find("type=") + 5));
    }
  }
  EXPECT_EQ(types, (std::set<std::string>{"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k",
                                          "q6_k", "iq4_nl"}));
}

TEST(BenchCases, LimitsAreTheBestOfAllNumbersOfThreads) {
  MachineLimits limits;
  limits.l2_bytes = limits.l3_bytes = 1;
  limits.reads = {{"memory", 1, 0, 12}, {"memory", 2, 0, 9}, {"L2", 4, 0, 99}};
  limits.computes = {{"int8", "", 1, 300}, {"int8", "", 2, 200}, {"f32", "", 2, 50}};
  EXPECT_EQ(limits.read("memory"), 12);
  EXPECT_EQ(limits.compute("int8"), 300);
  EXPECT_EQ(limits.compute("bf16"), 0);
  RooflinePoint point;
  point.type = "int8";
  point.flops = 330e9, point.bytes = 1e9, point.seconds = 1;
  EXPECT_TRUE(roof_of(point, limits, 2).exceeded());
  point.seconds = 2;
  EXPECT_FALSE(roof_of(point, limits, 2).exceeded());
  Limits two;
  two.f32_gflop_per_s = 50;
  EXPECT_EQ(two.rate("int8").first, "f32");
  two.int8_gop_per_s = 300;
  EXPECT_EQ(two.rate("int8"), (std::pair<std::string, double>("int8", 300)));
}

TEST(BenchCases, NoKernelIsMissing) {
  std::set<std::string> listed, expected;
  for (const KernelEntry& entry : kernel_entries()) listed.insert(entry.name);
#define MAMBA_KERNEL(function, Args) expected.insert(#function);
#include "kernels/kernels.def"
#undef MAMBA_KERNEL
  expected.erase("linear_pack");  // they only prepare weights
  expected.erase("linear_unpack");
  expected.erase("linear_q_pack");
  EXPECT_EQ(listed, expected);
}

TEST(BenchCases, MeasureGivesOrderedTimes) {
  MeasureOptions timing;
  timing.seconds = 0;
  timing.min_runs = 9;
  int calls = 0;
  const Measurement m = measure(timing, [&] { ++calls; });
  EXPECT_EQ(m.runs, 9);
  EXPECT_EQ(calls, 11);  // two to warm up
  EXPECT_LE(m.min, m.median);
  EXPECT_GE(m.spread, 0);
}

TEST(BenchCases, UnknownSizesAreRefused) {
  Shape shape = {{"B", 2}, {"bf16", 0}};
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"B=2 bf16=0", "'Q'"},
                               [&] { shape.set("Q", 3); }));
  EXPECT_TRUE(
      test::fails_with(ErrorCode::kInvalidArgument, {"B", "got 0"}, [&] { shape.set("B", 0); }));
  EXPECT_TRUE(test::fails_with(ErrorCode::kInvalidArgument, {"bf16", "0..1", "got 2"},
                               [&] { shape.set("bf16", 2); }));
}

}  // namespace
}  // namespace mamba
