// SPDX-License-Identifier: Apache-2.0
// Kullback-Leibler divergence of a model from a base model over a text, both run side by side.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "device/device.h"
#include "eval/log_softmax.h"
#include "eval/running_mean.h"
#include "eval/windows.h"
#include "mamba/evaluate.h"
#include "model/finite.h"
#include "model/network.h"

namespace mamba {
namespace {

constexpr const char* kWhere = "eval kl";
constexpr int64_t kLogitElements = int64_t{4} << 20;  // of one model held at a time: 16 MiB

// What one target contributes.
struct Target {
  double kl = 0, nll_base = 0, nll_model = 0;
  bool same_top = false;
};

Target compare(const float* base, const float* model, int64_t vocab, int32_t target) {
  const RowOfLogits p = summarise_logits(base, vocab), q = summarise_logits(model, vocab);
  Target out;
  for (int64_t v = 0; v < vocab; ++v) {
    const double log_p = base[v] - p.log_sum;
    out.kl += std::exp(log_p) * (log_p - (model[v] - q.log_sum));
  }
  out.kl = std::max(out.kl, 0.0);  // equal rows end a rounding below 0
  out.nll_base = p.log_sum - base[target];
  out.nll_model = q.log_sum - model[target];
  out.same_top = p.top == q.top;
  return out;
}

// A percentile of sorted values, linear between neighbours.
double percentile(const std::vector<float>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const size_t low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  const double a = sorted[low], b = sorted[high];
  return a + (b - a) * (at - static_cast<double>(low));
}

class Divergence {
 public:
  Divergence(Model& base, Model& model)
      : base_(base), model_(model), vocab_(base.config().vocab_size) {}

  void visit(const Window& window) {
    if (window.fresh) {
      base_state_ = base_.new_state(1);
      model_state_ = model_.new_state(1);
    }
    const int64_t chunk = std::clamp<int64_t>(kLogitElements / vocab_, 1, 512);
    const int64_t inputs = window.length - 1, first_scored = window.first_target - 1;
    for (int64_t at = 0; at < inputs;) {
      const bool scored = at >= first_scored;
      const int64_t end = scored ? inputs : first_scored;
      const int64_t length = std::min(chunk, end - at);
      run(window.ids + at, length, scored);
      if (scored) add(window.ids + at + 1, length);
      at += length;
    }
  }

  int64_t scored() const { return kl_.count(); }

  DivergenceResult finish() {
    DivergenceResult r;
    const double n = static_cast<double>(scored());
    r.scored = scored();
    r.kl_mean = kl_.mean(), r.kl_error = kl_.standard_error();
    std::sort(values_.begin(), values_.end());
    r.kl_min = values_.front(), r.kl_max = values_.back();
    r.kl_median = percentile(values_, 0.5);
    r.kl_90 = percentile(values_, 0.9), r.kl_95 = percentile(values_, 0.95);
    r.kl_99 = percentile(values_, 0.99), r.kl_999 = percentile(values_, 0.999);
    r.same_top = same_top_.mean(), r.same_top_error = same_top_.standard_error();
    r.nll_base = nll_base_ / n, r.nll_model = nll_model_ / n;
    r.nll_difference_error = difference_.standard_error();
    r.perplexity_base = std::exp(r.nll_base), r.perplexity_model = std::exp(r.nll_model);
    r.target_difference_rms = std::sqrt(squared_difference_ / n);
    return r;
  }

 private:
  void run(const int32_t* ids, int64_t length, bool scored) {
    const Logits want = scored ? Logits::kAll : Logits::kNone;
    const size_t count = scored ? static_cast<size_t>(length * vocab_) : 0;
    base_logits_.resize(count);
    model_logits_.resize(count);
    base_.forward(ids, length, base_state_, want, scored ? base_logits_.data() : nullptr);
    model_.forward(ids, length, model_state_, want, scored ? model_logits_.data() : nullptr);
    expect_finite(base_, base_logits_.data(), static_cast<int64_t>(count), kWhere);
    expect_finite(model_, model_logits_.data(), static_cast<int64_t>(count), kWhere);
  }

  void add(const int32_t* targets, int64_t length) {
    targets_.resize(static_cast<size_t>(length));
    const int threads = base_.network().device().threads();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < length; ++i) {
      targets_[static_cast<size_t>(i)] = compare(
          base_logits_.data() + i * vocab_, model_logits_.data() + i * vocab_, vocab_, targets[i]);
    }
    for (const Target& t : targets_) {
      kl_.add(t.kl);
      same_top_.add(t.same_top ? 1 : 0);
      difference_.add(t.nll_model - t.nll_base);
      values_.push_back(static_cast<float>(t.kl));
      nll_base_ += t.nll_base;
      nll_model_ += t.nll_model;
      const double change = std::exp(-t.nll_model) - std::exp(-t.nll_base);
      squared_difference_ += change * change;
    }
  }

  Model& base_;
  Model& model_;
  int64_t vocab_;
  State base_state_, model_state_;
  std::vector<float> base_logits_, model_logits_;  // (length, V) of the running chunk
  std::vector<Target> targets_;
  RunningMean kl_, same_top_, difference_;
  std::vector<float> values_;  // every divergence, for the percentiles
  double nll_base_ = 0, nll_model_ = 0, squared_difference_ = 0;
};

}  // namespace

DivergenceResult evaluate_divergence(Model& base, Model& model, const TokenSource& source,
                                     const PerplexityOptions& options) {
  if (base.config().vocab_size != model.config().vocab_size) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected two models of one vocabulary, got one of {} and one of {} tokens; compare "
         "models that share a tokenizer",
         kWhere, base.config().vocab_size, model.config().vocab_size);
  }
  Divergence divergence(base, model);
  const int64_t tokens = visit_windows(source, options, kWhere, [&](const Window& window) {
    divergence.visit(window);
    report_progress(options, kWhere, divergence.scored());
  });
  DivergenceResult result = divergence.finish();
  result.tokens = tokens;
  return result;
}

}  // namespace mamba
