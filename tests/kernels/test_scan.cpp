// SPDX-License-Identifier: Apache-2.0
// scan on every backend: against the f64 reference, the reference against finite differences, and
// the laws of the recurrence (split, steps, documents, padding) bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr double kEps = 1.0 / (1 << 24);

enum class Docs { kNone, kPacked, kPadded };

struct Options {
  int64_t B = 2, L = 33, E = 40, N = 16, G = 1;
  bool constant = false, softplus = true, bias = true, D = true, z = true, state = true;
  Docs docs = Docs::kNone;
  int64_t gap = 0;  // elements between the rows of the strided tensors
  int misalign = 1;
};

// `rows` of `width` in f64 and f32, `gap` NaN elements after each row.
struct Tensor {
  int64_t rows, width, stride;
  std::vector<double> f64;
  Guarded f32;

  Tensor(int64_t rows_in, int64_t width_in, int64_t gap, int misalign)
      : rows(rows_in),
        width(width_in),
        stride(width_in + gap),
        f64(static_cast<size_t>(rows_in * stride), std::nan("")),
        f32(rows_in * stride, misalign) {}
  void fill(Random& random, double lo, double hi) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        set(r * stride + i, static_cast<float>(random.uniform(lo, hi)));
      }
    }
  }
  void set(int64_t i, double v) {
    f64[i] = v;
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
  // The rows without their gaps.
  template <class T, class From>
  std::vector<T> packed(const From& from) const {
    std::vector<T> out;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) out.push_back(static_cast<T>(from[r * stride + i]));
    }
    return out;
  }
  std::vector<float> got() { return packed<float>(f32.data()); }
  std::vector<double> want() const { return packed<double>(f64); }
  testing::AssertionResult gaps_untouched() {
    for (int64_t i = 0; i < rows * stride; ++i) {
      if (i % stride >= width && !std::isnan(f32[i])) {
        return testing::AssertionFailure() << "gap element " << i << " was written";
      }
    }
    return f32.intact();
  }
};

struct Problem {
  Options o;
  Tensor u, delta, bias, A, Bm, Cm, D, z, h0, hT, y;
  Tensor dy, dhT, du, ddelta, dbias, dA, dB, dC, dD, dz, dh0;
  std::vector<int32_t> ids;

  static Tensor tokens(const Options& o, int64_t width, int64_t extra) {
    return Tensor(o.B * o.L, width, o.gap > 0 ? o.gap + extra : 0, o.misalign);
  }
  static Tensor bc(const Options& o, int64_t extra) {
    return o.constant ? Tensor(o.E, o.N, 0, o.misalign) : tokens(o, o.G * o.N, extra);
  }
  static Tensor states(const Options& o, int64_t gap = 0) {
    return Tensor(o.B, o.N * o.E, gap, o.misalign);
  }
  static Tensor row(const Options& o) { return Tensor(1, o.E, 0, o.misalign); }

  Problem(const Options& o_in, uint64_t seed)
      : o(o_in),
        u(tokens(o, o.E, 0)),
        delta(tokens(o, o.E, 1)),
        bias(row(o)),
        A(o.N, o.E, 0, o.misalign),
        Bm(bc(o, 2)),
        Cm(bc(o, 3)),
        D(row(o)),
        z(tokens(o, o.E, 4)),
        h0(states(o, o.gap)),
        hT(states(o, o.gap)),
        y(tokens(o, o.E, 5)),
        dy(tokens(o, o.E, 6)),
        dhT(states(o)),
        du(tokens(o, o.E, 7)),
        ddelta(tokens(o, o.E, 8)),
        dbias(row(o)),
        dA(o.N, o.E, 0, o.misalign),
        dB(bc(o, 9)),
        dC(bc(o, 10)),
        dD(row(o)),
        dz(tokens(o, o.E, 11)),
        dh0(states(o)) {
    Random random(seed);
    for (Tensor* t : {&u, &Bm, &Cm, &D, &h0, &dy, &dhT}) t->fill(random, -1, 1);
    z.fill(random, -4, 4);
    bias.fill(random, -0.5, 0.5);
    A.fill(random, -8, -0.25);
    // Without softplus delta itself is the step size.
    delta.fill(random, o.softplus ? -5 : 0.01, o.softplus ? 1 : 0.7);
    if (o.softplus && o.L > 2) delta.set(delta.stride, 21.5);  // above the switch at 20
    // These are accumulated, so they start from something.
    for (Tensor* t : {&dbias, &dA, &dD}) t->fill(random, -1, 1);
    if (o.constant) dB.fill(random, -1, 1);
    if (o.constant) dC.fill(random, -1, 1);
    make_ids(random);
  }
  void make_ids(Random& random) {
    int32_t id = 3;
    for (int64_t i = 0; i < o.B * o.L && o.docs != Docs::kNone; ++i) {
      if (random.below(7) == 0) id = (id + 1) % 5;
      const bool padding = o.docs == Docs::kPadded && (i % o.L < 2 || random.below(5) == 0);
      ids.push_back(padding ? -1 : id);
    }
    // What padding holds must not matter.
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= 0) continue;
      for (Tensor* t : {&u, &delta, &z, &dy}) {
        for (int64_t c = 0; c < t->width; ++c) t->set(i * t->stride + c, std::nan(""));
      }
      for (Tensor* t : {&Bm, &Cm}) {
        for (int64_t c = 0; c < t->width && !o.constant; ++c)
          t->set(i * t->stride + c, std::nan(""));
      }
    }
  }
  CBuf doc_ids() const { return ids.empty() ? CBuf() : CBuf(ids.data()); }

  // The inputs that forward, step and backward share.
  template <class T, class Args>
  void set_inputs(Args& a) {
    a.B = o.B, a.E = o.E, a.N = o.N, a.G = o.G;
    a.bc = o.constant ? ScanBC::kConstant : ScanBC::kGrouped;
    a.delta_softplus = o.softplus;
    a.u = u.buf<T>(), a.u_stride = u.stride;
    a.delta = delta.buf<T>(), a.delta_stride = delta.stride;
    a.delta_bias = o.bias ? bias.buf<T>() : Buf();
    a.A_t = A.buf<T>(), a.Bm = Bm.buf<T>(), a.Cm = Cm.buf<T>();
    a.B_stride = Bm.stride, a.C_stride = Cm.stride;
    a.D = o.D ? D.buf<T>() : Buf();
    a.z = o.z ? z.buf<T>() : Buf(), a.z_stride = z.stride;
    a.h_stride = h0.stride;
  }
  template <class T>
  ScanArgs forward() {
    ScanArgs a{};
    set_inputs<T>(a);
    a.L = o.L;
    a.doc_ids = doc_ids();
    a.h0 = o.state ? h0.buf<T>() : Buf();
    a.hT = o.state ? hT.buf<T>() : Buf();
    a.y = y.buf<T>(), a.y_stride = y.stride;
    return a;
  }
  template <class T>
  ScanBackwardArgs backward() {
    ScanBackwardArgs a{};
    set_inputs<T>(a);
    a.L = o.L;
    a.doc_ids = doc_ids();
    a.h0 = o.state ? h0.buf<T>() : Buf();
    a.dy = dy.buf<T>(), a.dy_stride = dy.stride;
    a.dhT = o.state ? dhT.buf<T>() : Buf();
    a.du = du.buf<T>(), a.du_stride = du.stride;
    a.ddelta = ddelta.buf<T>(), a.ddelta_stride = ddelta.stride;
    a.ddelta_bias = o.bias ? dbias.buf<T>() : Buf();
    a.dA_t = dA.buf<T>(), a.dBm = dB.buf<T>(), a.dCm = dC.buf<T>();
    a.dB_stride = dB.stride, a.dC_stride = dC.stride;
    a.dD = o.D ? dD.buf<T>() : Buf();
    a.dz = o.z ? dz.buf<T>() : Buf(), a.dz_stride = dz.stride;
    a.dh0 = o.state ? dh0.buf<T>() : Buf();
    return a;
  }
};

std::string text(const Options& o) {
  return "B " + std::to_string(o.B) + " L " + std::to_string(o.L) + " E " + std::to_string(o.E) +
         " N " + std::to_string(o.N) + " G " + std::to_string(o.G) + " constant " +
         std::to_string(o.constant) + " softplus " + std::to_string(o.softplus) + " bias " +
         std::to_string(o.bias) + " D " + std::to_string(o.D) + " z " + std::to_string(o.z) +
         " state " + std::to_string(o.state) + " docs " + std::to_string(static_cast<int>(o.docs)) +
         " gap " + std::to_string(o.gap);
}

Stream& reference_stream() {
  static std::unique_ptr<Device> device = Device::create({"ref64", 1});
  return device->stream();
}

double largest(const std::vector<double>& v) {
  double m = 1e-30;
  for (double x : v) m = std::max(m, std::fabs(x));
  return m;
}

// `terms` roundings of values as large as the largest of the tensor.
void expect_close(Tensor& t, double terms, const char* name) {
  const std::vector<double> want = t.want();
  EXPECT_TRUE(close(t.got(), want, terms * kEps * largest(want), 0)) << name;
  EXPECT_TRUE(t.gaps_untouched()) << name;
}

// A state takes 4 roundings a step (a to 2 units, a h, + d B u); the slowest decay of the inputs,
// exp(-0.25 * 0.004), remembers more than any L here, so all L of them last; then the sum over N,
// and about 16 for softplus and the gate.
double forward_terms(const Options& o) {
  return static_cast<double>(4 * std::min<int64_t>(o.L, 100) + o.N + 16);
}

// Base row, then one option at a time, then mixes; every size of the list is an L, an E or an N.
std::vector<Options> cases() {
  std::vector<Options> list;
  const auto add = [&](const std::function<void(Options&)>& change) {
    Options o;
    change(o);
    list.push_back(o);
  };
  add([](Options&) {});
  add([](Options& o) { o.softplus = false; });
  add([](Options& o) { o.bias = false; });
  add([](Options& o) { o.D = false; });
  add([](Options& o) { o.z = false; });
  add([](Options& o) { o.state = false; });
  add([](Options& o) { o.constant = true; });
  for (Docs docs : {Docs::kPacked, Docs::kPadded}) add([&](Options& o) { o.docs = docs; });
  add([](Options& o) { o.gap = 5; });
  for (int64_t G : {2, 4, 8, 20, 40}) add([&](Options& o) { o.G = G; });
  add([](Options& o) { o.E = 150, o.G = 2, o.L = 7; });   // groups of 75, one slab each
  add([](Options& o) { o.E = 420, o.G = 2, o.L = 7; });   // groups of 210, two slabs each
  add([](Options& o) { o.E = 93, o.G = 31, o.L = 35; });  // groups of 3 across vectors
  for (int64_t E : {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 129}) {
    add([&](Options& o) { o.E = E, o.L = 9, o.misalign = static_cast<int>(E % 4); });
  }
  for (int64_t N : {1, 3, 7, 8, 9, 15, 17, 24, 31, 64}) add([&](Options& o) { o.N = N, o.L = 9; });
  for (int64_t L : {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 64, 65, 100}) {
    add([&](Options& o) { o.L = L, o.E = 17, o.docs = L % 2 ? Docs::kPadded : Docs::kNone; });
  }
  add([](Options& o) { o.B = 1, o.L = 34, o.E = 1536; });  // mamba-130m
  Random random(7);
  for (int i = 0; i < 24; ++i) {
    Options o;
    o.G = 1 + random.below(3);
    o.E = o.G * (1 + random.below(60));
    o.B = 1 + random.below(3), o.L = random.below(70), o.N = 1 + random.below(20);
    o.constant = random.below(4) == 0, o.softplus = random.below(2), o.bias = random.below(2);
    o.D = random.below(2), o.z = random.below(2), o.state = random.below(2);
    o.docs = static_cast<Docs>(random.below(3));
    o.gap = random.below(2) * 3, o.misalign = static_cast<int>(random.below(4));
    list.push_back(o);
  }
  return list;
}

TEST(Scan, ForwardMatchesTheReference) {
  for_each_backend([](Device& device) {
    uint64_t seed = 1;
    for (const Options& o : cases()) {
      SCOPED_TRACE(text(o));
      Problem p(o, seed++);
      ref_kernels().scan_forward(reference_stream(), p.forward<double>());
      device.kernels().scan_forward(device.stream(), p.forward<float>());
      device.sync();
      expect_close(p.y, forward_terms(o), "y");
      if (o.state) expect_close(p.hT, forward_terms(o), "hT");
    }
  });
}

// Runs forward terms through the reverse recurrence too: twice the roundings of a state; then sums
// of N, of tokens (parameters) or of channels (B and C), each at most as large as the largest
// result times sqrt(count) for random signs.
void check_backward(Device& device, Problem& p) {
  const Options& o = p.o;
  ref_kernels().scan_backward(reference_stream(), p.backward<double>());
  device.kernels().scan_backward(device.stream(), p.backward<float>());
  device.sync();
  const double terms = 2 * forward_terms(o);
  const double over_tokens = terms + std::sqrt(static_cast<double>(o.B * o.L));
  const double over_channels = terms + std::sqrt(static_cast<double>(o.E));
  expect_close(p.du, terms, "du");
  expect_close(p.ddelta, terms, "ddelta");
  expect_close(p.dA, over_tokens, "dA");
  expect_close(p.dB, o.constant ? over_tokens : over_channels, "dB");
  expect_close(p.dC, o.constant ? over_tokens : over_channels, "dC");
  if (o.bias) expect_close(p.dbias, over_tokens, "ddelta_bias");
  if (o.D) expect_close(p.dD, over_tokens, "dD");
  if (o.z) expect_close(p.dz, terms, "dz");
  if (o.state) expect_close(p.dh0, terms, "dh0");
}

TEST(Scan, BackwardMatchesTheReference) {
  for_each_backend([](Device& device) {
    uint64_t seed = 1;
    for (const Options& o : cases()) {
      SCOPED_TRACE(text(o));
      Problem p(o, seed++);
      check_backward(device, p);
      for (size_t i = 0; i < p.ids.size(); ++i) {
        if (p.ids[i] >= 0) continue;
        for (int64_t c = 0; c < o.E; ++c) EXPECT_EQ(p.ddelta.f32[i * p.ddelta.stride + c], 0.0f);
      }
    }
  });
}

// So many sequences that the partial sums of the backward do not fit in one pass. How they are cut
// depends on shapes alone, so the best backend stands for all.
TEST(Scan, BackwardOfManySequencesMatchesTheReference) {
  Options shared, constant;
  shared.B = 260, shared.L = 1, shared.E = 129, shared.N = 256;
  constant.B = 15, constant.L = 1, constant.E = 1530, constant.N = 256, constant.constant = true;
  std::unique_ptr<Device> device = Device::create({"cpu", 2});
  for (const Options& o : {shared, constant}) {
    SCOPED_TRACE(text(o));
    Problem p(o, 5);
    check_backward(*device, p);
  }
}

// loss = sum w y + sum v hT: its gradients are those of backward with dy = w and dhT = v. A central
// difference of step s errs by s^2/6 times the third derivative (s = 1e-4: about 1e-8 of the
// largest gradient; delta has the largest third derivatives, up to A^3 = 512 times) and by 1e-16 /
// s.
TEST(Scan, ReferenceGradientsAreFiniteDifferences) {
  std::vector<Options> list(6);
  for (Options& o : list) o.B = 2, o.L = 6, o.E = 4, o.N = 3, o.gap = 2;
  list[1].G = 2, list[1].docs = Docs::kPacked;
  list[2].constant = true, list[2].z = false;
  list[3].docs = Docs::kPadded, list[3].L = 12, list[3].G = 4;
  list[4].softplus = false, list[4].bias = false, list[4].D = false;
  list[5].softplus = false;
  for (const Options& o : list) {
    SCOPED_TRACE(text(o));
    Problem p(o, 11);
    for (Tensor* t : {&p.dbias, &p.dA, &p.dD, &p.dB, &p.dC}) {  // no start values here
      for (int64_t i = 0; i < t->rows * t->stride; ++i) t->set(i, 0);
    }
    ref_kernels().scan_backward(reference_stream(), p.backward<double>());
    const auto loss = [&] {
      ref_kernels().scan_forward(reference_stream(), p.forward<double>());
      double sum = 0;
      const std::vector<double> y = p.y.want(), w = p.dy.want(), h = p.hT.want(), v = p.dhT.want();
      for (size_t i = 0; i < y.size(); ++i) sum += std::isnan(w[i]) ? 0 : w[i] * y[i];
      for (size_t i = 0; i < h.size(); ++i) sum += v[i] * h[i];
      return sum;
    };
    const auto check = [&](Tensor& x, const Tensor& dx, const char* name) {
      const double scale = largest(dx.want()), step = 1e-4;
      for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t i = 0; i < x.width; ++i) {
          double& v = x.f64[r * x.stride + i];
          const double was = v, got = dx.f64[r * dx.stride + i];
          if (std::isnan(was)) {
            EXPECT_EQ(got, 0.0) << name << " of padding";
            continue;
          }
          v = was + step;
          const double above = loss();
          v = was - step;
          const double below = loss();
          v = was;
          EXPECT_NEAR(got, (above - below) / (2 * step), 1e-6 * scale)
              << name << " " << r << " " << i;
        }
      }
    };
    check(p.u, p.du, "u");
    check(p.delta, p.ddelta, "delta");
    check(p.A, p.dA, "A");
    check(p.Bm, p.dB, "B");
    check(p.Cm, p.dC, "C");
    check(p.h0, p.dh0, "h0");
    if (o.bias) check(p.bias, p.dbias, "delta_bias");
    if (o.D) check(p.D, p.dD, "D");
    if (o.z) check(p.z, p.dz, "z");
  }
}

// Every output of forward and backward.
std::vector<float> all_outputs(Device& device, const Options& o) {
  Problem p(o, 21);
  device.kernels().scan_forward(device.stream(), p.forward<float>());
  device.kernels().scan_backward(device.stream(), p.backward<float>());
  device.sync();
  std::vector<float> all;
  for (Tensor* t :
       {&p.y, &p.hT, &p.du, &p.ddelta, &p.dbias, &p.dA, &p.dB, &p.dC, &p.dD, &p.dz, &p.dh0}) {
    const std::vector<float> v = t->got();
    all.insert(all.end(), v.begin(), v.end());
  }
  return all;
}

TEST(Scan, ThreadsAndRunsGiveTheSameBits) {
  std::vector<Options> list(4);
  for (Options& o : list) o.B = 3, o.L = 70, o.E = 300, o.N = 9;
  list[1].G = 100, list[1].docs = Docs::kPadded;
  list[2].constant = true;
  list[3].G = 2, list[3].docs = Docs::kPacked;
  for_each_backend([&](Device& device) {
    for (const Options& o : list) {
      SCOPED_TRACE(text(o));
      const std::vector<float> first = all_outputs(device, o);
      EXPECT_TRUE(same_bits(first.data(), all_outputs(device, o).data(), first.size()));
      for (int threads : {1, 3}) {
        std::unique_ptr<Device> other = Device::create({device.name(), threads});
        EXPECT_TRUE(same_bits(first.data(), all_outputs(*other, o).data(), first.size()))
            << threads;
      }
    }
  });
}

// The same call with `first` tokens left out and `count` kept, on sequence 0 alone.
ScanArgs part_of(ScanArgs a, int64_t first, int64_t count) {
  a.B = 1, a.L = count;
  a.u = a.u + first * a.u_stride, a.delta = a.delta + first * a.delta_stride;
  if (a.bc == ScanBC::kGrouped) {
    a.Bm = a.Bm + first * a.B_stride, a.Cm = a.Cm + first * a.C_stride;
  }
  a.z = a.z + first * a.z_stride, a.y = a.y + first * a.y_stride;
  a.doc_ids = a.doc_ids + first;
  return a;
}

TEST(Scan, SplitSequenceEqualsUnsplitBitForBit) {
  for_each_backend([](Device& device) {
    for (int64_t G : {1, 20}) {
      Options o;
      o.B = 1, o.L = 75, o.G = G, o.gap = 1;
      Problem whole(o, 3), split(o, 3);
      device.kernels().scan_forward(device.stream(), whole.forward<float>());
      for (int64_t cut : {0, 1, 31, 32, 50, 75}) {
        const ScanArgs args = split.forward<float>();
        device.kernels().scan_forward(device.stream(), part_of(args, 0, cut));
        ScanArgs rest = part_of(args, cut, o.L - cut);
        rest.h0 = rest.hT;  // in place
        device.kernels().scan_forward(device.stream(), rest);
        device.sync();
        EXPECT_TRUE(same_bits(split.y.got().data(), whole.y.got().data(), o.L * o.E)) << cut;
        EXPECT_TRUE(same_bits(split.hT.got().data(), whole.hT.got().data(), o.N * o.E)) << cut;
      }
    }
  });
}

TEST(Scan, StepsEqualTheFullScanBitForBit) {
  std::vector<Options> list(6);
  for (Options& o : list) o.L = 5, o.E = 37, o.N = 11, o.gap = 3;
  list[1].constant = true, list[1].z = false;
  list[2].E = 90, list[2].G = 30, list[2].D = false;
  list[3].E = 66, list[3].G = 2, list[3].softplus = false, list[3].bias = false;
  list[4].E = 1536, list[4].N = 16, list[4].B = 5;  // in parallel
  list[5].E = 1100, list[5].N = 13, list[5].B = 8;  // a thread a channel on a GPU
  for_each_backend([&](Device& device) {
    for (const Options& o : list) {
      SCOPED_TRACE(text(o));
      Problem full(o, 9), steps(o, 9);
      device.kernels().scan_forward(device.stream(), full.forward<float>());
      for (int64_t t = 0; t < o.L; ++t) {
        ScanStepArgs a{};
        steps.set_inputs<float>(a);
        a.h = steps.h0.buf<float>(), a.y = steps.y.buf<float>(), a.y_stride = steps.y.stride;
        // Token t of every sequence: rows L apart.
        a.u = a.u + t * a.u_stride, a.delta = a.delta + t * a.delta_stride;
        a.z = a.z + t * a.z_stride, a.y = a.y + t * a.y_stride;
        if (!o.constant) a.Bm = a.Bm + t * a.B_stride, a.Cm = a.Cm + t * a.C_stride;
        a.u_stride *= o.L, a.delta_stride *= o.L, a.z_stride *= o.L, a.y_stride *= o.L;
        a.B_stride *= o.L, a.C_stride *= o.L;
        device.kernels().scan_step(device.stream(), a);
        device.sync();
      }
      EXPECT_TRUE(same_bits(steps.y.got().data(), full.y.got().data(), o.B * o.L * o.E));
      EXPECT_TRUE(same_bits(steps.h0.got().data(), full.hT.got().data(), o.B * o.N * o.E));
      EXPECT_TRUE(steps.h0.gaps_untouched());
      EXPECT_TRUE(steps.y.gaps_untouched());
    }
  });
}

TEST(Scan, PackedDocumentsEqualSeparateOnesBitForBit) {
  for_each_backend([](Device& device) {
    Options o;
    o.B = 1, o.L = 70, o.state = false;
    Problem packed(o, 4), alone(o, 4);
    for (int64_t t = 0; t < o.L; ++t) packed.ids.push_back(t < 37 ? 5 : 2);
    device.kernels().scan_forward(device.stream(), packed.forward<float>());
    device.kernels().scan_forward(device.stream(), part_of(alone.forward<float>(), 0, 37));
    device.kernels().scan_forward(device.stream(), part_of(alone.forward<float>(), 37, 33));
    device.sync();
    EXPECT_TRUE(same_bits(packed.y.got().data(), alone.y.got().data(), o.L * o.E));
  });
}

TEST(Scan, PaddingGivesZeroAndPassesTheState) {
  for_each_backend([](Device& device) {
    Options o;
    o.B = 1, o.L = 50;
    Problem padded(o, 4), plain(o, 4);
    padded.ids.assign(o.L, -1);
    for (int64_t t = 7; t < 40; ++t) padded.ids[t] = 0;
    device.kernels().scan_forward(device.stream(), padded.forward<float>());
    device.kernels().scan_forward(device.stream(), part_of(plain.forward<float>(), 7, 33));
    device.sync();
    const std::vector<float> got = padded.y.got(), want = plain.y.got();
    EXPECT_TRUE(same_bits(got.data() + 7 * o.E, want.data() + 7 * o.E, 33 * o.E));
    EXPECT_TRUE(same_bits(padded.hT.got().data(), plain.hT.got().data(), o.N * o.E));
    for (int64_t i = 0; i < o.L * o.E; ++i) {
      if (padded.ids[i / o.E] < 0) {
        ASSERT_EQ(got[i], 0.0f);
      }
    }
  });
}

TEST(Scan, GradientOfUMayAliasThatOfY) {
  for_each_backend([](Device& device) {
    Options o;
    o.L = 70;
    Problem apart(o, 8), aliased(o, 8);
    device.kernels().scan_backward(device.stream(), apart.backward<float>());
    ScanBackwardArgs a = aliased.backward<float>();
    a.du = aliased.dy.buf<float>();
    device.kernels().scan_backward(device.stream(), a);
    device.sync();
    EXPECT_TRUE(same_bits(aliased.dy.got().data(), apart.du.got().data(), o.B * o.L * o.E));
    EXPECT_TRUE(same_bits(aliased.dz.got().data(), apart.dz.got().data(), o.B * o.L * o.E));
  });
}

// One channel, one state: d = 0.5, A = -2 ln 2, so a = 1/2; B = 2, u = 1: h grows by 1 each step.
TEST(Scan, ReferenceGivesTheHandComputedCase) {
  const double u[3] = {1, 1, 1}, delta[3] = {0.5, 0.5, 0.5}, A[1] = {-2 * std::log(2.0)};
  const double B[3] = {2, 2, 2}, C[3] = {1, 3, 1}, D[1] = {10}, h0[1] = {4};
  double y[3], hT[1];
  ScanArgs a{};
  a.B = 1, a.L = 3, a.E = 1, a.N = 1, a.G = 1;
  a.u = u, a.delta = delta, a.A_t = A, a.Bm = B, a.Cm = C, a.D = D, a.h0 = h0, a.hT = hT, a.y = y;
  a.u_stride = a.delta_stride = a.B_stride = a.C_stride = a.y_stride = a.h_stride = 1;
  ref_kernels().scan_forward(reference_stream(), a);
  // h: 4/2 + 1 = 3, 3/2 + 1 = 2.5, 2.5/2 + 1 = 2.25.
  EXPECT_NEAR(y[0], 3 + 10, 1e-14);
  EXPECT_NEAR(y[1], 7.5 + 10, 1e-14);
  EXPECT_NEAR(y[2], 2.25 + 10, 1e-14);
  EXPECT_NEAR(hT[0], 2.25, 1e-14);
}

// d A far below the range of exp in f32 forgets the state entirely; d A = 0 keeps it exactly.
TEST(Scan, ExtremeDecaysForgetOrKeepTheState) {
  for_each_backend([](Device& device) {
    Options o;
    o.B = 1, o.L = 2, o.E = 17, o.N = 2, o.softplus = false, o.bias = false, o.z = false,
    o.D = false;
    Problem p(o, 2);
    for (int64_t c = 0; c < o.E; ++c) {
      p.A.set(c, -1e5), p.A.set(o.E + c, 0);
      for (int64_t t = 0; t < o.L; ++t) p.delta.set(t * o.E + c, 1e3), p.u.set(t * o.E + c, 0);
    }
    device.kernels().scan_forward(device.stream(), p.forward<float>());
    device.sync();
    for (int64_t c = 0; c < o.E; ++c) {
      EXPECT_NEAR(p.hT.f32[c], 0.0f, 1e-37f);
      EXPECT_EQ(p.hT.f32[o.E + c], p.h0.f32[o.E + c]);
    }
  });
}

}  // namespace
}  // namespace mamba::test
