// SPDX-License-Identifier: Apache-2.0
// embed: forward copies exactly, backward adds in the order of rows, bit for bit.
#include <gtest/gtest.h>

#include <cmath>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr int64_t kVocab = 23;

std::vector<int32_t> make_ids(Random& random, int64_t rows) {
  std::vector<int32_t> ids;
  for (int64_t r = 0; r < rows; ++r)
    ids.push_back(static_cast<int32_t>(random.below(kVocab + 1)) - 1);
  return ids;
}

void fill(Guarded& to, const std::vector<double>& from) {
  for (int64_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(from[i]);
}

const int64_t kDims[] = {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 768};

TEST(Embed, ForwardCopiesRowsAndZeroesPadding) {
  for (int64_t dim : kDims) {
    for (int64_t rows : {0, 1, 3, 100}) {
      Random random(dim * 1000 + rows);
      const std::vector<int32_t> ids = make_ids(random, rows);
      const std::vector<double> values = random.vector(kVocab * dim, -2, 2);
      std::vector<bf16> halves;
      for (double v : values) halves.push_back(to_bf16(static_cast<float>(v)));
      Guarded weight(kVocab * dim, 3);
      fill(weight, values);
      for_each_backend([&](Device& device) {
        for (bool half : {false, true}) {
          Guarded y(rows * dim, 1);
          device.kernels().embed_forward(
              device.stream(), {rows, dim, kVocab, ids.data(),
                                half ? CBuf(halves.data()) : CBuf(weight.data()), y.data()});
          device.sync();
          EXPECT_TRUE(y.intact());
          for (int64_t i = 0; i < rows * dim; ++i) {
            const int64_t id = ids[i / dim], at = id * dim + i % dim;
            const float want = id < 0 ? 0.0f : half ? to_f32(halves[at]) : weight[at];
            ASSERT_EQ(y[i], want) << i;
          }
        }
      });
    }
  }
}

TEST(Embed, BackwardAddsInTheOrderOfRows) {
  for (int64_t dim : kDims) {
    for (int64_t rows : {0, 1, 5, 200}) {
      Random random(dim * 999 + rows);
      const std::vector<int32_t> ids = make_ids(random, rows);
      Guarded dy(rows * dim, 2), start(kVocab * dim, 1), want(kVocab * dim, 1);
      fill(dy, random.vector(rows * dim, -1, 1));
      fill(start, random.vector(kVocab * dim, -1, 1));
      for (int64_t i = 0; i < want.size(); ++i) want[i] = start[i];
      for (int64_t i = 0; i < rows * dim; ++i) {
        if (ids[i / dim] >= 0) want[ids[i / dim] * dim + i % dim] += dy[i];
      }
      for (int threads : {1, 2, 3}) {
        for_each_backend(
            [&](Device& device) {
              Guarded dweight(kVocab * dim, 3);
              for (int64_t i = 0; i < want.size(); ++i) dweight[i] = start[i];
              device.kernels().embed_backward(
                  device.stream(), {rows, dim, kVocab, ids.data(), dy.data(), dweight.data()});
              device.sync();
              EXPECT_TRUE(dweight.intact());
              ASSERT_TRUE(same_bits(dweight.data(), want.data(), want.size()));
            },
            threads);
      }
    }
  }
}

// The loss sum dy * y is linear in the weight: differences are exact up to rounding / step.
TEST(Embed, ReferenceGradientEqualsFiniteDifferences) {
  constexpr int64_t kRows = 6, kDim = 3, kTokens = 4;
  Random random(5);
  const std::vector<int32_t> ids = {3, 0, -1, 3, 1, 3};
  const std::vector<double> dy = random.vector(kRows * kDim, -1, 1);
  std::vector<double> weight = random.vector(kTokens * kDim, -1, 1);
  std::vector<double> gradient(weight.size());
  Stream stream;
  ref_kernels().embed_backward(stream,
                               {kRows, kDim, kTokens, ids.data(), dy.data(), gradient.data()});
  const auto loss = [&] {
    std::vector<double> y(kRows * kDim);
    ref_kernels().embed_forward(stream,
                                {kRows, kDim, kTokens, ids.data(), weight.data(), y.data()});
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  };
  for (size_t i = 0; i < weight.size(); ++i) {
    const double kept = weight[i];
    weight[i] = kept + 1e-3;
    const double up = loss();
    weight[i] = kept - 1e-3;
    const double down = loss();
    weight[i] = kept;
    EXPECT_NEAR(gradient[i], (up - down) / 2e-3, 1e-11);
  }
}

}  // namespace
}  // namespace mamba::test
