// SPDX-License-Identifier: Apache-2.0
// affine_scan on every backend in f32 and f64: against a plain recurrence, in both orders and
// directions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

struct Options {
  int64_t B = 2, L = 33, D = 20;
  ScanOrder order = ScanOrder::kSequential;
  bool reverse = false, h0 = true;
};

std::string text(const Options& o) {
  return "B " + std::to_string(o.B) + " L " + std::to_string(o.L) + " D " + std::to_string(o.D) +
         " parallel " + std::to_string(o.order == ScanOrder::kParallel) + " reverse " +
         std::to_string(o.reverse) + " h0 " + std::to_string(o.h0);
}

// The same values in f64 and in guarded f32.
struct Tensor {
  std::vector<double> f64;
  Guarded f32;
  Tensor(int64_t count, int misalign) : f64(count, std::nan("")), f32(count, misalign) {}
  void fill(Random& random, double lo, double hi) {
    for (size_t i = 0; i < f64.size(); ++i) {
      f32[i] = static_cast<float>(random.uniform(lo, hi));
      f64[i] = f32[i];
    }
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
  Tensor a, x, h0, h, dh, da, dx, dh0;

  explicit Problem(const Options& o_in, int misalign = 1)
      : o(o_in),
        a(o.B * o.L * o.D, misalign),
        x(o.B * o.L * o.D, 2),
        h0(o.B * o.D, 3),
        h(o.B * o.L * o.D, misalign),
        dh(o.B * o.L * o.D, 3),
        da(o.B * o.L * o.D, 1),
        dx(o.B * o.L * o.D, 2),
        dh0(o.B * o.D, misalign) {
    Random random(o.L * 131 + o.D);
    a.fill(random, 0, 1);  // a state lasts about two steps on average, few last long
    for (Tensor* t : {&x, &h0, &dh}) t->fill(random, -1, 1);
  }
  template <class T>
  AffineScanArgs forward() {
    return {o.B,       o.L,        o.D,        o.order,
            o.reverse, a.buf<T>(), x.buf<T>(), o.h0 ? h0.buf<T>() : Buf(),
            h.buf<T>()};
  }
  template <class T>
  AffineScanBackwardArgs backward() {
    const Buf first = o.h0 ? h0.buf<T>() : Buf(), dfirst = o.h0 ? dh0.buf<T>() : Buf();
    return {o.B,        o.L,   o.D,         o.order,     o.reverse,   a.buf<T>(),
            h.buf<T>(), first, dh.buf<T>(), da.buf<T>(), dx.buf<T>(), dfirst};
  }
};

Stream& reference_stream() {
  static std::unique_ptr<Device> device = Device::create({"ref64", 1});
  return device->stream();
}

std::vector<Options> cases() {
  std::vector<Options> list;
  const auto both = [&](int64_t B, int64_t L, int64_t D) {
    for (int i = 0; i < 8; ++i) {
      list.push_back({B, L, D, i & 1 ? ScanOrder::kParallel : ScanOrder::kSequential, (i & 2) != 0,
                      (i & 4) != 0});
    }
  };
  for (int64_t D : {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 257}) both(2, 5, D);
  for (int64_t L : {0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 32, 37, 64, 100, 127, 128, 129, 256, 300})
    both(2, L, 19);
  both(1, 200, 1536);
  both(0, 3, 3);
  return list;
}

// Every |a| < 1: a step rounds twice and the state is at most sum a^k |x|, so errors add up like
// the terms themselves: 2 roundings of (1 + memory) values; 64 steps of memory leave 2^-64 of a
// typical state. The carries of blocks add two more.
constexpr double kTerms = 2 * 64 + 4;

template <class T>
double bound(const std::vector<double>& want) {
  double m = 1e-30;
  for (double v : want) m = std::max(m, std::fabs(v));
  return kTerms * m * (sizeof(T) == 4 ? 0x1p-24 : 0x1p-53);
}

template <class T>
void check(const Device& device, Stream& stream, const Options& o) {
  SCOPED_TRACE(text(o) + (sizeof(T) == 4 ? " f32" : " f64"));
  Problem want(o), got(o);
  ref_kernels().affine_scan_forward(reference_stream(), want.forward<double>());
  ref_kernels().affine_scan_backward(reference_stream(), want.backward<double>());
  device.kernels().affine_scan_forward(stream, got.forward<T>());
  finish(stream);
  const auto expect = [](Tensor& g, const Tensor& w, const char* name) {
    const int64_t count = static_cast<int64_t>(w.f64.size());
    EXPECT_TRUE(close(g.buf<T>().template as<T>(), w.f64.data(), count, bound<T>(w.f64), 0))
        << name;
    EXPECT_TRUE(g.f32.intact()) << name;
  };
  expect(got.h, want.h, "h");
  device.kernels().affine_scan_backward(stream, got.backward<T>());
  finish(stream);
  expect(got.dx, want.dx, "dx");
  expect(got.da, want.da, "da");
  if (o.h0) expect(got.dh0, want.dh0, "dh0");
}

TEST(AffineScan, MatchesTheReferenceInF32AndF64) {
  for_each_backend([](Device& device) {
    for (const Options& o : cases()) {
      check<float>(device, device.stream(), o);
      if (device.memory().on_host()) check<double>(device, device.stream(), o);  // GPUs: f32
    }
  });
}

// H_t for a = 0.9, x = 1 is (1 - 0.9^t) / (1 - 0.9); GPUs compute in f32.
template <class T>
void check_geometric_series(Device& device, ScanOrder order, double bound) {
  const std::vector<T> a(400, T(0.9)), x(400, T(1));
  std::vector<T> h(400);
  std::vector<double> want(400);
  for (int t = 0; t < 400; ++t) want[t] = (1 - std::pow(0.9, t + 1)) / 0.1;
  const AffineScanArgs args{1, 400, 1, order, false, a.data(), x.data(), {}, h.data()};
  device.kernels().affine_scan_forward(device.stream(), args);
  device.sync();
  EXPECT_TRUE(close(h, want, bound, 0));
}

TEST(AffineScan, ConstantInputsGiveTheGeometricSeries) {
  for_each_backend([](Device& device) {
    for (ScanOrder order : {ScanOrder::kSequential, ScanOrder::kParallel}) {
      // 10 states of 10 x 2^-53 x about 20 roundings; in f32 a itself is off by 2^-25, and the sum
      // of a^t by 100 times that.
      if (device.memory().on_host()) check_geometric_series<double>(device, order, 1e-13);
      check_geometric_series<float>(device, order, 2e-5);
    }
  });
}

// The loss is linear in x and h0 and, in one a alone, affine: central differences are exact up to
// rounding, 1e-16 / step x the size of the loss.
TEST(AffineScan, ReferenceGradientsAreFiniteDifferences) {
  for (bool reverse : {false, true}) {
    Problem p({2, 9, 3, ScanOrder::kSequential, reverse, true});
    ref_kernels().affine_scan_forward(reference_stream(), p.forward<double>());
    ref_kernels().affine_scan_backward(reference_stream(), p.backward<double>());
    const auto loss = [&] {
      ref_kernels().affine_scan_forward(reference_stream(), p.forward<double>());
      double sum = 0;
      for (size_t i = 0; i < p.h.f64.size(); ++i) sum += p.dh.f64[i] * p.h.f64[i];
      return sum;
    };
    const auto check_input = [&](Tensor& x, const Tensor& dx, const char* name) {
      for (size_t i = 0; i < x.f64.size(); ++i) {
        const double was = x.f64[i], step = 1e-3;
        x.f64[i] = was + step;
        const double above = loss();
        x.f64[i] = was - step;
        const double below = loss();
        x.f64[i] = was;
        EXPECT_NEAR(dx.f64[i], (above - below) / (2 * step), 1e-11) << name << " " << i;
      }
    };
    check_input(p.a, p.da, "a");
    check_input(p.x, p.dx, "x");
    check_input(p.h0, p.dh0, "h0");
  }
}

TEST(AffineScan, ThreadsRunsAndAliasesGiveTheSameBits) {
  for_each_backend([](Device& device) {
    for (ScanOrder order : {ScanOrder::kSequential, ScanOrder::kParallel}) {
      const Options o{2, 300, 600, order, false, true};
      Problem first(o);
      device.kernels().affine_scan_forward(device.stream(), first.forward<float>());
      device.kernels().affine_scan_backward(device.stream(), first.backward<float>());
      device.sync();
      const int64_t count = o.B * o.L * o.D;
      for (int threads : {1, 2, 3}) {
        std::unique_ptr<Device> other = Device::create({device.name(), threads});
        Problem again(o);
        AffineScanArgs forward = again.forward<float>();
        forward.h = again.x.buf<float>();  // h over x
        other->kernels().affine_scan_forward(other->stream(), forward);
        other->sync();
        AffineScanBackwardArgs backward = again.backward<float>();
        backward.h = again.x.buf<float>();
        backward.dx = again.dh.buf<float>();  // dx over dh
        other->kernels().affine_scan_backward(other->stream(), backward);
        other->sync();
        EXPECT_TRUE(same_bits(again.x.f32.data(), first.h.f32.data(), count)) << threads;
        EXPECT_TRUE(same_bits(again.dh.f32.data(), first.dx.f32.data(), count)) << threads;
        EXPECT_TRUE(same_bits(again.da.f32.data(), first.da.f32.data(), count)) << threads;
        EXPECT_TRUE(same_bits(again.dh0.f32.data(), first.dh0.f32.data(), o.B * o.D)) << threads;
      }
    }
  });
}

}  // namespace
}  // namespace mamba::test
