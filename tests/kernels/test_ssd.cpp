// SPDX-License-Identifier: Apache-2.0
// ssd: every backend against the f64 recurrence, the f64 gradients against finite differences, and
// the facts that callers rely on: documents, padding, splits, threads, one token at a time.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/backends.h"
#include "support/close.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kEpsilon = 1.0 / (1 << 24);

enum class Skip { kNone, kHead, kChannel };
enum class Docs { kNone, kDocs, kPadded, kOnlyPadding };

struct Case {
  int64_t B = 2, L = 33, H = 4, P = 5, N = 7, G = 2, chunk = 8;
  double dt_min = 0, dt_max = kInfinity;
  Skip skip = Skip::kHead;
  Docs docs = Docs::kNone;
  bool initial = true, reset = true, final = true;
  int64_t document = 7;  // mean length
};

struct Problem {
  Case c;
  std::vector<double> x, dt, dt_bias, A, Bm, Cm, D, S0, S_reset, dy, dST;
  std::vector<double> sums;  // what accumulated outputs start from: one value per element, repeated
  std::vector<int32_t> ids;
};

std::vector<int32_t> make_ids(const Case& c, Random* random) {
  std::vector<int32_t> ids(static_cast<size_t>(c.docs == Docs::kNone ? 0 : c.B * c.L));
  int32_t id = 3;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (random->below(c.document) == 0) id = static_cast<int32_t>(random->below(5));
    const bool padding =
        c.docs == Docs::kOnlyPadding || (c.docs == Docs::kPadded && random->below(3) == 0);
    ids[i] = padding ? -1 : id;
  }
  return ids;
}

Problem make_problem(const Case& c, uint64_t seed) {
  Random r(seed);
  Problem p;
  p.c = c;
  const int64_t T = c.B * c.L, PN = c.P * c.N;
  p.x = r.vector(T * c.H * c.P, -1, 1);
  p.dt = r.vector(T * c.H, -4, 1);
  p.dt_bias = r.vector(c.H, -1, 1);
  p.A = r.vector(c.H, -2, -0.05);
  p.Bm = r.vector(T * c.G * c.N, -1, 1);
  p.Cm = r.vector(T * c.G * c.N, -1, 1);
  if (c.skip != Skip::kNone) p.D = r.vector(c.skip == Skip::kHead ? c.H : c.H * c.P, -1, 1);
  if (c.initial) p.S0 = r.vector(c.B * c.H * PN, -1, 1);
  if (c.reset) p.S_reset = r.vector(c.H * PN, -1, 1);
  p.dy = r.vector(T * c.H * c.P, -1, 1);
  if (c.final) p.dST = r.vector(c.B * c.H * PN, -1, 1);
  p.sums = r.vector(c.H * PN + c.H, -1, 1);
  p.ids = make_ids(c, &r);
  return p;
}

// Guarded for f32; the f64 reference writes to plain memory.
struct Plain {
  explicit Plain(int64_t count, int) : values_(static_cast<size_t>(count)) {}
  double* data() { return values_.data(); }
  testing::AssertionResult intact() const { return testing::AssertionSuccess(); }
  std::vector<double> values_;
};

// `rows` rows of `width`, `gap` NaNs between them.
template <class T>
class Field {
 public:
  Field(int64_t rows, int64_t width, int64_t gap, int misalign)
      : rows_(rows), width_(width), stride_(width + gap), store_(rows * (width + gap), misalign) {}
  Field(const std::vector<double>& from, int64_t rows, int64_t gap, int misalign)
      : Field(from.empty() ? 0 : rows, rows > 0 ? static_cast<int64_t>(from.size()) / rows : 0, gap,
              misalign) {
    for (int64_t i = 0; i < rows_ * width_; ++i)
      at(i) = static_cast<T>(from[static_cast<size_t>(i)]);
  }
  T& at(int64_t i) { return store_.data()[i / width_ * stride_ + i % width_]; }
  T* get() { return rows_ > 0 ? store_.data() : nullptr; }
  int64_t stride() const { return stride_; }
  std::vector<T> values() {
    EXPECT_TRUE(store_.intact());
    for (int64_t r = 0; std::is_same_v<T, float> && r < rows_; ++r) {
      for (int64_t i = width_; i < stride_; ++i) {
        EXPECT_TRUE(std::isnan(store_.data()[r * stride_ + i])) << "written into a gap";
      }
    }
    std::vector<T> v(static_cast<size_t>(rows_ * width_));
    for (int64_t i = 0; i < rows_ * width_; ++i) v[static_cast<size_t>(i)] = at(i);
    return v;
  }

 private:
  int64_t rows_, width_, stride_;
  std::conditional_t<std::is_same_v<T, float>, Guarded, Plain> store_;
};

template <class T>
struct Inputs {
  Inputs(const Problem& p, int64_t g)
      : T_(p.c.B * p.c.L),
        x(p.x, T_, g, 1),
        dt(p.dt, T_, g, 2),
        dt_bias(p.dt_bias, 1, 0, 3),
        A(p.A, 1, 0, 1),
        Bm(p.Bm, T_, g, 2),
        Cm(p.Cm, T_, g + 1, 3),
        D(p.D, 1, 0, 1),
        S0(p.S0, p.c.B, g, 1),
        S_reset(p.S_reset, 1, 0, 2),
        dy(p.dy, T_, g, 2),
        dST(p.dST, 1, 0, 3) {}
  template <class Args>
  void fill(const Problem& p, int64_t gap, Args* a) {
    const Case& c = p.c;
    a->B = c.B, a->L = c.L, a->H = c.H, a->P = c.P, a->N = c.N, a->G = c.G, a->chunk = c.chunk;
    a->dt_min = c.dt_min, a->dt_max = c.dt_max;
    a->x = CBuf(x.get()), a->x_stride = x.stride();
    a->dt = CBuf(dt.get()), a->dt_stride = dt.stride();
    a->dt_bias = CBuf(dt_bias.get()), a->A = CBuf(A.get());
    a->Bm = CBuf(Bm.get()), a->B_stride = Bm.stride();
    a->Cm = CBuf(Cm.get()), a->C_stride = Cm.stride();
    a->D = CBuf(D.get()), a->D_has_hdim = c.skip == Skip::kChannel;
    a->S0 = CBuf(S0.get()), a->s_stride = c.H * c.P * c.N + gap;
    a->S_reset = CBuf(S_reset.get());
    a->doc_ids = p.ids.empty() ? CBuf() : CBuf(p.ids.data());
  }
  int64_t T_;
  Field<T> x, dt, dt_bias, A, Bm, Cm, D, S0, S_reset, dy, dST;
};

// Named results, dense.
template <class T>
using Results = std::vector<std::pair<std::string, std::vector<T>>>;

template <class T>
Results<T> forward(const Kernels& kernels, Stream& stream, const Problem& p, int64_t gap = 0) {
  const Case& c = p.c;
  Inputs<T> in(p, gap);
  Field<T> y(c.B * c.L, c.H * c.P, gap, 1), ST(c.final ? c.B : 0, c.H * c.P * c.N, gap, 2);
  SsdArgs a{};
  in.fill(p, gap, &a);
  a.ST = Buf(ST.get());
  a.y = Buf(y.get()), a.y_stride = y.stride();
  kernels.ssd_forward(stream, a);
  finish(stream);
  return {{"y", y.values()}, {"ST", ST.values()}};
}

template <class T>
Results<T> backward(const Kernels& kernels, Stream& stream, const Problem& p, int64_t gap = 0) {
  const Case& c = p.c;
  const int64_t T_ = c.B * c.L, PN = c.P * c.N;
  Inputs<T> in(p, gap);
  auto start = [&](size_t count) {
    return std::vector<double>(p.sums.begin(), p.sums.begin() + static_cast<int64_t>(count));
  };
  Field<T> dx(T_, c.H * c.P, gap, 1), ddt(T_, c.H, gap, 2), dBm(T_, c.G * c.N, gap, 3);
  Field<T> dCm(T_, c.G * c.N, gap + 2, 1), dS0(c.initial ? 1 : 0, c.B * c.H * PN, 0, 3);
  Field<T> ddt_bias(start(p.dt_bias.size()), 1, 0, 1), dA(start(p.A.size()), 1, 0, 2);
  Field<T> dD(start(p.D.size()), 1, 0, 3), dS_reset(start(p.S_reset.size()), 1, 0, 1);
  SsdBackwardArgs a{};
  in.fill(p, gap, &a);
  a.dy = CBuf(in.dy.get()), a.dy_stride = in.dy.stride();
  a.dST = CBuf(in.dST.get());
  a.dx = Buf(dx.get()), a.dx_stride = dx.stride();
  a.ddt = Buf(ddt.get()), a.ddt_stride = ddt.stride();
  a.ddt_bias = Buf(ddt_bias.get()), a.dA = Buf(dA.get());
  a.dBm = Buf(dBm.get()), a.dB_stride = dBm.stride();
  a.dCm = Buf(dCm.get()), a.dC_stride = dCm.stride();
  a.dD = Buf(dD.get()), a.dS0 = Buf(dS0.get()), a.dS_reset = Buf(dS_reset.get());
  kernels.ssd_backward(stream, a);
  finish(stream);
  return {{"dx", dx.values()},   {"dB", dBm.values()},
          {"dC", dCm.values()},  {"dD", dD.values()},
          {"dS0", dS0.values()}, {"dS_reset", dS_reset.values()},
          {"ddt", ddt.values()}, {"ddt_bias", ddt_bias.values()},
          {"dA", dA.values()}};
}

Problem absolute(Problem p) {
  for (auto* v : {&p.x, &p.Bm, &p.Cm, &p.D, &p.S0, &p.S_reset, &p.dy, &p.dST, &p.sums}) {
    for (double& e : *v) e = std::fabs(e);
  }
  return p;
}

double largest(const std::vector<double>& v) {
  double most = 0;
  for (double e : v) most = std::max(most, std::fabs(e));
  return most;
}

// Sum of |v[i]| over each column of rows of `columns`; the largest.
double largest_column(const std::vector<double>& v, int64_t columns) {
  std::vector<double> sums(static_cast<size_t>(columns));
  for (size_t i = 0; i < v.size(); ++i) sums[i % sums.size()] += std::fabs(v[i]);
  return largest(sums);
}

// f32 results against f64. An element is a sum of products along at most three matrix products
// (depths N, P and the chunk), a state handed over by every chunk before it and a sum over heads;
// each step rounds once, relative to the sum of the absolute terms, which the reference computes
// from absolute inputs. A chunk counts as 64 terms where a document is taken whole, up to 256, too.
// 64 more steps pay for step sizes and decays: softplus and exp are good to 2 ulp, and c (of size
// |c|) gives a weight e^-|c| an error of 3 |c| ulp. ddt is a difference of such sums over a chunk,
// so its bound is that count times the largest |ddt|; dA and ddt_bias are sums of such differences:
// that count times a head's largest sum of |ddt|.
void expect_results(const Case& c, const Results<float>& got, const Results<double>& want,
                    const Results<double>& scale) {
  const double steps = static_cast<double>(c.N + c.P + std::min({c.chunk, c.L, int64_t{64}}) +
                                           c.L / std::min<int64_t>(c.chunk, 64) + c.H / c.G + 64);
  ASSERT_EQ(got.size(), want.size());
  double column = 0;
  for (const auto& [name, values] : want) {
    if (name == "ddt") column = 1 + largest_column(values, c.H);  // 1: what dA starts from
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const auto& [name, values] = got[i];
    ASSERT_EQ(values.size(), want[i].second.size()) << name;
    const double size = name == "ddt" ? largest(want[i].second) : column;
    const bool difference = name == "ddt" || name == "dA" || name == "ddt_bias";
    double worst = 0;
    size_t where = 0;
    for (size_t k = 0; k < values.size(); ++k) {
      const double bound = steps * kEpsilon * (difference ? size : scale[i].second[k]) + 1e-37;
      const double error = std::fabs(values[k] - want[i].second[k]) / bound;
      if (!(error <= worst)) worst = error, where = k;
    }
    EXPECT_LE(worst, 1.0) << name << "[" << where << "] of " << values.size() << ": got "
                          << (values.empty() ? 0 : values[where]) << ", want "
                          << (values.empty() ? 0 : want[i].second[where]);
  }
}

void check_case(const Case& c, uint64_t seed, bool gradients = true) {
  SCOPED_TRACE(testing::Message() << "B " << c.B << " L " << c.L << " H " << c.H << " P " << c.P
                                  << " N " << c.N << " G " << c.G << " chunk " << c.chunk
                                  << " seed " << seed);
  const Problem p = make_problem(c, seed), positive = absolute(p);
  Stream plain;
  const auto y = forward<double>(ref_kernels(), plain, p);
  const auto y_scale = forward<double>(ref_kernels(), plain, positive);
  Results<double> d, d_scale;
  if (gradients) {
    d = backward<double>(ref_kernels(), plain, p);
    d_scale = backward<double>(ref_kernels(), plain, positive);
  }
  for_each_backend([&](Device& device) {
    const int64_t gap = static_cast<int64_t>(seed % 3);
    expect_results(c, forward<float>(device.kernels(), device.stream(), p, gap), y, y_scale);
    if (gradients) {
      expect_results(c, backward<float>(device.kernels(), device.stream(), p, gap), d, d_scale);
    }
  });
}

// c with the states whose bits are set.
Case with_states(Case c, int bits) {
  c.initial = (bits & 1) != 0, c.reset = (bits & 2) != 0, c.final = (bits & 4) != 0;
  return c;
}

TEST(Ssd, MatchesTheRecurrenceForEveryHeadWidthAndStateSize) {
  uint64_t seed = 1;
  for (int64_t size : {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100}) {
    Case c{.B = 1, .L = 19, .H = 2, .P = size, .N = 5, .G = 1};
    check_case(c, ++seed);
    std::swap(c.P, c.N);
    check_case(c, ++seed);
  }
}

TEST(Ssd, MatchesTheRecurrenceForEveryLengthAndChunk) {
  uint64_t seed = 100;
  for (int64_t L : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 300}) {
    for (int64_t chunk : {int64_t{1}, int64_t{5}, int64_t{16}, int64_t{64}, int64_t{1} << 40}) {
      check_case({.B = 1, .L = L, .H = 1, .P = 3, .N = 9, .G = 1, .chunk = chunk}, ++seed);
    }
  }
}

TEST(Ssd, MatchesTheRecurrenceForEveryOption) {
  uint64_t seed = 200;
  for (Skip skip : {Skip::kNone, Skip::kHead, Skip::kChannel}) check_case({.skip = skip}, ++seed);
  for (Docs docs : {Docs::kNone, Docs::kDocs, Docs::kPadded, Docs::kOnlyPadding}) {
    for (int bits = 0; bits < 8; ++bits) check_case(with_states({.docs = docs}, bits), ++seed);
  }
  for (auto [H, G] : {std::pair<int64_t, int64_t>{1, 1}, {6, 1}, {6, 2}, {6, 3}, {6, 6}, {40, 1}}) {
    check_case({.H = H, .G = G, .docs = Docs::kDocs}, ++seed);
  }
  check_case({.dt_min = 0.1, .dt_max = 0.4}, ++seed);
  check_case({.dt_min = 0.3}, ++seed);
  check_case({.dt_max = 0.2}, ++seed);
  Random r(7);
  for (int i = 0; i < 12; ++i) {
    const int64_t G = 1 + r.below(3);
    Case c{.B = 1 + r.below(3), .L = r.below(70), .H = G * (1 + r.below(5))};
    c.P = 1 + r.below(40), c.N = 1 + r.below(40), c.G = G, c.chunk = 1 + r.below(30);
    c.dt_min = 0.05, c.dt_max = 0.8;
    c.skip = static_cast<Skip>(r.below(3)), c.docs = static_cast<Docs>(r.below(3));
    check_case(with_states(c, static_cast<int>(r.below(8))), ++seed);
  }
}

TEST(Ssd, MatchesTheRecurrenceAtARealModelsSize) {  // 4 of the 24 heads of mamba2-130m
  check_case({.B = 1, .L = 150, .H = 4, .P = 64, .N = 128, .G = 1, .chunk = 64, .initial = false},
             300);
}

// Chunks are at most 64 long, and up to 256 where a document is taken whole; every combination of
// states and gradients that are known to be zero.
TEST(Ssd, MatchesTheRecurrenceForDocumentsOfOneChunkAndOfMany) {
  uint64_t seed = 350;
  for (int64_t L : {65, 127, 190, 256, 257, 300}) {
    const Case c{.B = 1, .L = L, .H = 3, .P = 47, .N = 64, .G = 1, .chunk = 256};
    check_case(with_states(c, L == 190 ? 4 : 0), ++seed);
  }
  for (Docs docs : {Docs::kDocs, Docs::kPadded}) {
    Case c{.B = 1, .L = 330, .H = 2, .P = 24, .N = 40, .G = 1, .chunk = 1000};
    c.docs = docs, c.document = 60;
    for (int bits = 0; bits < 8; ++bits) check_case(with_states(c, bits), ++seed);
  }
}

TEST(Ssd, StaysExactWhereDecaysUnderflowAndStepsAreLarge) {
  Case c{.B = 1, .L = 200, .H = 2, .P = 4, .N = 6, .G = 1, .chunk = 100};
  Problem p = make_problem(c, 310);
  for (double& a : p.A) a = -16;
  for (size_t i = 0; i < p.dt.size(); i += 3) p.dt[i] = 25;  // softplus is the identity there
  const Problem positive = absolute(p);
  Stream plain;
  const auto want = forward<double>(ref_kernels(), plain, p);
  const auto scale = forward<double>(ref_kernels(), plain, positive);
  const auto gradient = backward<double>(ref_kernels(), plain, p);
  const auto gradient_scale = backward<double>(ref_kernels(), plain, positive);
  for_each_backend([&](Device& device) {
    expect_results(c, forward<float>(device.kernels(), device.stream(), p), want, scale);
    expect_results(c, backward<float>(device.kernels(), device.stream(), p), gradient,
                   gradient_scale);
  });
}

TEST(Ssd, EmptySequencePassesStateAndGradient) {
  const Case c{.B = 2, .L = 0};
  Problem p = make_problem(c, 320);
  for_each_backend([&](Device& device) {
    const auto y = forward<float>(device.kernels(), device.stream(), p);
    const auto d = backward<float>(device.kernels(), device.stream(), p);
    for (size_t i = 0; i < p.S0.size(); ++i) {
      EXPECT_EQ(y[1].second[i], p.S0[i]);
      EXPECT_EQ(d[4].second[i], p.dST[i]);
    }
  });
}

// Sum of y * dy + ST * dST, whose gradients backward computes.
double loss(const Problem& p) {
  Stream plain;
  const auto r = forward<double>(ref_kernels(), plain, p);
  double sum = 0;
  for (size_t i = 0; i < p.dy.size(); ++i) sum += r[0].second[i] * p.dy[i];
  for (size_t i = 0; i < p.dST.size(); ++i) sum += r[1].second[i] * p.dST[i];
  return sum;
}

TEST(Ssd, ReferenceGradientsAreThoseOfFiniteDifferences) {
  for (Docs docs : {Docs::kNone, Docs::kPadded}) {
    for (Skip skip : {Skip::kHead, Skip::kChannel}) {
      Case c{.L = 9, .H = 4, .P = 2, .N = 3, .dt_min = 0.05, .dt_max = 0.6};
      c.skip = skip, c.docs = docs;
      Problem p = make_problem(c, 400 + static_cast<uint64_t>(skip));
      std::fill(p.sums.begin(), p.sums.end(), 0.0);
      Stream plain;
      const auto d = backward<double>(ref_kernels(), plain, p);
      std::vector<double>* inputs[] = {&p.x,       &p.Bm, &p.Cm,      &p.D, &p.S0,
                                       &p.S_reset, &p.dt, &p.dt_bias, &p.A};
      for (size_t i = 0; i < d.size(); ++i) {
        ASSERT_EQ(inputs[i]->size(), d[i].second.size()) << d[i].first;
        std::vector<double> numeric;
        for (double& value : *inputs[i]) {
          const double h = 1e-5, was = value;
          value = was + h;
          const double above = loss(p);
          value = was - h;
          numeric.push_back((above - loss(p)) / (2 * h));
          value = was;
        }
        // Truncation h^2 = 1e-10 and rounding 1e-15 / h = 1e-10, times losses and derivatives
        // near 10.
        EXPECT_TRUE(close(d[i].second, numeric, 1e-8, 1e-7)) << d[i].first;
      }
    }
  }
}

template <class T>
void expect_same(const Results<T>& a, const Results<T>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].second.size(), b[i].second.size());
    EXPECT_TRUE(
        same_bits(a[i].second.data(), b[i].second.data(), static_cast<int64_t>(a[i].second.size())))
        << a[i].first;
  }
}

TEST(Ssd, ThreadsAndRepetitionChangeNoBit) {
  const Problem p = make_problem(
      {.B = 2, .L = 70, .H = 12, .P = 17, .N = 33, .G = 1, .chunk = 16, .docs = Docs::kPadded},
      500);
  for (const std::string& name : Device::available()) {
    if (name == "ref64") continue;
    Results<float> y, d;
    for (int threads : {1, 1, 2, 2, 3}) {
      auto device = Device::create({name, threads});
      const auto y_now = forward<float>(device->kernels(), device->stream(), p, 1);
      const auto d_now = backward<float>(device->kernels(), device->stream(), p, 1);
      if (!y.empty()) {
        expect_same(y, y_now);
        expect_same(d, d_now);
      }
      y = y_now, d = d_now;
    }
  }
}

// The rows of `from` (width wide) where keep holds.
std::vector<float> rows_where(const std::vector<float>& from, const std::vector<bool>& keep) {
  const size_t width = from.size() / keep.size();
  std::vector<float> out;
  for (size_t r = 0; r < keep.size(); ++r) {
    if (!keep[r]) continue;
    out.insert(out.end(), from.begin() + static_cast<int64_t>(r * width),
               from.begin() + static_cast<int64_t>((r + 1) * width));
  }
  return out;
}

// Row b of p without its padding, alone.
Problem row_alone(const Problem& p, int64_t b, std::vector<bool>* keep) {
  Problem q = p;
  const int64_t L = p.c.L, PN = p.c.H * p.c.P * p.c.N;
  keep->assign(p.ids.size(), false);
  q.c.B = 1, q.c.L = 0;
  q.ids.clear();
  for (int64_t t = b * L; t < (b + 1) * L; ++t) {
    if (p.ids[static_cast<size_t>(t)] < 0) continue;
    (*keep)[static_cast<size_t>(t)] = true;
    q.ids.push_back(p.ids[static_cast<size_t>(t)]);
    ++q.c.L;
  }
  for (auto field : {&Problem::x, &Problem::dt, &Problem::Bm, &Problem::Cm, &Problem::dy}) {
    const std::vector<float> all((p.*field).begin(), (p.*field).end());
    const std::vector<float> kept = rows_where(all, *keep);
    (q.*field).assign(kept.begin(), kept.end());
  }
  for (auto field : {&Problem::S0, &Problem::dST}) {
    if ((p.*field).empty()) continue;
    (q.*field).assign((p.*field).begin() + b * PN, (p.*field).begin() + (b + 1) * PN);
  }
  return q;
}

// Every row of p is that of the row alone, without its padding.
void check_rows_alone(const Problem& p) {
  const int64_t HP = p.c.H * p.c.P;
  for_each_backend([&](Device& device) {
    const auto y = forward<float>(device.kernels(), device.stream(), p);
    const auto d = backward<float>(device.kernels(), device.stream(), p);
    for (int64_t b = 0; b < p.c.B; ++b) {
      std::vector<bool> keep;
      const Problem alone = row_alone(p, b, &keep);
      const auto y_alone = forward<float>(device.kernels(), device.stream(), alone);
      const auto d_alone = backward<float>(device.kernels(), device.stream(), alone);
      EXPECT_EQ(rows_where(y[0].second, keep), y_alone[0].second);
      for (size_t i : {0, 1, 2, 6}) {  // dx, dB, dC, ddt
        EXPECT_EQ(rows_where(d[i].second, keep), d_alone[i].second) << d[i].first;
      }
      std::vector<bool> row(static_cast<size_t>(p.c.B));
      row[static_cast<size_t>(b)] = true;
      EXPECT_EQ(rows_where(y[1].second, row), y_alone[1].second);
      EXPECT_EQ(rows_where(d[4].second, row), d_alone[4].second);
    }
    for (size_t t = 0; t < p.ids.size(); ++t) {
      if (p.ids[t] >= 0) continue;
      EXPECT_EQ(y[0].second[t * static_cast<size_t>(HP)], 0.0f);
      for (size_t i : {0, 1, 2, 6}) {
        EXPECT_EQ(d[i].second[t * (d[i].second.size() / p.ids.size())], 0.0f) << d[i].first;
      }
    }
  });
}

TEST(Ssd, PaddingAndNeighboursChangeNoBitOfARow) {
  check_rows_alone(make_problem(
      {.B = 3, .L = 60, .H = 8, .P = 9, .N = 18, .G = 2, .chunk = 16, .docs = Docs::kPadded}, 510));
  // Documents taken whole and in chunks.
  Case c{.B = 7, .L = 270, .H = 12, .P = 24, .N = 40, .G = 1, .chunk = 256};
  c.docs = Docs::kPadded, c.document = 90;
  check_rows_alone(make_problem(with_states(c, 0), 511));
}

// One problem's SsdStepArgs at token t (B = 1), states in S.
SsdStepArgs step_args(Inputs<float>* in, const Case& c, int64_t t, float* S, float* y) {
  SsdStepArgs a{};
  a.B = 1, a.H = c.H, a.P = c.P, a.N = c.N, a.G = c.G;
  a.dt_min = c.dt_min, a.dt_max = c.dt_max;
  a.x = CBuf(in->x.get()) + t * in->x.stride(), a.x_stride = in->x.stride();
  a.dt = CBuf(in->dt.get()) + t * in->dt.stride(), a.dt_stride = in->dt.stride();
  a.dt_bias = CBuf(in->dt_bias.get()), a.A = CBuf(in->A.get());
  a.Bm = CBuf(in->Bm.get()) + t * in->Bm.stride(), a.B_stride = in->Bm.stride();
  a.Cm = CBuf(in->Cm.get()) + t * in->Cm.stride(), a.C_stride = in->Cm.stride();
  a.D = CBuf(in->D.get()), a.D_has_hdim = c.skip == Skip::kChannel;
  a.S = Buf(S), a.s_stride = c.H * c.P * c.N;
  a.y = Buf(y), a.y_stride = c.H * c.P;
  return a;
}

TEST(Ssd, StepsAndSplitsEqualTheWholeSequence) {
  uint64_t seed = 600;
  for (int64_t size : {1, 3, 8, 15, 17, 33, 64, 100}) {
    for (Skip skip : {Skip::kNone, Skip::kHead, Skip::kChannel}) {
      Case c{.B = 1, .L = 12, .H = 2, .P = size, .N = 101 - size, .G = 1, .chunk = 4};
      c.dt_min = 0.1, c.dt_max = 0.5, c.skip = skip;
      const Problem p = make_problem(c, ++seed);
      Stream plain;
      const auto want = forward<double>(ref_kernels(), plain, p);
      const auto scale = forward<double>(ref_kernels(), plain, absolute(p));
      for_each_backend([&](Device& device) {
        // Seven tokens, then the rest token by token; ST is S0's memory.
        Inputs<float> in(p, 2);
        Field<float> S(p.S0, 1, 0, 3), y(c.L, c.H * c.P, 0, 2);
        SsdArgs a{};
        in.fill(p, 0, &a);
        a.L = 7;
        a.S0 = CBuf(S.get()), a.ST = Buf(S.get());
        a.y = Buf(y.get()), a.y_stride = c.H * c.P;
        device.kernels().ssd_forward(device.stream(), a);
        for (int64_t t = 7; t < c.L; ++t) {
          const SsdStepArgs s = step_args(&in, c, t, S.get(), y.get() + t * c.H * c.P);
          device.kernels().ssd_step(device.stream(), s);
          device.sync();
        }
        expect_results(c, {{"y", y.values()}, {"ST", S.values()}}, want, scale);
      });
    }
  }
}

TEST(Ssd, StepOfABatchIsThatOfItsRowsBitForBit) {
  const Case c{.B = 1, .L = 5, .H = 6, .P = 33, .N = 47, .G = 2, .skip = Skip::kChannel};
  const Problem p = make_problem(c, 700);
  const int64_t HPN = c.H * c.P * c.N, HP = c.H * c.P;
  Random r(701);
  const std::vector<double> states = r.vector(c.L * HPN, -1, 1);
  for (int threads : {1, 2, 3}) {
    for_each_backend(
        [&](Device& device) {
          Inputs<float> in(p, 1);
          Field<float> S(states, c.L, 3, 1), y(c.L, HP, 5, 2);
          Field<float> S_row(states, c.L, 0, 1), y_row(c.L, HP, 0, 2);
          SsdStepArgs a = step_args(&in, c, 0, S.get(), y.get());
          a.B = c.L, a.s_stride = S.stride(), a.y_stride = y.stride();
          device.kernels().ssd_step(device.stream(), a);
          for (int64_t t = 0; t < c.L; ++t) {
            const SsdStepArgs one =
                step_args(&in, c, t, S_row.get() + t * HPN, y_row.get() + t * HP);
            device.kernels().ssd_step(device.stream(), one);
          }
          device.sync();
          EXPECT_EQ(S.values(), S_row.values());
          EXPECT_EQ(y.values(), y_row.values());
        },
        threads);
  }
}

}  // namespace
}  // namespace mamba::test
