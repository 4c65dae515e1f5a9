// SPDX-License-Identifier: Apache-2.0
// mamba2_step on every backend: against the f64 reference, against the kernels that it replaces bit
// for bit on the CPU, rows by themselves, and states in bf16.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/choices.h"
#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr double kEps = 1.0 / (1 << 24);

struct Options {
  int64_t B = 2, H = 4, P = 16, N = 16, G = 2, K = 4, M = 0;
  bool silu = true, bias = true, D_has_hdim = false;
  bool norm = true, before = false;
  int64_t norm_groups = 1;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
  int64_t gap = 0;  // behind rows of zx and out, and states
};

std::string text(const Options& o) {
  return "B " + std::to_string(o.B) + " H " + std::to_string(o.H) + " P " + std::to_string(o.P) +
         " N " + std::to_string(o.N) + " G " + std::to_string(o.G) + " K " + std::to_string(o.K) +
         " M " + std::to_string(o.M) + " silu " + std::to_string(o.silu) + " bias " +
         std::to_string(o.bias) + " hdim " + std::to_string(o.D_has_hdim) + " norm " +
         std::to_string(o.norm) + " before " + std::to_string(o.before) + " groups " +
         std::to_string(o.norm_groups) + " gap " + std::to_string(o.gap);
}

// The same values in f64 and f32.
struct Field {
  std::vector<double> f64;
  Guarded f32;
  Field(int64_t count, int misalign = 1)
      : f64(static_cast<size_t>(count), std::nan("")), f32(count, misalign) {}
  void set(int64_t i, double v) {
    f64[static_cast<size_t>(i)] = static_cast<float>(v);
    f32[i] = static_cast<float>(v);
  }
  template <class T>
  Buf buf() {
    if constexpr (sizeof(T) == 4) {
      return f32.data();
    } else {
      return f64.data();
    }
  }
};

struct Problem {
  Options o;
  int64_t S, C, W, state_stride, conv_count, out_stride;
  Field zx, conv_w, taps, conv_b, dt_b, A, D, norm_w, state, conv_xbc, y, out;

  Problem(const Options& options, uint64_t seed, int misalign = 1)
      : o(options),
        S(o.H * o.P),
        C(S + 2 * o.G * o.N),
        W(2 * o.M + S + C + o.H + o.gap),
        state_stride((o.K - 1) * C + S * o.N + o.gap),
        conv_count((o.K - 1) * C),
        out_stride(o.M + S + o.gap),
        zx(o.B * W, misalign),
        conv_w(C * o.K, misalign),
        taps(C * o.K, misalign),
        conv_b(C, misalign),
        dt_b(o.H, misalign),
        A(o.H, misalign),
        D(o.D_has_hdim ? S : o.H, misalign),
        norm_w(S, misalign),
        state(o.B * state_stride, misalign),
        conv_xbc(o.B * C, misalign),
        y(o.B * S, misalign),
        out(o.B * out_stride, misalign) {
    Random random(seed);
    const auto fill = [&](Field& f, double low, double high) {
      for (int64_t i = 0; i < f.f32.size(); ++i) f.set(i, random.uniform(low, high));
    };
    fill(zx, -2, 2);
    fill(state, -1, 1);
    fill(conv_w, -1, 1);
    fill(conv_b, -0.5, 0.5);
    fill(dt_b, -3, 1);
    fill(A, -8, -0.25);
    fill(D, -1, 1);
    fill(norm_w, 0.5, 1.5);
    for (int64_t c = 0; c < C; ++c) {
      for (int64_t k = 0; k < o.K; ++k) taps.set(k * C + c, conv_w.f64[c * o.K + k]);
    }
  }
  template <class T>
  Mamba2StepArgs args() {
    Mamba2StepArgs a{};
    a.B = o.B, a.H = o.H, a.P = o.P, a.N = o.N, a.G = o.G, a.K = o.K, a.M = o.M;
    a.conv_silu = o.silu, a.dt_min = o.dt_min, a.dt_max = o.dt_max;
    a.zx = zx.buf<T>(), a.zx_stride = W;
    a.conv_weight = conv_w.buf<T>(), a.conv_taps = taps.buf<T>();
    if (o.bias) a.conv_bias = conv_b.buf<T>();
    a.dt_bias = dt_b.buf<T>(), a.A = A.buf<T>(), a.D = D.buf<T>(), a.D_has_hdim = o.D_has_hdim;
    a.gated_norm = o.norm, a.norm_before_gate = o.before, a.norm_groups = o.norm_groups;
    a.norm_eps = 1e-5, a.norm_weight = norm_w.buf<T>();
    a.conv_state = state.buf<T>(), a.ssm_state = state.buf<T>() + conv_count;
    a.state_stride = state_stride;
    a.conv_xbc = conv_xbc.buf<T>(), a.y = y.buf<T>();
    a.out = out.buf<T>(), a.out_stride = out_stride;
    return a;
  }
  testing::AssertionResult intact() {
    for (Field* f : {&zx, &conv_w, &state, &conv_xbc, &y, &out}) {
      const testing::AssertionResult result = f->f32.intact();
      if (!result) return result;
    }
    return testing::AssertionSuccess();
  }
};

void run(Device& device, Problem& p) {
  device.kernels().mamba2_step(device.stream(), p.args<float>());
  device.sync();
}

double largest(const std::vector<double>& v) {
  double most = 1e-30;
  for (const double x : v) most = std::max(most, std::isnan(x) ? 0 : std::fabs(x));
  return most;
}

std::vector<double> f64_of(const Guarded& v) {
  const std::vector<float> values = v.values();
  return {values.begin(), values.end()};
}
double largest_out(const Problem& p) { return largest(f64_of(p.out.f32)); }

std::vector<Options> cases() {
  std::vector<Options> list;
  for (int64_t B = 1; B <= 9; ++B) list.push_back({.B = B});
  list.push_back({.B = 70, .H = 4, .P = 64, .N = 128, .G = 1});
  list.push_back({.B = 70, .H = 4, .P = 65, .N = 60, .G = 2});
  for (const int64_t P : {1, 3, 5, 17, 64, 65}) list.push_back({.P = P, .N = 8});
  for (const int64_t N : {1, 2, 7, 12, 33, 64, 65, 68, 128, 132, 256}) {
    list.push_back({.N = N, .gap = 4});
    list.push_back({.P = 20, .N = N, .gap = 1});
  }
  for (const int64_t K : {1, 2, 3, 5, 7}) list.push_back({.K = K});
  for (const int64_t G : {1, 4}) list.push_back({.G = G});
  list.push_back({.silu = false});
  list.push_back({.bias = false});
  list.push_back({.D_has_hdim = true});
  list.push_back({.dt_min = 0.01, .dt_max = 0.3});
  for (const int64_t M : {0, 1, 24, 600}) {
    for (const bool before : {false, true}) {
      list.push_back({.M = M, .before = before});
      list.push_back({.B = 3, .P = 9, .M = M, .before = before, .norm_groups = 4, .gap = 5});
    }
    list.push_back({.M = M, .norm = false});
    list.push_back({.P = 7, .M = M, .D_has_hdim = true, .norm = false, .gap = 3});
  }
  // Groups of the norm wider than what a GPU's block holds.
  list.push_back({.B = 1, .H = 33, .P = 256, .N = 4, .G = 1, .before = true});
  list.push_back({.B = 1, .H = 33, .P = 63, .N = 4, .G = 1});
  return list;
}

// The sum over N, of terms as large as the state, for y; the norm's sum over its group; some 32
// roundings of exponents, softplus and gates, of which |A| <= 8 multiplies those of d.
TEST(Mamba2Step, MatchesF64) {
  std::unique_ptr<Device> reference = Device::create({"ref64", 1});
  for_each_backend([&](Device& device) {
    for (const Options& o : cases()) {
      for (const int misalign : {0, 1}) {
        SCOPED_TRACE(text(o));
        Problem p(o, 5, misalign);
        ref_kernels().mamba2_step(reference->stream(), p.args<double>());
        run(device, p);
        const double terms = static_cast<double>(2 * o.N + o.H * o.P / o.norm_groups / 16 + 8 * 32);
        for (int64_t i = 0; i < p.out.f32.size(); ++i) {
          if (i % p.out_stride < o.M + p.S) continue;
          EXPECT_TRUE(std::isnan(p.out.f32[i]));
          p.out.f64[static_cast<size_t>(i)] = 0, p.out.f32[i] = 0;
        }
        EXPECT_TRUE(close(p.out.f32.values(), p.out.f64, terms * kEps * largest(p.out.f64), 0));
        EXPECT_TRUE(close(p.state.f32.values(), p.state.f64, 256 * kEps * largest(p.state.f64), 0));
        EXPECT_TRUE(p.intact());
      }
    }
  });
}

// The kernels that it stands for, one after another.
void run_parts(Device& device, Problem& p) {
  const Mamba2StepArgs a = p.args<float>();
  const Kernels& k = device.kernels();
  Stream& stream = device.stream();
  const int64_t S = p.S, C = p.C, GN = a.G * a.N, at = 2 * a.M + S;
  Conv1dArgs conv{};
  conv.B = a.B, conv.L = 1, conv.C = C, conv.K = a.K, conv.silu = a.conv_silu;
  conv.x = a.zx + at, conv.x_stride = a.zx_stride;
  conv.weight = a.conv_weight, conv.taps = a.conv_taps, conv.bias = a.conv_bias;
  conv.state_in = a.conv_state, conv.state_out = a.conv_state, conv.state_stride = a.state_stride;
  conv.y = a.conv_xbc, conv.y_stride = C;
  k.conv1d_forward(stream, conv);
  SsdStepArgs ssd{};
  ssd.B = a.B, ssd.H = a.H, ssd.P = a.P, ssd.N = a.N, ssd.G = a.G;
  ssd.dt_min = a.dt_min, ssd.dt_max = a.dt_max;
  ssd.x = a.conv_xbc, ssd.x_stride = C;
  ssd.dt = a.zx + (at + C), ssd.dt_stride = a.zx_stride, ssd.dt_bias = a.dt_bias, ssd.A = a.A;
  ssd.Bm = a.conv_xbc + S, ssd.Cm = a.conv_xbc + (S + GN), ssd.B_stride = ssd.C_stride = C;
  ssd.D = a.D, ssd.D_has_hdim = a.D_has_hdim;
  ssd.S = a.ssm_state, ssd.s_stride = a.state_stride;
  ssd.y = a.y, ssd.y_stride = S;
  k.ssd_step(stream, ssd);
  if (a.M > 0) {
    k.gate_forward(stream,
                   {a.B, a.M, a.zx + a.M, a.zx_stride, a.zx, a.zx_stride, a.out, a.out_stride});
  }
  const CBuf z = a.zx + 2 * a.M;
  if (a.gated_norm) {
    k.gated_norm_forward(stream, {a.B, S, a.norm_groups, a.norm_eps, a.norm_before_gate, a.y, S, z,
                                  a.zx_stride, a.norm_weight, a.out + a.M, a.out_stride, Buf()});
  } else {
    k.gate_forward(stream, {a.B, S, a.y, S, z, a.zx_stride, a.out + a.M, a.out_stride});
  }
  device.sync();
}

TEST(Mamba2Step, HasTheBitsOfItsPartsOnTheCpu) {
  for_each_backend([&](Device& device) {
    if (!device.memory().on_host()) return;
    for (const Options& o : cases()) {
      SCOPED_TRACE(text(o));
      Problem one(o, 6), parts(o, 6);
      run(device, one);
      run_parts(device, parts);
      EXPECT_TRUE(same_bits(one.out.f32.data(), parts.out.f32.data(), one.out.f32.size()));
      EXPECT_TRUE(same_bits(one.state.f32.data(), parts.state.f32.data(), one.state.f32.size()));
    }
  });
}

TEST(Mamba2Step, RowsDoNotDependOnEachOther) {
  for_each_backend([&](Device& device) {
    for (const int64_t B : {2, 9, 80}) {
      const Options o{.H = 4, .P = 20, .N = 24};
      Options of_all = o, of_one = o;
      of_all.B = B, of_one.B = 1;
      Problem all(of_all, 7), one(of_one, 7);
      const Problem start = all;
      run(device, all);
      for (int64_t b = 0; b < B; ++b) {
        const auto take = [&](const Field& from, Field& to, int64_t at) {
          for (int64_t i = 0; i < to.f32.size(); ++i) to.set(i, from.f64[at + i]);
        };
        take(start.zx, one.zx, b * one.W);
        take(start.state, one.state, b * one.state_stride);
        for (auto member : {&Problem::conv_w, &Problem::taps, &Problem::conv_b, &Problem::dt_b,
                            &Problem::A, &Problem::D, &Problem::norm_w}) {
          take(start.*member, one.*member, 0);
        }
        run(device, one);
        EXPECT_TRUE(
            same_bits(one.out.f32.data(), all.out.f32.data() + b * one.out_stride, one.out_stride))
            << b;
        EXPECT_TRUE(same_bits(one.state.f32.data(), all.state.f32.data() + b * one.state_stride,
                              one.state_stride))
            << b;
      }
    }
  });
}

TEST(Mamba2Step, StatesInBf16AreRoundedAfterUse) {
  for_each_backend([&](Device& device) {
    for (const int64_t K : {1, 3, 4, 6}) {
      for (const int64_t N : {3, 16, 64, 128, 136}) {
        Options o{.B = 3, .P = 7, .N = N, .K = K, .gap = 2};
        if (N % 8 == 0) o.gap = 4;
        Problem p(o, 8);
        std::vector<bf16> narrow;
        for (int64_t i = 0; i < p.state.f32.size(); ++i) {
          narrow.push_back(to_bf16(p.state.f32[i]));
          p.state.set(i, to_f32(narrow.back()));
        }
        const std::vector<bf16> start = narrow;
        Mamba2StepArgs a = p.args<float>();
        a.conv_state = Buf(narrow.data());
        a.ssm_state = a.conv_state + p.conv_count;
        device.kernels().mamba2_step(device.stream(), a);
        device.sync();
        const std::vector<float> got = p.out.f32.values();
        run(device, p);
        for (int64_t i = 0; i < p.out.f32.size(); ++i) {
          if (i % p.out_stride >= p.S) continue;
          // A GPU adds up y in another order where rows of one type are aligned and not the
          // other's.
          const double bound = device.memory().on_host() ? 0 : 1e-5;
          EXPECT_LE(std::fabs(got[static_cast<size_t>(i)] - p.out.f32[i]), bound);
        }
        for (size_t i = 0; i < narrow.size(); ++i) {
          const bool gap = static_cast<int64_t>(i) % p.state_stride >= p.state_stride - o.gap;
          const bf16 want = gap ? start[i] : to_bf16(p.state.f32[static_cast<int64_t>(i)]);
          ASSERT_EQ(narrow[i].bits, want.bits) << "element " << i;
        }
      }
    }
  });
}

// With a product behind it: that of the out of a step without, in f32 and with bf16 weights, which
// a GPU takes together with the norm.
TEST(Mamba2Step, IsFollowedByItsProduct) {
  const Options list[] = {{.B = 1, .H = 3, .P = 16, .N = 16, .G = 1},
                          {.B = 1, .H = 8, .P = 16, .N = 20, .G = 2},
                          {.B = 1, .H = 24, .P = 64, .N = 16, .G = 1, .gap = 4},
                          {.B = 1, .H = 25, .P = 64, .N = 16, .G = 1, .norm = true},
                          {.B = 1, .H = 33, .P = 64, .N = 8, .G = 1, .K = 2, .bias = false},
                          {.B = 1, .H = 40, .P = 128, .N = 8, .G = 1},
                          {.B = 1, .H = 4, .P = 7, .N = 8, .G = 1},
                          {.B = 1, .M = 8},
                          {.B = 1, .norm = false},
                          {.B = 1, .before = true},
                          {.B = 1, .norm_groups = 4},
                          {.B = 2},
                          {.B = 20}};
  for_each_backend([&](Device& device) {
    uint32_t& forced = device.choices().forced[static_cast<int>(Operation::kMamba2Step)];
    forced = device.memory().on_host() ? 0 : bit(Way::kFusedProduct);
    for (const Options& o : list) {
      for (const bool narrow : {false, true}) {
        for (const int64_t N : {1, 7, 130, 833}) {
          if (N == 833 && o.H * o.P < 5120) continue;  // a large weight
          SCOPED_TRACE(text(o) + " narrow " + std::to_string(narrow) + " N " + std::to_string(N));
          Problem one(o, 10, 0), two(o, 10, 0);
          const int64_t K = o.M + one.S;
          Random random(11);
          Field weight(N * K, 0), bias(N, 0), got(o.B * N, 0), want(o.B * N, 0);
          std::vector<bf16> half;
          for (int64_t i = 0; i < N * K; ++i) {
            half.push_back(to_bf16(static_cast<float>(random.uniform(-1, 1))));
            weight.set(i, to_f32(half.back()));
          }
          for (int64_t i = 0; i < N; ++i) bias.set(i, random.uniform(-1, 1));
          LinearArgs product{};
          product.M = o.B, product.N = N, product.K = K;
          product.product = narrow ? Product::kBF16 : Product::kF32;
          product.weight = narrow ? CBuf(half.data()) : CBuf(weight.buf<float>());
          product.bias = bias.buf<float>();
          product.x_stride = one.out_stride, product.y_stride = N;
          Mamba2StepArgs a = one.args<float>();
          LinearArgs behind = product;
          behind.x = a.out, behind.y = got.buf<float>();
          a.product = behind;
          device.kernels().mamba2_step(device.stream(), a);
          run(device, two);
          behind.x = two.args<float>().out, behind.y = want.buf<float>();
          device.kernels().linear_forward(device.stream(), behind);
          device.sync();
          if (device.memory().on_host()) {
            EXPECT_TRUE(same_bits(got.f32.data(), want.f32.data(), o.B * N));
          } else {
            // Sums in another order, and an out that is rounded to the other side of a half.
            const double each = narrow ? 1.0 / 256 : kEps * 64;
            const double bound = each * std::sqrt(static_cast<double>(K)) * largest_out(two);
            EXPECT_TRUE(close(got.f32.values(), f64_of(want.f32), bound, 0));
          }
          EXPECT_TRUE(same_bits(one.state.f32.data(), two.state.f32.data(), one.state.f32.size()));
          EXPECT_TRUE(one.intact());
          EXPECT_TRUE(got.f32.intact());
        }
      }
    }
    forced = 0;
  });
}

TEST(Mamba2Step, NothingForNoRows) {
  for_each_backend([&](Device& device) {
    Problem p({.B = 0}, 9);
    run(device, p);
  });
}

}  // namespace
}  // namespace mamba::test
