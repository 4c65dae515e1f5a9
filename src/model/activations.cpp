// SPDX-License-Identifier: Apache-2.0
// Watching the inputs of matrix products.
#include "model/activations.h"

#include "base/check.h"

namespace mamba {

ActivationSums::ActivationSums(Network& network) : network_(network) {
  MAMBA_CHECK(network.device().real() == DType::kF32);
  const ParamTable& table = network.table();
  const Buf parameters = network.parameters();
  for (const ParamSpec& spec : table.specs()) {
    Sums& sums = sums_.emplace_back();
    if (!spec.matrix) continue;
    sums.squares.resize(static_cast<size_t>(spec.count / spec.shape[0]));
    index_of_[(parameters + spec.offset).data] = sums_.size() - 1;
  }
  static_cast<Kernels&>(table_) = network.device().kernels();
  table_.real = &network.device().kernels();
  table_.owner = this;
  table_.linear_forward = watch;
  network.device().set_kernels(table_);
}

ActivationSums::~ActivationSums() { network_.device().set_kernels(*table_.real); }

void ActivationSums::watch(Stream& stream, const LinearArgs& args) noexcept {
  const Device& device = *static_cast<const Device*>(stream.owner);
  const auto& table = static_cast<const Watching&>(device.kernels());
  table.owner->add(args);
  table.real->linear_forward(stream, args);
}

void ActivationSums::add(const LinearArgs& args) {
  const auto found = index_of_.find(args.weight.data);
  if (found == index_of_.end()) return;
  Sums& sums = sums_[found->second];
  if (args.M == 0) return;
  const int64_t width = static_cast<int64_t>(sums.squares.size());
  const HostView values(network_.memory(), args.x, (args.M - 1) * args.x_stride + width);
  for (int64_t m = 0; m < args.M; ++m) {
    const float* x = values.as<float>() + m * args.x_stride;
    for (size_t k = 0; k < sums.squares.size(); ++k) {
      const auto value = static_cast<double>(x[k]);
      sums.squares[k] += value * value;
    }
  }
  sums.rows += args.M;
}

}  // namespace mamba
