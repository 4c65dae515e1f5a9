// SPDX-License-Identifier: Apache-2.0
// The elementary functions of simd.h keep the errors that docs/numerics.md states, on every ISA.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "device/cpu_features.h"

namespace mamba {

using SimdFunction = void(int function, const float* x, float* y, int64_t count);
namespace base {
SimdFunction simd_function;
}
namespace avx2 {
SimdFunction simd_function;
}
namespace avx512 {
SimdFunction simd_function;
}
namespace avx512_bf16 {
SimdFunction simd_function;
}

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Isa {
  const char* name;
  SimdFunction* run;
  bool available;
};

std::vector<Isa> isas() {
  const CpuFeatures& f = cpu_features();
  return {{"base", base::simd_function, true},
          {"avx2", avx2::simd_function, f.avx2},
          {"avx512", avx512::simd_function, f.avx512},
          {"avx512_bf16", avx512_bf16::simd_function, f.avx512_bf16}};
}

struct Function {
  const char* name;
  int index;
  double (*exact)(double);
  float low, high;  // where the bound holds
  double ulps;      // docs/numerics.md
};

// exp: the polynomial errs by less than 1 ulp, the last multiply-add and the scaling round: 2.
// sigmoid: exp, an addition and a division, 2 + 1/2 + 1/2, rounded up: 4.
// log: one correctly added tail to a polynomial: 2.
// softplus: exp and log of it, one multiplication and one division: 4.
const Function kFunctions[] = {
    {"exp", 0, [](double x) { return std::exp(x); }, -87.3f, 88.3f, 2},
    {"sigmoid", 1, [](double x) { return 1 / (1 + std::exp(-x)); }, -87.0f, 88.0f, 4},
    {"log", 2, [](double x) { return std::log(x); }, 1e-30f, 1e30f, 2},
    {"softplus", 3, [](double x) { return x > 20 ? x : std::log1p(std::exp(x)); }, -87.0f, 100.0f,
     4},
};

// Floats of both signs from 1e-30 up in [low, high], one of every `stride` bit patterns.
std::vector<float> samples(float low, float high, uint32_t stride) {
  const float first = 1e-30f, last = std::max(std::fabs(low), std::fabs(high));
  uint32_t begin, end;
  std::memcpy(&begin, &first, sizeof begin);
  std::memcpy(&end, &last, sizeof end);
  std::vector<float> values;
  for (uint32_t bits = begin; bits <= end; bits += stride) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    for (const float v : {x, -x}) {
      if (v >= low && v <= high) values.push_back(v);
    }
  }
  return values;
}

double ulp_of(double value) {
  return std::ldexp(1.0, std::max(-126, std::ilogb(static_cast<float>(value))) - 23);
}

TEST(simd, functions_keep_their_stated_errors) {
  for (const Isa& isa : isas()) {
    if (!isa.available) continue;
    for (const Function& f : kFunctions) {
      const std::vector<float> x = samples(f.low, f.high, 1009);
      ASSERT_GT(x.size(), 500000u);
      std::vector<float> y(x.size());
      isa.run(f.index, x.data(), y.data(), static_cast<int64_t>(x.size()));
      double worst = 0;
      float at = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = f.exact(x[i]);
        const double error = std::fabs(y[i] - exact) / ulp_of(exact);
        if (!(error <= worst)) worst = error, at = x[i];
      }
      std::printf("%s %s: %.2f ulp at %.9g\n", isa.name, f.name, worst, at);
      EXPECT_LE(worst, f.ulps) << isa.name << " " << f.name << "(" << at << ")";
    }
  }
}

TEST(simd, functions_at_their_ends) {
  for (const Isa& isa : isas()) {
    if (!isa.available) continue;
    SCOPED_TRACE(isa.name);
    const auto at = [&](int function, float x) {
      float y = -1;
      isa.run(function, &x, &y, 1);
      return y;
    };
    for (const int function : {0, 1, 3}) {
      EXPECT_TRUE(std::isnan(at(function, kNaN))) << kFunctions[function].name;
    }
    EXPECT_EQ(at(0, 0.0f), 1.0f);
    EXPECT_EQ(at(0, -kInf), 0.0f);
    EXPECT_EQ(at(0, -87.4f), 0.0f);
    EXPECT_EQ(at(0, kInf), at(0, 88.3f));
    EXPECT_EQ(at(1, 0.0f), 0.5f);
    EXPECT_EQ(at(1, kInf), 1.0f);
    EXPECT_GE(at(1, -kInf), 0.0f);
    EXPECT_LT(at(1, -kInf), 1e-38f);
    EXPECT_EQ(at(2, 1.0f), 0.0f);
    EXPECT_EQ(at(3, -kInf), 0.0f);
    EXPECT_EQ(at(3, 20.5f), 20.5f);
    EXPECT_EQ(at(3, kInf), kInf);
  }
}

}  // namespace
}  // namespace mamba
