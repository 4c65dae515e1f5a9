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

// Positions in the order of a key, largest first, ties by position; sorted as far as asked for.
class Ranking {
 public:
  explicit Ranking(const std::vector<double>& key) : key_(key), order_(key.size()) {
    for (size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<int32_t>(i);
  }

  bool before(int32_t a, int32_t b) const {
    return key_[a] > key_[b] || (key_[a] == key_[b] && a < b);
  }

  // The last of the first `count` positions.
  int32_t last_of(int64_t count) {
    select(0, count);
    return order_[count - 1];
  }

  // The last of the fewest first positions whose weights reach `mass`. Most distributions end
  // within the first hundreds, so ever larger groups are selected and sorted, not everything.
  int32_t last_of_mass(const std::vector<double>& weight, double mass) {
    const int64_t count = static_cast<int64_t>(order_.size());
    double reached = 0;
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
      end = std::min(count, begin + 256 + 3 * begin);
      select(begin, end);
      std::sort(order_.begin() + begin, order_.begin() + end,
                [this](int32_t a, int32_t b) { return before(a, b); });
      for (int64_t i = begin; i < end; ++i) {
        reached += weight[order_[i]];
        if (reached >= mass) return order_[i];
      }
    }
    return order_.back();
  }

 private:
  // Puts the first of begin.. before position end.
  void select(int64_t begin, int64_t end) {
    if (end >= static_cast<int64_t>(order_.size())) return;
    std::nth_element(order_.begin() + begin, order_.begin() + end - 1, order_.end(),
                     [this](int32_t a, int32_t b) { return before(a, b); });
  }

  const std::vector<double>& key_;
  std::vector<int32_t> order_;
};

// The f32 nearest to x + bias, as the logits are f32; those of the f64 reference keep its bits.
double biased(const SampleRow& a, double x, double bias) {
  return a.logits.dtype == DType::kF64 ? x + bias : double{static_cast<float>(x + bias)};
}

// The kept tokens on their way through the steps, in the order of their index.
class Chain {
 public:
  explicit Chain(const SampleRow& args)
      : a_(args), x_(static_cast<size_t>(args.vocab)), id_(x_.size()) {
    with_float(a_.logits.dtype, [&]<class T>() {
      for (int64_t i = 0; i < a_.vocab; ++i) {
        const double logit = a_.logits.as<T>()[i];
        finite_ = finite_ && std::isfinite(logit);
        x_[i] = std::isnan(logit) ? -kInfinity : logit;
        id_[i] = static_cast<int32_t>(i);
      }
    });
  }

  bool finite() const { return finite_; }
  void add_biases() {
    for (int64_t i = 0; i < a_.biased_count; ++i) {
      double& x = x_[static_cast<size_t>(a_.biased[i])];
      x = biased(a_, x, a_.bias[i]);
      if (std::isnan(x)) x = -kInfinity;
    }
  }
  bool any_left() const { return largest() > -kInfinity; }

  void apply(SampleStep step) {
    switch (step) {
      case SampleStep::kPenalties:
        return penalise();
      case SampleStep::kTopK:
        if (a_.top_k > 0 && a_.top_k < count()) {
          Ranking ranking(x_);
          keep_to(ranking, ranking.last_of(a_.top_k));
        }
        return;
      case SampleStep::kTypicalP:
        if (a_.typical_p < 1) keep_typical();
        return;
      case SampleStep::kTopP:
        if (a_.top_p < 1) {
          const double total = weigh();
          Ranking ranking(x_);
          keep_to(ranking, ranking.last_of_mass(weight_, a_.top_p * total));
        }
        return;
      case SampleStep::kMinP:
        if (a_.min_p > 0) {
          weigh();
          const double least = std::min(a_.min_p, 1.0);
          keep([&](int64_t i) { return weight_[i] >= least; });
        }
        return;
      case SampleStep::kTemperature:
        return divide();
    }
  }

  int32_t greedy() const { return id_[std::max_element(x_.begin(), x_.end()) - x_.begin()]; }

  int32_t draw() {
    const double goal = a_.uniform * weigh();
    int32_t token = greedy();
    double reached = 0;
    for (int64_t i = 0; i < count(); ++i) {
      if (weight_[i] == 0) continue;
      reached += weight_[i];
      token = id_[i];
      if (goal < reached) break;
    }
    return token;
  }

 private:
  int64_t count() const { return static_cast<int64_t>(x_.size()); }
  double largest() const { return *std::max_element(x_.begin(), x_.end()); }
  // x - largest; equal logits are equal even when infinite.
  static double below(double x, double largest) { return x == largest ? 0 : x - largest; }

  void penalise() {
    if (a_.repeat == 1 && a_.presence == 0 && a_.frequency == 0) return;
    for (int64_t s = 0; s < a_.seen_count; ++s) {
      const int32_t id = a_.seen[s];
      const auto at = count() == a_.vocab ? id_.begin() + std::min<int64_t>(id, a_.vocab)
                                          : std::lower_bound(id_.begin(), id_.end(), id);
      if (at == id_.end() || *at != id) continue;
      double& x = x_[at - id_.begin()];
      x = x > 0 ? x / a_.repeat : x * a_.repeat;
      x -= a_.presence + a_.seen_times[s] * a_.frequency;
    }
  }

  // weight_ = p relative to the largest; returns the sum.
  double weigh() {
    const double top = largest();
    weight_.resize(x_.size());
    double total = 0;
    for (size_t i = 0; i < x_.size(); ++i) total += weight_[i] = std::exp(below(x_[i], top));
    return total;
  }

  // -ln p_i = ln(total) - below_i, so |-ln p_i - H| = |below_i - mean of below|.
  void keep_typical() {
    const double total = weigh(), top = largest();
    double mean = 0;
    for (size_t i = 0; i < x_.size(); ++i) {
      if (weight_[i] > 0) mean += weight_[i] / total * below(x_[i], top);
    }
    std::vector<double> nearness(x_.size());
    for (size_t i = 0; i < x_.size(); ++i) nearness[i] = -std::fabs(below(x_[i], top) - mean);
    Ranking ranking(nearness);
    keep_to(ranking, ranking.last_of_mass(weight_, a_.typical_p * total));
  }

  // A temperature so small that the quotient overflows: the distances to the largest do not.
  void divide() {
    const double top = largest();
    const bool overflows = std::isfinite(top) && !std::isfinite(top / a_.temperature);
    for (double& x : x_) x = (overflows ? x - top : x) / a_.temperature;
  }

  void keep_to(const Ranking& ranking, int32_t last) {
    keep([&](int64_t i) { return !ranking.before(last, static_cast<int32_t>(i)); });
  }

  // The ranking's key may be x_, so the marks are taken before anything moves.
  template <class Keeps>
  void keep(Keeps&& keeps) {
    std::vector<bool> kept(x_.size());
    for (int64_t i = 0; i < count(); ++i) kept[i] = keeps(i);
    size_t n = 0;
    for (size_t i = 0; i < kept.size(); ++i) {
      if (!kept[i]) continue;
      x_[n] = x_[i];
      id_[n++] = id_[i];
    }
    x_.resize(n);
    id_.resize(n);
  }

  const SampleRow& a_;
  std::vector<double> x_, weight_;
  std::vector<int32_t> id_;
  bool finite_ = true;
};

// The smallest index among the largest, from the logits as they are.
int32_t first_largest(const SampleRow& a) {
  int64_t first = 0;
  bool finite = true;
  with_float(a.logits.dtype, [&]<class T>() {
    const T* x = a.logits.as<T>();
    T most = -std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < a.vocab; ++i) {
      if (a.check_finite) finite = finite && std::isfinite(x[i]);
      if (x[i] > most) most = x[i], first = i;
    }
  });
  return finite ? static_cast<int32_t>(first) : kNotFinite;
}

int32_t choose(const SampleRow& a) {
  if (!(a.temperature > 0) && a.seen_count == 0 && a.biased_count == 0) return first_largest(a);
  Chain chain(a);
  if (a.check_finite && !chain.finite()) return kNotFinite;
  chain.add_biases();
  if (a.biased_count > 0 && !chain.any_left()) return kNoToken;
  const bool greedy = !(a.temperature > 0);
  for (int64_t i = 0; i < a.step_count; ++i) {
    if (!greedy || a.steps[i] == SampleStep::kPenalties) chain.apply(a.steps[i]);
  }
  return greedy ? chain.greedy() : chain.draw();
}

}  // namespace

void sample(Stream& stream, const SampleArgs& args) noexcept {
  for (int64_t r = 0; r < args.count; ++r) {
    const SampleRow& a = args.rows[r];
    *a.token = 0;
    if (a.vocab <= 0) continue;
    try {
      *a.token = choose(a);
    } catch (const std::bad_alloc&) {
      if (stream.failed == nullptr) {
        stream.failed = "sample";
        stream.failed_bytes = a.vocab * 32;
      }
    }
  }
}

}  // namespace mamba::MAMBA_ISA
