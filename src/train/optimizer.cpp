// SPDX-License-Identifier: Apache-2.0
// AdamW over flat buffers, clipping, and norms by tensor.
#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/grad_norm.h"

namespace mamba {

std::vector<DecayRange> decay_ranges(const ParamTable& table, const TrainedLayout& trained) {
  std::vector<DecayRange> ranges;
  const std::vector<ParamSpec>& specs = table.specs();
  bool open = false;  // the last range goes on with the next tensor
  for (size_t i = 0; i < specs.size(); ++i) {
    const int64_t end = i + 1 < specs.size() ? specs[i + 1].offset : table.flat_count();
    if (trained.offsets[i] < 0) {
      open = false;
      continue;
    }
    if (!open || ranges.back().decay != specs[i].decay) {
      ranges.push_back({specs[i].offset, 0, trained.offsets[i], specs[i].decay});
    }
    ranges.back().count = end - ranges.back().begin;
    open = true;
  }
  return ranges;
}

AdamW::AdamW(Network& network, const AdamwOptions& options)
    : network_(network),
      options_(options),
      ranges_(decay_ranges(network.table(), network.trained())) {
  network.expect_kept();
  MAMBA_CHECK(network.device().real() == DType::kF32);
  const int64_t bytes = network.trained().count * dtype_size(DType::kF32);
  exp_avg_ = AlignedBlock(bytes, "the optimizer's first moments", network.memory());
  exp_avg_sq_ = AlignedBlock(bytes, "the optimizer's second moments", network.memory());
  sum_of_squares_ = AlignedBlock(sizeof(double), "the norm of the gradients", network.memory());
}

double AdamW::grad_norm() {
  GradNormArgs args{};
  args.count = network_.trained().count;
  args.g = network_.gradients();
  args.sum_of_squares = static_cast<double*>(sum_of_squares_.data());
  Device& device = network_.device();
  device.kernels().grad_norm(device.stream(), args);
  device.sync();
  const HostView sum(network_.memory(), CBuf(sum_of_squares_.data(), DType::kF64), 1);
  return std::sqrt(*sum.as<double>());
}

void AdamW::update(int64_t step, double learning_rate, double grad_scale) {
  const Buf parameters = network_.parameters(), gradients = network_.gradients();
  Device& device = network_.device();
  for (const DecayRange& range : ranges_) {
    AdamwArgs args{};
    args.count = range.count;
    args.lr = learning_rate;
    args.beta1 = options_.beta1;
    args.beta2 = options_.beta2;
    args.eps = options_.epsilon;
    args.weight_decay = range.decay ? options_.weight_decay : 0.0;
    args.grad_scale = grad_scale;
    args.step = step;
    args.g = gradients + range.trained;
    args.p = parameters + range.begin;
    args.m = exp_avg() + range.trained;
    args.v = exp_avg_sq() + range.trained;
    device.kernels().adamw(device.stream(), args);
  }
  device.sync();
}

double clip_scale(double norm, double max_norm) {
  return max_norm > 0 && norm > max_norm ? max_norm / (norm + 1e-6) : 1.0;
}

std::vector<std::pair<std::string, double>> tensor_norms(const ParamTable& table, const float* flat,
                                                         const TrainedLayout* trained) {
  std::vector<std::pair<std::string, double>> norms;
  for (size_t t = 0; t < table.specs().size(); ++t) {
    const ParamSpec& spec = table.specs()[t];
    const int64_t offset = trained != nullptr ? trained->offsets[t] : spec.offset;
    if (offset < 0) continue;
    double sum = 0;
    for (int64_t i = 0; i < spec.count; ++i) {
      const double value = flat[offset + i];
      sum += value * value;
    }
    norms.emplace_back(spec.name, std::sqrt(sum));
  }
  std::stable_sort(norms.begin(), norms.end(), [](const auto& a, const auto& b) {
    const bool a_finite = std::isfinite(a.second), b_finite = std::isfinite(b.second);
    return a_finite != b_finite ? b_finite : a_finite && a.second > b.second;
  });
  return norms;
}

bool all_finite(const ParamTable& table, const float* flat) {
  for (const ParamSpec& spec : table.specs()) {
    for (int64_t i = 0; i < spec.count; ++i) {
      if (!std::isfinite(flat[spec.offset + i])) return false;
    }
  }
  return true;
}

}  // namespace mamba
