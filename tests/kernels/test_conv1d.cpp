// SPDX-License-Identifier: Apache-2.0
// conv1d: every backend against the f64 reference, the reference against finite differences and a
// hand-made example, carried state, documents and padding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "support/backends.h"
#include "support/close.h"
#include "support/random.h"
#include "support/strided.h"

namespace mamba::test {
namespace {

enum class Ids { kNone, kDocuments, kPadded, kFirstRowEmpty };

struct Case {
  int64_t B, L, C, K;
  Ids ids = Ids::kNone;
  bool silu = true, bias = true, state_in = true, state_out = true;
  int64_t gap = 0;
  bool alias = false;  // state_out is state_in
  int64_t state() const { return (K - 1) * C; }
};

std::ostream& operator<<(std::ostream& o, const Case& c) {
  return o << "B " << c.B << " L " << c.L << " C " << c.C << " K " << c.K << " ids "
           << static_cast<int>(c.ids) << " silu " << c.silu << " bias " << c.bias << " state_in "
           << c.state_in << " state_out " << c.state_out << " gap " << c.gap;
}

constexpr double kMaxX = 2, kMaxWeight = 0.5;

struct Inputs {
  std::vector<double> x, weight, bias, state, dy, dstate_out, dweight, dbias;
  std::vector<int32_t> ids;
  // poison: x and dy of padding are NaN, which no result may show.
  Inputs(const Case& c, uint64_t seed, bool poison) {
    Random random(seed);
    x = random.vector(c.B * c.L * c.C, -kMaxX, kMaxX);
    weight = random.vector(c.C * c.K, -kMaxWeight, kMaxWeight);
    bias = random.vector(c.C, -1, 1);
    state = random.vector(c.B * c.state(), -kMaxX, kMaxX);
    dy = random.vector(c.B * c.L * c.C, -1, 1);
    dstate_out = random.vector(c.B * c.state(), -1, 1);
    dweight = random.vector(c.C * c.K, -1, 1);
    dbias = random.vector(c.C, -1, 1);
    int32_t id = 3;
    for (int64_t i = 0; i < c.B * c.L; ++i) {
      if (random.below(4) == 0) id = static_cast<int32_t>(random.below(5));
      bool padding = c.ids == Ids::kPadded && random.below(3) == 0;
      padding = padding || (c.ids == Ids::kFirstRowEmpty && i < c.L);
      ids.push_back(padding ? -1 : id);
      if (!padding || !poison) continue;
      for (int64_t d = i * c.C; d < (i + 1) * c.C; ++d) {
        x[static_cast<size_t>(d)] = dy[static_cast<size_t>(d)] =
            std::numeric_limits<double>::quiet_NaN();
      }
    }
  }
};

template <class T>
struct Forward {
  std::vector<T> y, state;
};
template <class T>
struct Backward {
  std::vector<T> dx, dweight, dbias, dstate_in;
};

Forward<double> reference_forward(const Case& c, const Inputs& in) {
  Forward<double> out{std::vector<double>(in.x.size()), std::vector<double>(in.state.size())};
  Conv1dArgs a{};
  a.B = c.B, a.L = c.L, a.C = c.C, a.K = c.K, a.silu = c.silu;
  a.x = in.x.data(), a.x_stride = c.C;
  a.weight = in.weight.data();
  if (c.bias) a.bias = in.bias.data();
  if (c.state_in) a.state_in = in.state.data();
  a.state_out = out.state.data(), a.state_stride = c.state();
  if (c.ids != Ids::kNone) a.doc_ids = in.ids.data();
  a.y = out.y.data(), a.y_stride = c.C;
  Stream stream;
  ref_kernels().conv1d_forward(stream, a);
  return out;
}

Backward<double> reference_backward(const Case& c, const Inputs& in) {
  Backward<double> out{std::vector<double>(in.x.size()), in.dweight, in.dbias,
                       std::vector<double>(in.state.size())};
  Conv1dBackwardArgs a{};
  a.B = c.B, a.L = c.L, a.C = c.C, a.K = c.K, a.silu = c.silu;
  a.x = in.x.data(), a.x_stride = c.C;
  a.weight = in.weight.data();
  if (c.bias) a.bias = in.bias.data();
  if (c.state_in) a.state_in = in.state.data();
  a.state_stride = c.state();
  if (c.ids != Ids::kNone) a.doc_ids = in.ids.data();
  a.dy = in.dy.data(), a.dy_stride = c.C;
  if (c.state_out) a.dstate_out = in.dstate_out.data();
  a.dx = out.dx.data(), a.dx_stride = c.C;
  a.dweight = out.dweight.data();
  if (c.bias) a.dbias = out.dbias.data();
  if (c.state_in) a.dstate_in = out.dstate_in.data();
  Stream stream;
  ref_kernels().conv1d_backward(stream, a);
  return out;
}

Forward<float> run_forward(Device& device, const Case& c, const Inputs& in) {
  StridedRows x(c.B * c.L, c.C, c.C + c.gap, 1, in.x), weight(c.C, c.K, c.K, 2, in.weight);
  std::vector<double> transposed;
  for (int64_t k = 0; k < c.K; ++k) {
    for (int64_t i = 0; i < c.C; ++i) {
      transposed.push_back(in.weight[static_cast<size_t>(i * c.K + k)]);
    }
  }
  StridedRows taps(c.K, c.C, c.C, 1, transposed);
  StridedRows bias(1, c.C, c.C, 3, in.bias);
  StridedRows state_in(c.B, c.state(), c.state() + c.gap, 1, in.state);
  StridedRows state_out(c.B, c.state(), c.state() + c.gap, 2), y(c.B * c.L, c.C, c.C + c.gap, 3);
  Conv1dArgs a{};
  a.B = c.B, a.L = c.L, a.C = c.C, a.K = c.K, a.silu = c.silu;
  a.x = x.data(), a.x_stride = x.stride();
  a.weight = weight.data();
  a.taps = taps.data();
  if (c.bias) a.bias = bias.data();
  if (c.state_in) a.state_in = state_in.data();
  StridedRows& state = c.alias ? state_in : state_out;
  if (c.state_out) a.state_out = state.data();
  a.state_stride = state.stride();
  if (c.ids != Ids::kNone) a.doc_ids = in.ids.data();
  a.y = y.data(), a.y_stride = y.stride();
  device.kernels().conv1d_forward(device.stream(), a);
  device.sync();
  for (const StridedRows* b : {&x, &weight, &bias, &state_in, &state_out, &y}) {
    EXPECT_TRUE(b->intact());
  }
  return {y.values(), state.values()};
}

Backward<float> run_backward(Device& device, const Case& c, const Inputs& in) {
  StridedRows x(c.B * c.L, c.C, c.C + c.gap, 3, in.x), weight(c.C, c.K, c.K, 1, in.weight);
  StridedRows bias(1, c.C, c.C, 2, in.bias);
  StridedRows state_in(c.B, c.state(), c.state() + c.gap, 3, in.state);
  StridedRows dstate_out(c.B, c.state(), c.state(), 1, in.dstate_out);
  StridedRows dstate_in(c.B, c.state(), c.state(), 2);
  StridedRows dy(c.B * c.L, c.C, c.C + 2 * c.gap, 1, in.dy), dx(c.B * c.L, c.C, c.C + c.gap, 2);
  StridedRows dweight(c.C, c.K, c.K, 3, in.dweight), dbias(1, c.C, c.C, 1, in.dbias);
  Conv1dBackwardArgs a{};
  a.B = c.B, a.L = c.L, a.C = c.C, a.K = c.K, a.silu = c.silu;
  a.x = x.data(), a.x_stride = x.stride();
  a.weight = weight.data();
  if (c.bias) a.bias = bias.data();
  if (c.state_in) a.state_in = state_in.data();
  a.state_stride = state_in.stride();
  if (c.ids != Ids::kNone) a.doc_ids = in.ids.data();
  a.dy = dy.data(), a.dy_stride = dy.stride();
  if (c.state_out) a.dstate_out = dstate_out.data();
  a.dx = dx.data(), a.dx_stride = dx.stride();
  a.dweight = dweight.data();
  if (c.bias) a.dbias = dbias.data();
  if (c.state_in) a.dstate_in = dstate_in.data();
  device.kernels().conv1d_backward(device.stream(), a);
  device.sync();
  for (const StridedRows* b :
       {&x, &weight, &bias, &state_in, &dstate_out, &dstate_in, &dy, &dx, &dweight, &dbias}) {
    EXPECT_TRUE(b->intact());
  }
  return {dx.values(), dweight.values(), dbias.values(), dstate_in.values()};
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (int64_t C : {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100}) {
    list.push_back({2, C % 7 + 3, C, 4});
  }
  for (int64_t K = 1; K <= 9; ++K) {  // L = 0, L < K, L = K - 1, more than a block
    for (int64_t L : {0, 1, 2, 3, 5, 70}) {
      for (Ids ids : {Ids::kNone, Ids::kDocuments, Ids::kPadded}) list.push_back({2, L, 5, K, ids});
    }
  }
  list.push_back({1, 150, 17, 40, Ids::kPadded});  // blocks of 80
  list.push_back({2, 200, 3, 100});                // blocks of 200
  for (int option = 0; option < 8; ++option) {
    for (int64_t K : {4, 3}) {
      Case c{3, 21, 37, K, option < 3 ? Ids::kNone : Ids::kPadded};
      if (option == 0) c.silu = false;
      if (option == 1) c.bias = false;
      if (option == 2 || option == 3) c.state_in = false;
      if (option == 4) c.state_out = false;
      if (option == 5) c.gap = 3;
      if (option == 6) c.alias = true, c.gap = 5;
      if (option == 7) c.ids = Ids::kFirstRowEmpty;
      list.push_back(c);
    }
  }
  for (int64_t L : {0, 1, 2, 3, 130}) {  // carried state in place, as a decoding step has it
    list.push_back({3, L, 65, 4, Ids::kNone, true, true, true, true, 0, true});
  }
  list.push_back({40, 1, 20, 4});                                              // groups of 3 rows
  list.push_back({2, 33, 1536, 4, Ids::kNone, true, true, true, true, 1536});  // x of [x, z]
  list.push_back({1, 300, 600, 4, Ids::kPadded, true, true, false, true, 0});  // two slabs
  for (int64_t K : {2, 3, 4}) {  // several runs of a GPU, with vectors, and a state in place
    list.push_back({2, 131, 64, K, Ids::kNone, true, true, true, true, 0, true});
    list.push_back({1, 75, 64, K, Ids::kPadded, true, true, true, true, 0, true});
  }
  return list;
}

// |bias| + sum |weight x|.
double largest_pre(const Case& c) { return 1 + static_cast<double>(c.K) * kMaxWeight * kMaxX; }

TEST(Conv1d, ForwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c);
      const Inputs in(c, 1, true);
      const Forward<double> want = reference_forward(c, in);
      const Forward<float> got = run_forward(device, c, in);
      // K products and sums (two roundings each without FMA) times the slope of silu, at most 1.1;
      // the sigmoid is good to 8 roundings and its product adds one.
      const double roundings = 1.1 * (2.0 * c.K + 2) + 12;
      EXPECT_TRUE(close(got.y, want.y, roundings * kRounding * largest_pre(c), 0));
      if (c.state_out) {
        EXPECT_TRUE(close(got.state, want.state, 0, 0));
      }
    }
  });
}

TEST(Conv1d, BackwardOfEveryBackendIsTheReference) {
  for_each_backend([](Device& device) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(testing::Message() << c);
      const Inputs in(c, 2, true);
      const Backward<double> want = reference_backward(c, in);
      const Backward<float> got = run_backward(device, c, in);
      // dpre = dy silu'(pre), |dy| <= 1, |silu'| <= 1.1, |silu''| <= 0.5; 1 - sigmoid is good to
      // one rounding of 1, which pre multiplies.
      const double pre = largest_pre(c), k = static_cast<double>(c.K);
      const double dpre = (0.5 * (2 * k + 2) * pre + 12 + pre) * kRounding;
      // K products of |weight| <= 1/2, and dstate_out.
      const double dx = k * kMaxWeight * (dpre + (2 * k + 2) * 1.1 * kRounding) + kRounding;
      EXPECT_TRUE(close(got.dx, want.dx, dx, 0));
      if (c.state_in) {
        EXPECT_TRUE(close(got.dstate_in, want.dstate_in, dx, 0));
      }
      // A sum of n terms of random sign and at most 2.2 errs by at most one rounding of each
      // partial sum, and these stay below 6 sqrt(n) 2.2 (six standard deviations; the seed is
      // fixed).
      const double n = static_cast<double>(c.B * c.L) + 2;
      const double sum = kRounding * n * 6 * std::sqrt(n) * 1.1 * kMaxX + n * kMaxX * dpre;
      EXPECT_TRUE(close(got.dweight, want.dweight, sum, 0));
      if (c.bias) {
        EXPECT_TRUE(close(got.dbias, want.dbias, sum, 0));
      }
    }
  });
}

TEST(Conv1d, ReferenceBackwardIsTheFiniteDifference) {
  const Case list[] = {{2, 6, 2, 4},
                       {2, 9, 2, 4, Ids::kPadded},
                       {2, 12, 2, 3, Ids::kDocuments},
                       {2, 5, 2, 3, Ids::kFirstRowEmpty},
                       {1, 2, 3, 5},
                       {1, 0, 2, 3},
                       {1, 5, 2, 1},
                       {1, 5, 2, 2, Ids::kNone, false}};
  for (const Case& c : list) {
    SCOPED_TRACE(testing::Message() << c);
    Inputs in(c, 3, false);
    const Backward<double> got = reference_backward(c, in);
    const auto loss = [&] {
      const Forward<double> f = reference_forward(c, in);
      return dot(f.y, in.dy) + dot(f.state, in.dstate_out);
    };
    // The loss is below 50, the differences are good to 1e-12 of it.
    EXPECT_TRUE(close(got.dx, numeric_gradient(in.x, loss), 1e-9, 0));
    EXPECT_TRUE(close(got.dstate_in, numeric_gradient(in.state, loss), 1e-9, 0));
    std::vector<double> dweight = numeric_gradient(in.weight, loss);
    for (size_t i = 0; i < dweight.size(); ++i) dweight[i] += in.dweight[i];
    EXPECT_TRUE(close(got.dweight, dweight, 1e-9, 0));
    std::vector<double> dbias = numeric_gradient(in.bias, loss);
    for (size_t i = 0; i < dbias.size(); ++i) dbias[i] += in.dbias[i];
    EXPECT_TRUE(close(got.dbias, dbias, 1e-9, 0));
  }
}

TEST(Conv1d, HandMadeExampleWithStateDocumentsAndPadding) {
  for_each_backend([](Device& device) {
    // One channel, K = 3, taps 100, 10, 1: y spells the window. state_in is 8, 9.
    const std::vector<float> x = {7, 1, 2, 7, 3, 4, 7, 5}, weight = {100, 10, 1};
    std::vector<float> state = {8, 9}, y(8);
    const std::vector<int32_t> ids = {-1, 0, 0, -1, 0, 6, -5, 6};
    Conv1dArgs a{};
    a.B = 1, a.L = 8, a.C = 1, a.K = 3;
    a.x = x.data(), a.x_stride = 1, a.weight = weight.data();
    a.state_in = state.data(), a.state_out = state.data(), a.state_stride = 2;
    a.doc_ids = ids.data();
    a.y = y.data(), a.y_stride = 1;
    device.kernels().conv1d_forward(device.stream(), a);
    device.sync();
    EXPECT_EQ(y, (std::vector<float>{0, 891, 912, 0, 123, 4, 0, 45}));
    EXPECT_EQ(state, (std::vector<float>{4, 5}));
  });
}

TEST(Conv1d, SplitSequenceEqualsUnsplitBitForBit) {
  for_each_backend([](Device& device) {
    const Case c{2, 19, 33, 4, Ids::kNone, true, true, true, true, 0, true};
    const Inputs in(c, 4, true);
    const Forward<float> whole = run_forward(device, c, in);
    for (int64_t piece : {1, 2, 3, 4, 7, 18}) {
      Inputs part = in;
      std::vector<float> y(whole.y.size());
      for (int64_t t0 = 0; t0 < c.L; t0 += piece) {
        Case p = c;
        p.L = std::min(piece, c.L - t0);
        part.x.clear();
        for (int64_t b = 0; b < c.B; ++b) {
          const auto from = in.x.begin() + (b * c.L + t0) * c.C;
          part.x.insert(part.x.end(), from, from + p.L * c.C);
        }
        const Forward<float> f = run_forward(device, p, part);
        for (int64_t b = 0; b < c.B; ++b) {
          std::copy_n(f.y.begin() + b * p.L * c.C, p.L * c.C, y.begin() + (b * c.L + t0) * c.C);
        }
        part.state.assign(f.state.begin(), f.state.end());
      }
      EXPECT_TRUE(same_bits(y.data(), whole.y.data(), static_cast<int64_t>(y.size())));
      const std::vector<float> state(part.state.begin(), part.state.end());
      EXPECT_TRUE(same_bits(state.data(), whole.state.data(), static_cast<int64_t>(state.size())));
    }
  });
}

TEST(Conv1d, ResultsDoNotDependOnThreadsOrRuns) {
  for (Ids ids : {Ids::kNone, Ids::kPadded}) {
    const Case c{3, 150, 600, 4, ids};  // large enough for a parallel region
    const Inputs in(c, 5, true);
    std::optional<Forward<float>> forward;
    std::optional<Backward<float>> backward;
    for (int threads : {1, 2, 3, 2}) {
      std::unique_ptr<Device> device = Device::create({"cpu", threads});
      const Forward<float> f = run_forward(*device, c, in);
      const Backward<float> d = run_backward(*device, c, in);
      if (!forward) forward = f, backward = d;
      EXPECT_TRUE(same_bits(f.y.data(), forward->y.data(), c.B * c.L * c.C));
      EXPECT_TRUE(same_bits(f.state.data(), forward->state.data(), c.B * c.state()));
      EXPECT_TRUE(same_bits(d.dx.data(), backward->dx.data(), c.B * c.L * c.C));
      EXPECT_TRUE(same_bits(d.dweight.data(), backward->dweight.data(), c.C * c.K));
      EXPECT_TRUE(same_bits(d.dbias.data(), backward->dbias.data(), c.C));
      EXPECT_TRUE(same_bits(d.dstate_in.data(), backward->dstate_in.data(), c.B * c.state()));
    }
  }
}

}  // namespace
}  // namespace mamba::test
