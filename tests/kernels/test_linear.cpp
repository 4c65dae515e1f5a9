// SPDX-License-Identifier: Apache-2.0
// linear: every backend against the f64 reference, gradients against finite differences, and the
// promise that a row of y depends on that row of x alone, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "base/f16.h"
#include "kernels/linear_packed.h"
#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

struct Case {
  int64_t M, N, K;
  Product product = Product::kF32;
  bool bf16_weight = false;
  bool packed = false;
  bool bias = false;
  bool accumulate = false;
  int64_t gap = 0;  // added to every row stride
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "M " << c.M << " N " << c.N << " K " << c.K << " bf16 "
             << (c.product != Product::kF32) << " bf16 weight " << c.bf16_weight << " packed "
             << c.packed << " bias " << c.bias << " accumulate " << c.accumulate << " gap "
             << c.gap;
}

// A (rows, cols) matrix with NaN in the gap after each row.
std::vector<double> matrix(Random& random, int64_t rows, int64_t cols, int64_t gap) {
  std::vector<double> v(static_cast<size_t>(rows * (cols + gap)), NAN);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      v[r * (cols + gap) + c] = static_cast<float>(random.uniform(-1, 1));
    }
  }
  return v;
}

void fill(Guarded& to, const std::vector<double>& from) {
  for (int64_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(from[i]);
}

// Inputs of one case; y, dx and dweight hold what an accumulating call starts from.
struct Inputs {
  explicit Inputs(const Case& c, uint64_t seed = 1) {
    Random random(seed);
    x = matrix(random, c.M, c.K, c.gap);
    dy = matrix(random, c.M, c.N, c.gap);
    weight = matrix(random, c.N, c.K, 0);
    if (c.bf16_weight) {
      for (double& w : weight) {
        weight_bits.push_back(to_bf16(static_cast<float>(w)));
        w = to_f32(weight_bits.back());
      }
    }
    bias = random.vector(c.N, -1, 1);
    dx = matrix(random, c.M, c.K, c.gap);
    y = matrix(random, c.M, c.N, c.gap);
    dweight = matrix(random, c.N, c.K, 0);
    dbias = random.vector(c.N, -1, 1);
  }
  std::vector<double> x, dy, weight, bias, dx, y, dweight, dbias;
  std::vector<bf16> weight_bits;
};

// A sum of n products of numbers in [-1, 1]: its partial sums are below 2 sqrt(n) (6 sigma), each
// of n roundings errs by 2^-24 of that, and they add like a random walk with 3 sigma to 6 n 2^-24.
double bound(int64_t n) { return 6.0 * static_cast<double>(n + 4) * 0x1p-24; }

testing::AssertionResult rows_close(const Guarded& got, const std::vector<double>& want,
                                    int64_t rows, int64_t cols, int64_t gap, double atol) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = r * (cols + gap);
    auto result = close(got.data() + at, want.data() + at, cols, atol, 0x1p-22);
    if (!result) return result << " in row " << r;
    for (int64_t g = 0; g < gap; ++g) {
      if (!std::isnan(got.data()[at + cols + g])) {
        return testing::AssertionFailure() << "wrote into the gap after row " << r;
      }
    }
  }
  return testing::AssertionSuccess();
}

std::vector<float> run_forward(Device& device, const Case& c, const Inputs& in,
                               const std::vector<double>* want = nullptr) {
  Guarded x(c.M * (c.K + c.gap), 1), weight(c.N * c.K, 3), bias(c.N, 2), y(c.M * (c.N + c.gap), 1);
  fill(x, in.x);
  fill(weight, in.weight);
  fill(bias, in.bias);
  if (c.accumulate) fill(y, in.y);
  const CBuf w = c.bf16_weight ? CBuf(in.weight_bits.data()) : CBuf(weight.data());
  const Kernels& k = device.kernels();
  PackedLinear* packed = nullptr;
  if (c.packed) k.linear_pack(device.stream(), {c.N, c.K, c.product, w, &packed});
  k.linear_forward(device.stream(),
                   {c.M, c.N, c.K, c.product, x.data(), c.K + c.gap, c.packed ? CBuf() : w, packed,
                    c.bias ? CBuf(bias.data()) : CBuf(), c.accumulate, y.data(), c.N + c.gap});
  k.linear_unpack(device.stream(), {packed});
  device.sync();
  EXPECT_TRUE(y.intact());
  if (want) {
    EXPECT_TRUE(rows_close(y, *want, c.M, c.N, c.gap, bound(c.K))) << c;
  }
  return y.values();
}

std::vector<double> reference_forward(const Case& c, const Inputs& in) {
  std::vector<double> y = in.y;
  Stream stream;
  ref_kernels().linear_forward(
      stream, {c.M, c.N, c.K, c.product, in.x.data(), c.K + c.gap, in.weight.data(), nullptr,
               c.bias ? CBuf(in.bias.data()) : CBuf(), c.accumulate, y.data(), c.N + c.gap});
  return y;
}

std::vector<float> run_backward_input(Device& device, const Case& c, const Inputs& in,
                                      const std::vector<double>* want = nullptr) {
  Guarded dy(c.M * (c.N + c.gap), 3), weight(c.N * c.K, 1), dx(c.M * (c.K + c.gap), 2);
  fill(dy, in.dy);
  fill(weight, in.weight);
  if (c.accumulate) fill(dx, in.dx);
  const CBuf w = c.bf16_weight ? CBuf(in.weight_bits.data()) : CBuf(weight.data());
  device.kernels().linear_backward_input(
      device.stream(),
      {c.M, c.N, c.K, c.product, dy.data(), c.N + c.gap, w, c.accumulate, dx.data(), c.K + c.gap});
  device.sync();
  EXPECT_TRUE(dx.intact());
  if (want) {
    EXPECT_TRUE(rows_close(dx, *want, c.M, c.K, c.gap, bound(c.N))) << c;
  }
  return dx.values();
}

std::vector<double> reference_backward_input(const Case& c, const Inputs& in) {
  std::vector<double> dx = in.dx;
  Stream stream;
  ref_kernels().linear_backward_input(
      stream, {c.M, c.N, c.K, c.product, in.dy.data(), c.N + c.gap, in.weight.data(), c.accumulate,
               dx.data(), c.K + c.gap});
  return dx;
}

struct WeightGradient {
  std::vector<double> dweight, dbias;
};

WeightGradient reference_backward_weight(const Case& c, const Inputs& in) {
  WeightGradient g = {in.dweight, in.dbias};
  Stream stream;
  ref_kernels().linear_backward_weight(
      stream, {c.M, c.N, c.K, c.product, in.dy.data(), c.N + c.gap, in.x.data(), c.K + c.gap,
               g.dweight.data(), c.bias ? Buf(g.dbias.data()) : Buf()});
  return g;
}

std::vector<float> run_backward_weight(Device& device, const Case& c, const Inputs& in,
                                       const WeightGradient* want = nullptr) {
  Guarded dy(c.M * (c.N + c.gap), 2), x(c.M * (c.K + c.gap), 3), dweight(c.N * c.K, 1),
      dbias(c.N, 3);
  fill(dy, in.dy);
  fill(x, in.x);
  fill(dweight, in.dweight);
  fill(dbias, in.dbias);
  device.kernels().linear_backward_weight(
      device.stream(), {c.M, c.N, c.K, c.product, dy.data(), c.N + c.gap, x.data(), c.K + c.gap,
                        dweight.data(), c.bias ? Buf(dbias.data()) : Buf()});
  device.sync();
  EXPECT_TRUE(dweight.intact() && dbias.intact());
  if (want) {
    EXPECT_TRUE(rows_close(dweight, want->dweight, c.N, c.K, 0, bound(c.M))) << c;
    EXPECT_TRUE(rows_close(dbias, want->dbias, 1, c.N, 0, bound(c.M))) << c;
  }
  std::vector<float> both = dweight.values();
  const std::vector<float> more = dbias.values();
  both.insert(both.end(), more.begin(), more.end());
  return both;
}

// Odd sizes around lanes, panels, tiles and blocks of the depth; every option both ways.
std::vector<Case> cases() {
  std::vector<Case> all;
  const int64_t sizes[] = {1,  2,  3,  4,  5,  7,  8,  9,  15, 16, 17,
                           31, 32, 33, 47, 48, 49, 63, 64, 65, 100};
  Random random(7);
  const auto pick = [&] { return sizes[random.below(std::size(sizes))]; };
  for (int64_t n : sizes) {
    all.push_back({n, pick(), pick()});
    all.push_back({pick(), n, pick()});
    all.push_back({pick(), pick(), n});
  }
  for (const auto& [M, N, K] : {std::array<int64_t, 3>{70, 130, 519},
                                {3, 300, 1027},
                                {600, 20, 1025},
                                {1030, 65, 33},
                                {0, 5, 5}}) {
    all.push_back({M, N, K});
  }
  const size_t plain = all.size();
  for (size_t i = 0; i < plain; ++i) {
    for (int product = 0; product < 2; ++product) {
      Case c = all[i];
      c.product = product ? Product::kBF16 : Product::kF32;
      c.bf16_weight = random.below(2);
      c.packed = random.below(2);
      c.bias = random.below(2);
      c.accumulate = random.below(2);
      c.gap = random.below(3) * 5;
      all.push_back(c);
    }
  }
  return all;
}

std::vector<std::unique_ptr<Device>> all_devices() {
  std::vector<std::unique_ptr<Device>> devices;
  for (const std::string& name : Device::available()) {
    if (name != "ref64") devices.push_back(Device::create({name, 2}));
  }
  return devices;
}

bool is_gpu(const Device& device) { return std::string(device.kernels().name) == "cuda"; }

TEST(Linear, ForwardEqualsTheReference) {
  const auto devices = all_devices();
  for (const Case& c : cases()) {
    const Inputs in(c);
    const std::vector<double> want = reference_forward(c, in);
    for (const auto& device : devices) {
      SCOPED_TRACE(device->name());
      run_forward(*device, c, in, &want);
    }
  }
}

TEST(Linear, BackwardInputEqualsTheReference) {
  const auto devices = all_devices();
  for (const Case& c : cases()) {
    const Inputs in(c);
    const std::vector<double> want = reference_backward_input(c, in);
    for (const auto& device : devices) {
      SCOPED_TRACE(device->name());
      run_backward_input(*device, c, in, &want);
    }
  }
}

TEST(Linear, BackwardWeightEqualsTheReference) {
  const auto devices = all_devices();
  for (const Case& c : cases()) {
    const Inputs in(c);
    WeightGradient want = reference_backward_weight(c, in);
    for (const auto& device : devices) {
      SCOPED_TRACE(device->name());
      run_backward_weight(*device, c, in, &want);
    }
  }
}

TEST(Linear, EqualsTheReferenceAtTheSizesOfMamba130m) {
  for (Product product : {Product::kF32, Product::kBF16}) {
    const Case c = {19, 3072, 768, product, false, true, false, false, 0};
    const Inputs in(c);
    const std::vector<double> y = reference_forward(c, in), dx = reference_backward_input(c, in);
    for_each_backend([&](Device& device) {
      if (device.name() == "ref") return;
      run_forward(device, c, in, &y);
      run_backward_input(device, c, in, &dx);
    });
  }
}

TEST(Linear, ARowDependsOnThatRowAlone) {
  for (Product product : {Product::kF32, Product::kBF16}) {
    for (int64_t K : {129, 1100}) {
      const Case whole = {200, 101, K, product};
      const Inputs in(whole);
      for_each_backend([&](Device& device) {
        // The rows of ref are plainly independent, and slow; those of a GPU follow below.
        if (device.name() == "ref" || is_gpu(device)) return;
        const std::vector<float> y = run_forward(device, whole, in);
        for (int64_t rows : {1, 2, 3, 5, 7, 8, 9, 64, 65, 130}) {
          for (int64_t first : {int64_t{0}, int64_t{1}, int64_t{66}, 200 - rows}) {
            if (first + rows > 200) continue;
            for (bool packed : {false, true}) {
              Case part = whole;
              part.M = rows;
              part.packed = packed;
              Inputs some = in;
              some.x.assign(in.x.begin() + first * K, in.x.begin() + (first + rows) * K);
              const std::vector<float> got = run_forward(device, part, some);
              ASSERT_TRUE(same_bits(got.data(), y.data() + first * 101, rows * 101))
                  << part << " first " << first;
            }
          }
        }
      });
    }
  }
}

// There a row depends on the number of rows, but neither on its place nor on its neighbours.
TEST(Linear, ARowOnAGpuDoesNotDependOnItsPlace) {
  for (Product product : {Product::kF32, Product::kBF16}) {
    for (int64_t M : {3, 8, 65, 200}) {
      const Case c = {M, 101, 1100, product};
      const Inputs in(c);
      Inputs turned = in;
      for (int64_t m = 0; m < M; ++m) {
        std::copy_n(in.x.begin() + (M - 1 - m) * c.K, c.K, turned.x.begin() + m * c.K);
      }
      for_each_backend([&](Device& device) {
        if (!is_gpu(device)) return;
        const std::vector<float> y = run_forward(device, c, in);
        const std::vector<float> other = run_forward(device, c, turned);
        for (int64_t m = 0; m < M; ++m) {
          ASSERT_TRUE(same_bits(other.data() + m * c.N, y.data() + (M - 1 - m) * c.N, c.N)) << c;
        }
      });
    }
  }
}

// Rows that begin at multiples of 16 bytes, of weights that a GPU's warps walk over.
TEST(Linear, OneRowOfALargeWeightEqualsTheReference) {
  const Case large[] = {{1, 1639, 2560, Product::kBF16, true},
                        {1, 3200, 1536, Product::kBF16, true},
                        {1, 820, 5128, Product::kBF16, true},
                        {1, 515, 8192, Product::kBF16, true},
                        {1, 175, 24640, Product::kBF16, true}};
  for (const Case& c : large) {
    const Inputs in(c);
    const std::vector<double> want = reference_forward(c, in);
    for_each_backend([&](Device& device) {
      if (!is_gpu(device)) return;
      Guarded x(c.K, 0), y(c.N, 0);
      fill(x, in.x);
      const CBuf weight(in.weight_bits.data());
      for (int again = 0; again < 2; ++again) {
        device.kernels().linear_forward(
            device.stream(), {c.M, c.N, c.K, c.product, x.data(), c.K, weight, nullptr, CBuf(),
                              false, y.data(), c.N});
        device.sync();
        EXPECT_TRUE(rows_close(y, want, c.M, c.N, 0, bound(c.K))) << c;
        EXPECT_TRUE(y.intact());
      }
    });
  }
}

TEST(Linear, ThreadsAndRepetitionDoNotChangeABit) {
  const std::function<std::vector<float>(Device&, const Case&, const Inputs&)> products[] = {
      [](Device& d, const Case& c, const Inputs& in) { return run_forward(d, c, in); },
      [](Device& d, const Case& c, const Inputs& in) { return run_backward_input(d, c, in); },
      [](Device& d, const Case& c, const Inputs& in) { return run_backward_weight(d, c, in); }};
  for (Product product : {Product::kF32, Product::kBF16}) {
    for (int64_t M : {2, 300}) {
      const Case c = {M, 250, 170, product, false, false, true, true, 0};
      const Inputs in(c);
      for_each_backend([&](Device& device) {
        for (const auto& run : products) {
          const std::vector<float> two = run(device, c, in);
          for (int threads : {1, 2, 3}) {
            const auto other = Device::create({device.name(), threads});
            const std::vector<float> again = run(*other, c, in);
            ASSERT_TRUE(same_bits(again.data(), two.data(), static_cast<int64_t>(two.size())));
          }
        }
      });
    }
  }
}

TEST(Linear, ANaNInOneRowStaysThere) {
  for (Product product : {Product::kF32, Product::kBF16}) {
    const Case c = {11, 50, 40, product};
    Inputs in(c);
    for (int64_t k = 0; k < c.K; ++k) in.x[4 * c.K + k] = NAN;
    for_each_backend([&](Device& device) {
      const std::vector<float> y = run_forward(device, c, in);
      for (int64_t i = 0; i < c.M * c.N; ++i) ASSERT_EQ(std::isnan(y[i]), i / c.N == 4) << i;
    });
  }
}

// loss = sum dy * y is linear in each input, so central differences are exact up to rounding:
// 1e-13 / step of 1e-3 relative to sums of order 1.
TEST(Linear, ReferenceGradientsEqualFiniteDifferences) {
  const Case c = {3, 4, 5, Product::kF32, false, false, true, false, 2};
  Inputs in(c);
  std::fill(in.dx.begin(), in.dx.end(), 0);
  std::fill(in.dweight.begin(), in.dweight.end(), 0);
  std::fill(in.dbias.begin(), in.dbias.end(), 0);
  const std::vector<double> dx = reference_backward_input(c, in);
  const WeightGradient g = reference_backward_weight(c, in);
  const auto loss = [&] {
    const std::vector<double> y = reference_forward(c, in);
    double sum = 0;
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t n = 0; n < c.N; ++n) sum += y[m * (c.N + 2) + n] * in.dy[m * (c.N + 2) + n];
    }
    return sum;
  };
  const auto check = [&](std::vector<double>& input, const std::vector<double>& gradient) {
    for (size_t i = 0; i < input.size(); ++i) {
      if (std::isnan(input[i])) continue;
      const double kept = input[i];
      input[i] = kept + 1e-3;
      const double up = loss();
      input[i] = kept - 1e-3;
      const double down = loss();
      input[i] = kept;
      EXPECT_NEAR(gradient[i], (up - down) / 2e-3, 1e-10) << i;
    }
  };
  check(in.x, dx);
  check(in.weight, g.dweight);
  check(in.bias, g.dbias);
}

// Exactly the weight, or the weight rounded to bf16; whether or not a copy by rows is kept.
TEST(Linear, RowsOfAPackedWeightComeBackExactly) {
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{1, 1}, {7, 3}, {49, 64}, {300, 129}}) {
    Random random(5);
    std::vector<float> weight(static_cast<size_t>(N * K));
    for (float& w : weight) w = static_cast<float>(random.uniform(-1, 1));
    std::vector<bf16> halves;
    for (const float w : weight) halves.push_back(to_bf16(w));
    std::vector<int32_t> ids = {static_cast<int32_t>(N - 1), -1, 0, static_cast<int32_t>(N / 2),
                                -1};
    for (int i = 0; i < 20; ++i) ids.push_back(static_cast<int32_t>(random.below(N)));
    const int64_t rows = static_cast<int64_t>(ids.size());
    for (int mode = 0; mode < 8; ++mode) {
      const bool narrow = mode & 1, by_rows = mode & 2, from_bf16 = mode & 4;
      const Product product = narrow ? Product::kBF16 : Product::kF32;
      for_each_backend([&](Device& device) {
        const Kernels& k = device.kernels();
        PackedLinear* packed = nullptr;
        const CBuf from = from_bf16 ? CBuf(halves.data()) : CBuf(weight.data());
        k.linear_pack(device.stream(), {N, K, product, from, &packed, by_rows});
        Guarded y(rows * K, 1);
        k.linear_rows(device.stream(), {packed, rows, ids.data(), y.data()});
        k.linear_unpack(device.stream(), {packed});
        device.sync();
        EXPECT_TRUE(y.intact());
        for (int64_t i = 0; i < rows * K; ++i) {
          const int32_t id = ids[static_cast<size_t>(i / K)];
          const size_t at = static_cast<size_t>(std::max(id, 0) * K + i % K);
          const float whole = narrow || from_bf16 ? to_f32(halves[at]) : weight[at];
          ASSERT_EQ(y[i], id < 0 ? 0.0f : whole) << device.name() << " " << N << " " << K;
        }
      });
    }
  }
}

// Widened, not rounded: the same bits as the same numbers in f32 give, at half the memory.
TEST(Linear, WeightsInF16AreThoseInF32) {
  for (const auto& [N, K] :
       {std::pair<int64_t, int64_t>{1, 1}, {5, 3}, {48, 16}, {49, 17}, {100, 31}, {131, 513}}) {
    Random random(static_cast<uint64_t>(N * K));
    std::vector<f16> half;
    std::vector<float> wide;
    for (int64_t i = 0; i < N * K; ++i) {
      // Subnormal ones too.
      half.push_back(to_f16(static_cast<float>(random.uniform(-1, 1) * (i % 7 == 0 ? 1e-6 : 1))));
      wide.push_back(to_f32(half.back()));
    }
    for_each_backend([&](Device& device) {
      const Kernels& kernels = device.kernels();
      PackedLinear *of_half = nullptr, *of_wide = nullptr;
      const CBuf halves(half.data(), DType::kF16);
      kernels.linear_pack(device.stream(), {N, K, Product::kF32, halves, &of_half});
      kernels.linear_pack(device.stream(), {N, K, Product::kF32, wide.data(), &of_wide});
      std::vector<int32_t> ids;
      for (int64_t n = 0; n < N; ++n) ids.push_back(static_cast<int32_t>(n));
      std::vector<float> rows(wide.size());
      kernels.linear_rows(device.stream(), {of_half, N, ids.data(), rows.data()});
      device.sync();
      EXPECT_EQ(rows, wide);
      EXPECT_EQ(of_half->dtype, DType::kF16);
      for (int64_t M : {1, 2, 3, 8, 9, 70}) {
        std::vector<float> x;
        for (int64_t i = 0; i < M * K; ++i) x.push_back(static_cast<float>(random.uniform(-1, 1)));
        const auto run = [&](CBuf weight, const PackedLinear* packed) {
          std::vector<float> y(static_cast<size_t>(M * N));
          LinearArgs args{};
          args.M = M, args.N = N, args.K = K, args.product = Product::kF32;
          args.x = x.data(), args.x_stride = K, args.weight = weight, args.packed = packed;
          args.y = y.data(), args.y_stride = N;
          kernels.linear_forward(device.stream(), args);
          device.sync();
          return y;
        };
        const std::vector<float> want = run(wide.data(), nullptr);
        EXPECT_EQ(run(wide.data(), of_wide), want) << M;
        EXPECT_EQ(run(CBuf(), of_half), want) << M;
        EXPECT_EQ(run(halves, nullptr), want) << M;
      }
      kernels.linear_unpack(device.stream(), {of_half});
      kernels.linear_unpack(device.stream(), {of_wide});
    });
  }
}

TEST(Linear, PackedWeightsOfAnotherShapeAreRefused) {
  for_each_backend([&](Device& device) {
    if (device.name() == "ref") return;
    const std::vector<float> weight(12, 1.0f), x(8, 1.0f);
    std::vector<float> y(4);
    PackedLinear* packed = nullptr;
    device.kernels().linear_pack(device.stream(), {3, 4, Product::kF32, weight.data(), &packed});
    device.kernels().linear_forward(device.stream(), {1, 4, 3, Product::kF32, x.data(), 3, CBuf(),
                                                      packed, CBuf(), false, y.data(), 4});
    EXPECT_THROW(device.sync(), std::exception);
    device.kernels().linear_unpack(device.stream(), {packed});
  });
}

#ifndef __SANITIZE_ADDRESS__  // which aborts on such an allocation
TEST(Linear, PackingMoreThanTheMemoryFailsWithoutACrash) {
  for_each_backend([&](Device& device) {
    PackedLinear* packed = nullptr;
    device.kernels().linear_pack(device.stream(), {int64_t{1} << 38, 1 << 12, Product::kF32,
                                                   CBuf(nullptr, DType::kF32), &packed});
    EXPECT_EQ(packed, nullptr);
    EXPECT_THROW(device.sync(), std::exception);
  });
}
#endif

}  // namespace
}  // namespace mamba::test
