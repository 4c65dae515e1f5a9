// SPDX-License-Identifier: Apache-2.0
// sample, reference; the CPU backends use it too, so it selects instead of sorting a vocabulary.
#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "kernels/sample.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Logits as doubles, with -infinity for NaN.
std::vector<double> read_logits(const SampleArgs& a) {
  std::vector<double> x(static_cast<size_t>(a.vocab));
  with_float(a.logits.dtype, [&]<class T>() {
    for (int64_t i = 0; i < a.vocab; ++i) {
      const double logit = a.logits.as<T>()[i];
      x[i] = std::isnan(logit) ? -kInfinity : logit;
    }
  });
  return x;
}

// Tokens in the order of likelihood; the kept ones are those up to and including the last.
class Ranking {
 public:
  explicit Ranking(const std::vector<double>& logits) : x_(logits), last_(-1) {}

  bool before(int32_t a, int32_t b) const { return x_[a] > x_[b] || (x_[a] == x_[b] && a < b); }
  bool keeps(int32_t token) const { return last_ < 0 || !before(last_, token); }

  void keep_top_k(int64_t k) {
    list_all();
    select(0, k);
    order_.resize(static_cast<size_t>(k));
    last_ = order_.back();
  }

  // The fewest tokens whose weights reach `mass`, at least one. Most distributions end within the
  // first hundreds, so ever larger groups are selected and sorted, not everything.
  void keep_mass(const std::vector<double>& weight, double mass) {
    list_all();
    const int64_t count = static_cast<int64_t>(order_.size());
    double reached = 0;
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
      end = std::min(count, begin + 256 + 3 * begin);
      select(begin, end);
      std::sort(order_.begin() + begin, order_.begin() + end,
                [this](int32_t a, int32_t b) { return before(a, b); });
      for (int64_t i = begin; i < end; ++i) {
        reached += weight[order_[i]];
        last_ = order_[i];
        if (reached >= mass) return;
      }
    }
  }

 private:
  void list_all() {
    if (!order_.empty()) return;
    order_.resize(x_.size());
    for (size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<int32_t>(i);
  }
  // Puts the most likely tokens of begin.. before position end.
  void select(int64_t begin, int64_t end) {
    if (end >= static_cast<int64_t>(order_.size())) return;
    std::nth_element(order_.begin() + begin, order_.begin() + end - 1, order_.end(),
                     [this](int32_t a, int32_t b) { return before(a, b); });
  }

  const std::vector<double>& x_;
  std::vector<int32_t> order_;
  int32_t last_;  // -1: all are kept
};

int32_t draw(const SampleArgs& a) {
  const std::vector<double> x = read_logits(a);
  const int32_t greedy =
      static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());  // the first of ties
  if (!(a.temperature > 0) || a.top_k == 1) return greedy;
  const double largest = x[greedy];
  // Weights relative to the largest; equal logits are equal even when infinite.
  std::vector<double> weight(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    weight[i] = x[i] == largest ? 1.0 : std::exp((x[i] - largest) / a.temperature);
  }
  Ranking ranking(x);
  const auto kept = [&](int64_t i) { return ranking.keeps(static_cast<int32_t>(i)); };
  if (a.top_k > 0 && a.top_k < a.vocab) ranking.keep_top_k(a.top_k);
  if (a.top_p < 1) {
    double total = 0;
    for (int64_t i = 0; i < a.vocab; ++i) total += kept(i) ? weight[i] : 0;
    ranking.keep_mass(weight, a.top_p * total);
  }
  const double least = std::min(a.min_p, 1.0);
  double total = 0;
  for (int64_t i = 0; i < a.vocab; ++i) {
    if (!kept(i) || weight[i] < least) weight[i] = 0;
    total += weight[i];
  }
  const double goal = a.uniform * total;
  int32_t token = greedy;
  double reached = 0;
  for (int64_t i = 0; i < a.vocab; ++i) {
    if (weight[i] == 0) continue;
    reached += weight[i];
    token = static_cast<int32_t>(i);
    if (goal < reached) break;
  }
  return token;
}

}  // namespace

void sample(Stream& stream, const SampleArgs& a) noexcept {
  *a.token = 0;
  if (a.vocab <= 0) return;
  try {
    *a.token = draw(a);
  } catch (const std::bad_alloc&) {
    if (stream.failed == nullptr) {
      stream.failed = "sample";
      stream.failed_bytes = a.vocab * 20;
    }
  }
}

}  // namespace mamba::MAMBA_ISA
