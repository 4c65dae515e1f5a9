// SPDX-License-Identifier: Apache-2.0
// mamba1_step on every backend: against the f64 reference, against the kernels that it replaces bit
// for bit on the CPU, rows by themselves, states in bf16, and all types of weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/f16.h"
#include "kernels/choices.h"
#include "kernels/linear_packed.h"
#include "quant/quantize.h"
#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr double kEps = 1.0 / (1 << 24);

struct Options {
  int64_t B = 2, E = 48, N = 16, R = 3, K = 4;
  bool silu = true, norms = false, bias = true;
  Product product = Product::kF32;
  DType weights = DType::kF32;  // f32, f16, or blocks
  bool packed = false;
  bool integers = false;  // products of bf16 then have exact operands, in f32 as in f64
  int64_t gap = 0;        // behind rows of xz and y, and states
};

std::string text(const Options& o) {
  return "B " + std::to_string(o.B) + " E " + std::to_string(o.E) + " N " + std::to_string(o.N) +
         " R " + std::to_string(o.R) + " K " + std::to_string(o.K) + " silu " +
         std::to_string(o.silu) + " norms " + std::to_string(o.norms) + " bias " +
         std::to_string(o.bias) + " bf16 " + std::to_string(o.product == Product::kBF16) + " " +
         dtype_name(o.weights) + " packed " + std::to_string(o.packed) + " gap " +
         std::to_string(o.gap);
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
  int64_t W, state_stride, conv_count;
  Field xz, conv_w, taps, conv_b, x_w, dt_w, dt_b, A, D, state, conv_x, x_dbl, normed, delta, y;
  std::vector<f16> half_x, half_dt;

  Problem(const Options& options, uint64_t seed, int misalign = 1)
      : o(options),
        W(o.R + 2 * o.N),
        state_stride((o.K - 1 + o.N) * o.E + o.gap),
        conv_count((o.K - 1) * o.E),
        xz(o.B * (2 * o.E + o.gap), misalign),
        conv_w(o.E * o.K, misalign),
        taps(o.E * o.K, misalign),
        conv_b(o.E, misalign),
        x_w(W * o.E, misalign),
        dt_w(o.E * o.R, misalign),
        dt_b(o.E, misalign),
        A(o.N * o.E, misalign),
        D(o.E, misalign),
        state(o.B * state_stride, misalign),
        conv_x(o.B * o.E, misalign),
        x_dbl(o.B * W, misalign),
        normed(o.B * W, misalign),
        delta(o.B * o.E, misalign),
        y(o.B * (o.E + o.gap), misalign) {
    Random random(seed);
    const auto fill = [&](Field& f, double low, double high) {
      for (int64_t i = 0; i < f.f32.size(); ++i) f.set(i, random.uniform(low, high));
    };
    const auto fill_integers = [&](Field& f, int64_t most) {
      for (int64_t i = 0; i < f.f32.size(); ++i) {
        f.set(i, static_cast<double>(random.below(2 * most + 1) - most));
      }
    };
    fill(xz, -2, 2);
    fill(state, -1, 1);
    fill(conv_w, -1, 1);
    fill(conv_b, -0.5, 0.5);
    const double scale = 2 / std::sqrt(static_cast<double>(o.E));
    fill(x_w, -scale, scale);
    fill(dt_w, -1 / std::sqrt(static_cast<double>(o.R)), 1 / std::sqrt(static_cast<double>(o.R)));
    fill(dt_b, -3, 0);
    fill(A, -8, -0.25);
    fill(D, -1, 1);
    if (o.integers) {
      for (Field* f : {&xz, &conv_w, &conv_b, &x_w, &dt_w}) fill_integers(*f, 1);
      for (int64_t i = 0; i < x_w.f32.size(); ++i) x_w.set(i, x_w.f64[i] / 16);
      for (int64_t i = 0; i < o.B * state_stride; ++i) {
        if (i % state_stride < conv_count) state.set(i, std::round(state.f64[i]));
      }
    }
    if (o.weights == DType::kF16) {
      for (Field* f : {&x_w, &dt_w}) {
        std::vector<f16>& half = f == &x_w ? half_x : half_dt;
        for (int64_t i = 0; i < f->f32.size(); ++i) {
          half.push_back(to_f16(f->f32[i]));
          f->set(i, to_f32(half.back()));
        }
      }
    }
    for (int64_t c = 0; c < o.E; ++c) {
      for (int64_t k = 0; k < o.K; ++k) taps.set(k * o.E + c, conv_w.f64[c * o.K + k]);
    }
  }

  template <class T>
  Mamba1StepArgs args() {
    Mamba1StepArgs a{};
    a.B = o.B, a.E = o.E, a.N = o.N, a.R = o.R, a.K = o.K;
    a.conv_silu = o.silu, a.norms = o.norms, a.norm_eps = 1e-6, a.product = o.product;
    a.xz = xz.buf<T>(), a.xz_stride = 2 * o.E + o.gap;
    a.conv_weight = conv_w.buf<T>(), a.conv_taps = taps.buf<T>();
    if (o.bias) a.conv_bias = conv_b.buf<T>();
    a.x_weight = x_w.buf<T>(), a.dt_weight = dt_w.buf<T>();
    if (!half_x.empty() && sizeof(T) == 4) {
      a.x_weight = CBuf(half_x.data(), DType::kF16),
      a.dt_weight = CBuf(half_dt.data(), DType::kF16);
    }
    a.dt_bias = dt_b.buf<T>(), a.A_t = A.buf<T>(), a.D = D.buf<T>();
    a.conv_state = state.buf<T>(), a.ssm_state = state.buf<T>() + conv_count;
    a.state_stride = state_stride;
    a.conv_x = conv_x.buf<T>(), a.x_dbl = x_dbl.buf<T>(), a.delta = delta.buf<T>();
    if (o.norms) a.normed = normed.buf<T>();
    a.y = y.buf<T>(), a.y_stride = o.E + o.gap;
    return a;
  }
  testing::AssertionResult intact() {
    for (Field* f : {&xz, &x_w, &dt_w, &state, &conv_x, &x_dbl, &normed, &delta, &y}) {
      const testing::AssertionResult result = f->f32.intact();
      if (!result) return result;
    }
    return testing::AssertionSuccess();
  }
};

// Packs the weights as asked for; gives them back.
class Weights {
 public:
  Weights(Device& device, Problem& p, Mamba1StepArgs& a) : device_(device) {
    if (is_quantized(p.o.weights)) {
      pack_blocks(p.x_w, p.W, p.o.E, p.o.weights, &x_);
      pack_blocks(p.dt_w, p.o.E, p.o.R, p.o.weights, &dt_);
    } else if (p.o.packed) {
      const Kernels& k = device.kernels();
      k.linear_pack(device.stream(), {p.W, p.o.E, p.o.product, a.x_weight, &x_});
      k.linear_pack(device.stream(), {p.o.E, p.o.R, p.o.product, a.dt_weight, &dt_});
    }
    if (x_ != nullptr) a.x_packed = x_, a.x_weight = CBuf();
    if (dt_ != nullptr) a.dt_packed = dt_, a.dt_weight = CBuf();
  }
  ~Weights() {
    device_.kernels().linear_unpack(device_.stream(), {x_});
    device_.kernels().linear_unpack(device_.stream(), {dt_});
  }

 private:
  // The other weight stays dense where its rows are no whole blocks.
  void pack_blocks(Field& f, int64_t N, int64_t K, DType type, PackedLinear** out) {
    if (K % 32 != 0) return;
    std::vector<char> blocks(static_cast<size_t>(dtype_bytes(type, N * K)));
    ASSERT_TRUE(quantize(type, f.f32.data(), nullptr, N * K, blocks.data()));
    device_.kernels().linear_q_pack(device_.stream(), {N, K, CBuf(blocks.data(), type), out});
  }
  Device& device_;
  PackedLinear *x_ = nullptr, *dt_ = nullptr;
};

void run(Device& device, Problem& p) {
  Mamba1StepArgs a = p.args<float>();
  const Weights weights(device, p, a);
  device.kernels().mamba1_step(device.stream(), a);
  device.sync();
}

double largest(const std::vector<double>& v) {
  double most = 1e-30;
  for (const double x : v) most = std::max(most, std::isnan(x) ? 0 : std::fabs(x));
  return most;
}

std::vector<Options> cases() {
  std::vector<Options> list;
  for (int64_t B = 1; B <= 9; ++B) list.push_back({.B = B});
  for (const int64_t B : {17, 33}) list.push_back({.B = B, .E = 40});
  // More rows than a GPU takes at once: its blocks then go through several.
  list.push_back({.B = 64, .E = 3000});
  for (const int64_t E : {1, 7, 33, 256, 300, 520}) list.push_back({.E = E});
  for (const int64_t N : {1, 5, 8, 17, 40}) list.push_back({.N = N, .gap = 3});
  for (const int64_t R : {1, 8, 48, 65, 200}) list.push_back({.R = R});
  for (const int64_t K : {1, 2, 3, 5, 7}) list.push_back({.K = K, .gap = 4});
  list.push_back({.silu = false});
  list.push_back({.bias = false});
  list.push_back({.E = 70, .R = 40, .norms = true});
  list.push_back({.B = 5, .E = 64, .N = 3, .R = 1, .norms = true, .packed = true});
  list.push_back({.B = 3, .E = 100, .R = 6, .packed = true});
  for (const bool packed : {false, true}) {
    list.push_back({.B = 3, .E = 64, .R = 8, .weights = DType::kF16, .packed = packed});
    list.push_back({.E = 33, .R = 5, .weights = DType::kF16, .packed = packed});
    list.push_back({.B = 3,
                    .E = 264,
                    .R = 16,
                    .silu = false,
                    .product = Product::kBF16,
                    .packed = packed,
                    .integers = true});
    list.push_back({.E = 45,
                    .R = 5,
                    .silu = false,
                    .product = Product::kBF16,
                    .packed = packed,
                    .integers = true});
  }
  return list;
}

// E roundings of x_proj and R of dt_proj move d, which |A| <= 8 multiplies in the exponent; the
// rest is the sum over N and some 16 roundings of softplus and gates.
TEST(Mamba1Step, MatchesF64) {
  std::unique_ptr<Device> reference = Device::create({"ref64", 1});
  for_each_backend([&](Device& device) {
    for (const Options& o : cases()) {
      for (const int misalign : {0, 1}) {
        SCOPED_TRACE(text(o));
        Problem p(o, 5, misalign);
        ref_kernels().mamba1_step(reference->stream(), p.args<double>());
        run(device, p);
        const double terms = 8 * static_cast<double>(o.E + o.R) + static_cast<double>(o.N + 16);
        // What is between the rows keeps its values, NaN in y.
        for (int64_t i = 0; i < p.y.f32.size(); ++i) {
          if (i % (o.E + o.gap) < o.E) continue;
          EXPECT_TRUE(std::isnan(p.y.f32[i]));
          p.y.f64[static_cast<size_t>(i)] = 0, p.y.f32[i] = 0;
        }
        EXPECT_TRUE(close(p.y.f32.values(), p.y.f64, terms * kEps * largest(p.y.f64), 0));
        EXPECT_TRUE(
            close(p.state.f32.values(), p.state.f64, terms * kEps * largest(p.state.f64), 0));
        EXPECT_TRUE(p.intact());
      }
    }
  });
}

// The kernels that it stands for, one after another.
void run_parts(Device& device, Problem& p) {
  Mamba1StepArgs a = p.args<float>();
  const Weights weights(device, p, a);
  const Kernels& k = device.kernels();
  Stream& stream = device.stream();
  Conv1dArgs conv{};
  conv.B = a.B, conv.L = 1, conv.C = a.E, conv.K = a.K, conv.silu = a.conv_silu;
  conv.x = a.xz, conv.x_stride = a.xz_stride;
  conv.weight = a.conv_weight, conv.taps = a.conv_taps, conv.bias = a.conv_bias;
  conv.state_in = a.conv_state, conv.state_out = a.conv_state, conv.state_stride = a.state_stride;
  conv.y = a.conv_x, conv.y_stride = a.E;
  k.conv1d_forward(stream, conv);
  const auto linear = [&](CBuf x, int64_t x_stride, CBuf w, const PackedLinear* packed, int64_t N,
                          int64_t K, Buf y) {
    if (packed != nullptr && is_quantized(packed->dtype)) {
      k.linear_q_forward(stream, {a.B, N, K, x, x_stride, packed, CBuf(), y, N});
    } else {
      k.linear_forward(stream, {a.B, N, K, a.product, x, x_stride, w, packed, CBuf(), false, y, N});
    }
  };
  linear(a.conv_x, a.E, a.x_weight, a.x_packed, p.W, a.E, a.x_dbl);
  const int64_t at[] = {0, a.R, a.R + a.N}, dims[] = {a.R, a.N, a.N};
  for (int i = 0; i < 3 && a.norms; ++i) {
    k.rms_norm_forward(stream, {a.B, dims[i], a.norm_eps, a.x_dbl + at[i], p.W, CBuf(), CBuf(),
                                Buf(), a.normed + at[i], p.W, Buf()});
  }
  const Buf dbl = a.norms ? a.normed : a.x_dbl;
  linear(dbl, p.W, a.dt_weight, a.dt_packed, a.E, a.R, a.delta);
  ScanStepArgs scan{};
  scan.B = a.B, scan.E = a.E, scan.N = a.N, scan.G = 1, scan.bc = ScanBC::kGrouped;
  scan.delta_softplus = true;
  scan.u = a.conv_x, scan.u_stride = a.E, scan.delta = a.delta, scan.delta_stride = a.E;
  scan.delta_bias = a.dt_bias, scan.A_t = a.A_t, scan.D = a.D;
  scan.Bm = dbl + a.R, scan.Cm = dbl + (a.R + a.N), scan.B_stride = scan.C_stride = p.W;
  scan.z = a.xz + a.E, scan.z_stride = a.xz_stride;
  scan.h = a.ssm_state, scan.h_stride = a.state_stride;
  scan.y = a.y, scan.y_stride = a.y_stride;
  k.scan_step(stream, scan);
  device.sync();
}

TEST(Mamba1Step, HasTheBitsOfItsPartsOnTheCpu) {
  for_each_backend([&](Device& device) {
    std::vector<Options> list = cases();
    for (const DType type : {DType::kQ8_0, DType::kQ4_0}) {
      list.push_back({.B = 3, .E = 64, .R = 32, .weights = type});
      list.push_back({.E = 64, .R = 5, .weights = type});
    }
    for (const Options& o : list) {
      // On a GPU only blocks go through the parts.
      if (!device.memory().on_host() && !is_quantized(o.weights)) continue;
      SCOPED_TRACE(text(o));
      Problem one(o, 6), parts(o, 6);
      run(device, one);
      run_parts(device, parts);
      EXPECT_TRUE(same_bits(one.y.f32.data(), parts.y.f32.data(), one.y.f32.size()));
      EXPECT_TRUE(same_bits(one.state.f32.data(), parts.state.f32.data(), one.state.f32.size()));
    }
  });
}

TEST(Mamba1Step, RowsDoNotDependOnEachOther) {
  for_each_backend([&](Device& device) {
    // A GPU takes more than 16 rows through other kernels.
    for (const int64_t B : {2, 9, device.memory().on_host() ? 20 : 16}) {
      Problem all({.B = B, .E = 300, .R = 20}, 7), one({.B = 1, .E = 300, .R = 20}, 7);
      const Problem start = all;
      run(device, all);
      for (int64_t b = 0; b < B; ++b) {
        const auto take = [&](const Field& from, Field& to) {
          for (int64_t i = 0; i < to.f32.size(); ++i) to.set(i, from.f64[b * to.f32.size() + i]);
        };
        take(start.xz, one.xz);
        take(start.state, one.state);
        for (auto member : {&Problem::conv_w, &Problem::taps, &Problem::conv_b, &Problem::x_w,
                            &Problem::dt_w, &Problem::dt_b, &Problem::A, &Problem::D}) {
          for (int64_t i = 0; i < (one.*member).f32.size(); ++i) {
            (one.*member).set(i, (start.*member).f64[i]);
          }
        }
        run(device, one);
        EXPECT_TRUE(same_bits(one.y.f32.data(), all.y.f32.data() + b * 300, 300)) << b;
        EXPECT_TRUE(same_bits(one.state.f32.data(), all.state.f32.data() + b * one.state.f32.size(),
                              one.state.f32.size()))
            << b;
      }
    }
  });
}

TEST(Mamba1Step, StatesInBf16AreRoundedAfterUse) {
  for_each_backend([&](Device& device) {
    for (const int64_t K : {1, 3, 4, 6}) {
      for (const int64_t N : {3, 16, 20}) {
        const Options o{.B = 3, .E = 45, .N = N, .K = K, .gap = 2};
        Problem p(o, 8);
        std::vector<bf16> narrow;
        for (int64_t i = 0; i < p.state.f32.size(); ++i) {
          narrow.push_back(to_bf16(p.state.f32[i]));
          p.state.set(i, to_f32(narrow.back()));
        }
        const std::vector<bf16> start = narrow;
        Mamba1StepArgs a = p.args<float>();
        a.conv_state = Buf(narrow.data());
        a.ssm_state = a.conv_state + p.conv_count;
        device.kernels().mamba1_step(device.stream(), a);
        device.sync();
        const std::vector<float> y = p.y.f32.values();
        run(device, p);
        EXPECT_TRUE(same_bits(y.data(), p.y.f32.data(), p.y.f32.size()));
        for (size_t i = 0; i < narrow.size(); ++i) {
          const bool gap = static_cast<int64_t>(i) % p.state_stride >= p.state_stride - o.gap;
          const bf16 want = gap ? start[i] : to_bf16(p.state.f32[static_cast<int64_t>(i)]);
          ASSERT_EQ(narrow[i].bits, want.bits) << "element " << i;
        }
      }
    }
  });
}

// norm_linear in front, by the step or before it.
TEST(Mamba1Step, TakesTheProductInFrontOfIt) {
  struct Front {
    Options o;
    int64_t D;
    bool norm_weight = true, residual = true, packed = false;
  };
  const Front list[] = {{{.B = 1, .E = 16, .N = 2, .R = 4}, 8},
                        {{.B = 1, .E = 48, .R = 4}, 64},
                        {{.B = 1, .E = 160, .N = 8, .R = 48, .norms = true}, 72, true, true, true},
                        {{.B = 1, .E = 1536, .R = 48, .gap = 8}, 768, true, true, true},
                        {{.B = 1, .E = 272, .R = 8, .K = 2, .bias = false}, 760, false},
                        {{.B = 1, .E = 264, .R = 12, .K = 6}, 776, true, false},
                        {{.B = 1, .E = 520, .N = 64, .R = 128, .silu = false}, 1024},
                        {{.B = 1, .E = 520, .N = 64, .R = 132}, 1024},
                        {{.B = 1, .E = 48, .R = 4}, 1032},
                        {{.B = 1, .E = 40, .R = 4}, 64},
                        {{.B = 1, .E = 48, .R = 3}, 64},
                        {{.B = 2, .E = 48, .R = 4}, 64}};
  for_each_backend([&](Device& device) {
    uint32_t& forced = device.choices().forced[static_cast<int>(Operation::kMamba1Step)];
    forced = device.memory().on_host() ? 0 : bit(Way::kFusedInput);
    for (const Front& front : list) {
      SCOPED_TRACE(text(front.o) + " D " + std::to_string(front.D));
      Options o = front.o;
      o.product = Product::kBF16;
      Problem one(o, 10, 0), two(o, 10, 0);
      const int64_t D = front.D, B = o.B;
      Random random(11);
      const auto narrow = [&](int64_t count, double scale) {
        std::vector<bf16> v;
        for (int64_t i = 0; i < count; ++i) {
          v.push_back(to_bf16(static_cast<float>(random.uniform(-scale, scale))));
        }
        return v;
      };
      const std::vector<bf16> x = narrow(B * D, 1),
                              in_w = narrow(2 * o.E * D, 2 / std::sqrt(static_cast<double>(D))),
                              x_w = narrow(one.W * o.E, 2 / std::sqrt(static_cast<double>(o.E)));
      Field residual(B * D, 0), weight(D, 0), bias(2 * o.E, 0);
      for (int64_t i = 0; i < B * D; ++i) residual.set(i, random.uniform(-1, 1));
      for (int64_t i = 0; i < D; ++i) weight.set(i, random.uniform(0.5, 1.5));
      for (int64_t i = 0; i < 2 * o.E; ++i) bias.set(i, random.uniform(-1, 1));
      const Kernels& k = device.kernels();
      PackedLinear *in_packed = nullptr, *x_packed = nullptr;
      if (front.packed) {
        k.linear_pack(device.stream(), {2 * o.E, D, Product::kBF16, CBuf(in_w.data()), &in_packed});
        k.linear_pack(device.stream(), {one.W, o.E, Product::kBF16, CBuf(x_w.data()), &x_packed});
      }
      // Activations of CPUs are f32.
      const bool host = device.memory().on_host();
      std::vector<float> wide_x;
      for (const bf16 v : x) wide_x.push_back(to_f32(v));
      struct Room {
        Field summed, wide;
        std::vector<bf16> normed;
        explicit Room(int64_t count)
            : summed(count, 0), wide(count, 0), normed(static_cast<size_t>(count)) {}
      };
      Room room_one(B * D), room_two(B * D);
      const auto input = [&](Problem& p, Room& room) {
        NormLinearArgs a{};
        a.norm.rows = B, a.norm.dim = D, a.norm.eps = 1e-5;
        a.norm.x = host ? CBuf(wide_x.data()) : CBuf(x.data()), a.norm.x_stride = D;
        if (front.residual) a.norm.residual = residual.buf<float>();
        if (front.norm_weight) a.norm.weight = weight.buf<float>();
        a.norm.residual_out = room.summed.buf<float>();
        a.norm.y = host ? room.wide.buf<float>() : Buf(room.normed.data()), a.norm.y_stride = D;
        LinearArgs& product = a.product;
        product.M = B, product.N = 2 * o.E, product.K = D, product.product = Product::kBF16;
        product.x = a.norm.y, product.x_stride = D;
        product.weight = front.packed ? CBuf() : CBuf(in_w.data()), product.packed = in_packed;
        product.bias = bias.buf<float>();
        product.y = p.xz.buf<float>(), product.y_stride = 2 * o.E + o.gap;
        return a;
      };
      const auto step = [&](Problem& p) {
        Mamba1StepArgs a = p.args<float>();
        a.x_weight = front.packed ? CBuf() : CBuf(x_w.data()), a.x_packed = x_packed;
        return a;
      };
      Mamba1StepArgs whole = step(one);
      whole.input = input(one, room_one);
      k.mamba1_step(device.stream(), whole);
      k.norm_linear(device.stream(), input(two, room_two));
      k.mamba1_step(device.stream(), step(two));
      device.sync();
      k.linear_unpack(device.stream(), {in_packed});
      k.linear_unpack(device.stream(), {x_packed});
      const int64_t W = one.W;
      EXPECT_TRUE(same_bits(room_one.summed.f32.data(), room_two.summed.f32.data(), B * D));
      if (host) {
        EXPECT_TRUE(same_bits(one.y.f32.data(), two.y.f32.data(), one.y.f32.size()));
        EXPECT_TRUE(same_bits(one.state.f32.data(), two.state.f32.data(), one.state.f32.size()));
      } else {
        // Sums in another order, and inputs of products on the other side of a tie: of D, E and R
        // terms, each by 2^-9 of itself.
        const double each = 0x1p-9 * 3 / std::sqrt(static_cast<double>(std::min({D, o.E, W})));
        const auto near = [&](const Field& got, const Field& want) {
          // What is between the rows keeps its values, NaN in y.
          std::vector<float> left = got.f32.values(), right = want.f32.values();
          double most = 1e-30;
          for (size_t i = 0; i < right.size(); ++i) {
            if (std::isnan(left[i]) && std::isnan(right[i])) left[i] = right[i] = 0;
            most = std::max<double>(most, std::fabs(right[i]));
          }
          return close(left, {right.begin(), right.end()}, each * most, 0);
        };
        EXPECT_TRUE(near(one.y, two.y));
        EXPECT_TRUE(near(one.state, two.state));
      }
      EXPECT_TRUE(one.intact());
      EXPECT_TRUE(room_one.summed.f32.intact());
    }
    forced = 0;
  });
}

TEST(Mamba1Step, NothingForNoRows) {
  for_each_backend([&](Device& device) {
    Problem p({.B = 0}, 9);
    run(device, p);
  });
}

}  // namespace
}  // namespace mamba::test
