// SPDX-License-Identifier: Apache-2.0
// Every kernel has a benchmark case that runs, agrees with the reference and knows its cost.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "bench/bench.h"
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
