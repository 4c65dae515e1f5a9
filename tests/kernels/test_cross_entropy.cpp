// SPDX-License-Identifier: Apache-2.0
// cross_entropy: every backend against the f64 reference, which is checked by finite differences.
#include <gtest/gtest.h>

#include <cmath>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

struct Rows {
  int64_t rows, vocab, stride;
  std::vector<double> logits;
  std::vector<int32_t> targets;
};

// Logits in [-range, range]; every third target is ignored.
Rows make_rows(int64_t rows, int64_t vocab, int64_t gap, double range, uint64_t seed = 3) {
  Random random(seed);
  Rows r = {rows, vocab, vocab + gap, std::vector<double>(rows * (vocab + gap), NAN), {}};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t v = 0; v < vocab; ++v) {
      r.logits[i * r.stride + v] = static_cast<float>(random.uniform(-range, range));
    }
    r.targets.push_back(i % 3 == 2 ? -1 : static_cast<int32_t>(random.below(vocab)));
  }
  return r;
}

struct Result {
  std::vector<double> logits, nll;
};

Result reference(const Rows& r, bool gradient, double scale) {
  Result result = {r.logits, std::vector<double>(r.rows)};
  Stream stream;
  ref_kernels().cross_entropy(stream, {r.rows, r.vocab, r.targets.data(), result.logits.data(),
                                       r.stride, gradient, scale, result.nll.data()});
  return result;
}

struct Floats {
  std::vector<float> logits, nll;
};

Floats run(Device& device, const Rows& r, bool gradient, double scale) {
  Guarded logits(r.rows * r.stride, 1), nll(r.rows, 3);
  for (int64_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(r.logits[i]);
  device.kernels().cross_entropy(device.stream(), {r.rows, r.vocab, r.targets.data(), logits.data(),
                                                   r.stride, gradient, scale, nll.data()});
  device.sync();
  EXPECT_TRUE(logits.intact() && nll.intact());
  return {logits.values(), nll.values()};
}

// exp errs by 2 ulp and by the rounding of x - max (|x - max| 2^-24 <= 2 range 2^-24), a block of
// f32 sums by 64 roundings at most: relative (2 range + 70) 2^-24 on the sum and on a probability.
void expect_close(const Rows& r, const Floats& got, const Result& want, double range,
                  double scale) {
  const double relative = (2 * range + 70) * 0x1p-24;
  EXPECT_TRUE(close(got.nll, want.nll, relative, 0x1p-23)) << r.rows << " x " << r.vocab;
  // The target's p - 1 cancels, hence an absolute part for its element; exp() is 0 below -87.3.
  for (int64_t i = 0; i < r.rows; ++i) {
    for (int64_t v = 0; v < r.vocab; ++v) {
      const int64_t at = i * r.stride + v;
      const double atol = scale * (v == r.targets[i] ? relative : 1e-37);
      ASSERT_TRUE(close(&got.logits[at], &want.logits[at], 1, atol, 2 * relative))
          << "row " << i << " token " << v;
    }
  }
}

TEST(CrossEntropy, EqualsTheReference) {
  for (int64_t vocab : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 257, 1025, 50280}) {
    for (bool gradient : {false, true}) {
      for (double range : {1.0, 40.0}) {
        const Rows r = make_rows(vocab > 10000 ? 4 : 7, vocab, vocab % 2 * 5, range);
        const Result want = reference(r, gradient, 0.125);
        for_each_backend([&](Device& device) {
          const Floats got = run(device, r, gradient, 0.125);
          if (gradient) {
            expect_close(r, got, want, range, 0.125);
          } else {
            EXPECT_TRUE(close(got.nll, want.nll, (2 * range + 70) * 0x1p-24, 0x1p-23)) << vocab;
          }
        });
      }
    }
  }
}

TEST(CrossEntropy, WithoutGradientTheLogitsStay) {
  const Rows r = make_rows(5, 77, 0, 3);
  for_each_backend([&](Device& device) {
    const Floats got = run(device, r, false, 1);
    for (size_t i = 0; i < got.logits.size(); ++i) {
      ASSERT_EQ(got.logits[i], static_cast<float>(r.logits[i]));
    }
  });
}

TEST(CrossEntropy, IgnoredRowsAreZero) {
  Rows r = make_rows(3, 50, 0, 3);
  r.targets = {-1, -100, -1};
  for_each_backend([&](Device& device) {
    const Floats got = run(device, r, true, 1);
    for (float v : got.logits) ASSERT_EQ(v, 0.0f);
    for (float v : got.nll) ASSERT_EQ(v, 0.0f);
  });
}

TEST(CrossEntropy, HugeAndMaskedLogitsStayFinite) {
  Rows r = make_rows(2, 40, 0, 1);
  for (double& x : r.logits) x = x < 0 ? -INFINITY : 3e38;
  r.targets = {-1, -1};
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t v = 0; v < 40; ++v) {
      if (r.logits[i * 40 + v] > 0) r.targets[i] = static_cast<int32_t>(v);
    }
  }
  const Result want = reference(r, true, 1);
  for_each_backend([&](Device& device) { expect_close(r, run(device, r, true, 1), want, 1, 1); });
}

TEST(CrossEntropy, ANaNLogitGivesANaNLossOfItsRowOnly) {
  for (int64_t at : {0, 5, 16, 39}) {
    Rows r = make_rows(2, 40, 0, 1);
    r.logits[at] = NAN;
    for_each_backend([&](Device& device) {
      const Floats got = run(device, r, true, 1);
      ASSERT_TRUE(std::isnan(got.nll[0]));
      ASSERT_FALSE(std::isnan(got.nll[1]));
    });
  }
}

TEST(CrossEntropy, ThreadsAndRepetitionDoNotChangeABit) {
  const Rows r = make_rows(37, 1000, 3, 5);
  for_each_backend([&](Device& device) {
    const Floats two = run(device, r, true, 0.5);
    for (int threads : {1, 2, 3}) {
      const Floats other = run(*Device::create({device.name(), threads}), r, true, 0.5);
      ASSERT_TRUE(same_bits(other.nll.data(), two.nll.data(), r.rows));
      for (int64_t i = 0; i < r.rows; ++i) {
        ASSERT_TRUE(same_bits(other.logits.data() + i * r.stride, two.logits.data() + i * r.stride,
                              r.vocab));
      }
    }
  });
}

// Central differences of step 1e-4: error of the order of 1e-8 from the third derivative.
TEST(CrossEntropy, TheReferenceGradientEqualsFiniteDifferences) {
  Rows r = make_rows(4, 9, 2, 2);
  const Result gradient = reference(r, true, 0.7);
  for (int64_t i = 0; i < r.rows; ++i) {
    for (int64_t v = 0; v < r.vocab; ++v) {
      double& x = r.logits[i * r.stride + v];
      const double kept = x;
      x = kept + 1e-4;
      const double up = reference(r, false, 1).nll[i];
      x = kept - 1e-4;
      const double down = reference(r, false, 1).nll[i];
      x = kept;
      EXPECT_NEAR(gradient.logits[i * r.stride + v], 0.7 * (up - down) / 2e-4, 1e-8);
    }
  }
}

}  // namespace
}  // namespace mamba::test
