// SPDX-License-Identifier: Apache-2.0
// Counting what a Network would need, by the layouts that it uses.
#include "model/size_estimate.h"

#include <memory>
#include <vector>

#include "base/check.h"
#include "device/arena.h"
#include "model/mixer.h"
#include "model/parameter_table.h"

namespace mamba {
namespace {

// Elements of derived values start at multiples of 64 bytes of f32.
int64_t padded(int64_t elements) { return (elements + 15) / 16 * 16; }

}  // namespace

SizeEstimate estimate_sizes(const Config& config, Device& device, Product product,
                            int64_t batch_size, int64_t seq_len, const StepOptions& options,
                            const std::vector<std::string>& freeze) {
  MAMBA_CHECK(device.real() == DType::kF32);
  config.validate();
  const ParamTable table = parameter_table(config);
  const TrainedLayout trained = layout_trained(table, frozen_by(table, freeze));
  const std::unique_ptr<Mixer> mixer = make_mixer(config);
  const std::unique_ptr<Mixer> mlp = config.d_intermediate > 0 ? make_gated_mlp(config) : nullptr;
  SizeEstimate s;
  LayerList layers;
  int64_t derived = 0;
  for (int64_t i = 0; i < config.n_layer; ++i) {
    for (const Mixer* op : {mixer.get(), mlp.get()}) {
      if (op == nullptr) continue;
      layers.ops.push_back(op);
      layers.state_elements += op->state_count();
      derived += padded(op->derived_count());
    }
  }
  layers.first_trained = first_trained_layer(config, layers.ops, trained);
  int64_t padded_matrices = 0;
  for (const ParamSpec& spec : table.specs()) {
    if (!spec.matrix) continue;
    s.matrices += spec.count;
    padded_matrices += padded(spec.count);
  }
  s.state_elements = layers.state_elements;
  s.parameters = 4 * (table.flat_count() + derived);
  s.other = s.parameters - 4 * padded_matrices;
  Context ctx{};
  ctx.device = &device;
  ctx.product = product;
  ctx.B = 1, ctx.L = 512;
  s.prefill = inference_bytes(config, layers.ops, ctx);
  ctx.B = batch_size;
  ctx.L = (seq_len + options.segments - 1) / options.segments;
  ctx.recompute = options.recompute == Recompute::kScan;
  TrainingLayout layout;
  layout.lay_out(config, layers, ctx, options, Arena());
  s.training.parameters = s.parameters;
  if (ctx.activation() != ctx.real()) {  // copies of matrices
    s.training.parameters += table.flat_count() * dtype_size(ctx.activation());
  }
  s.training.gradients = 4 * (trained.count + trained.sink);
  s.training.optimizer = 8 * trained.count;
  s.training.activations = layout.kept_bytes;
  s.training.scratch = layout.scratch_bytes;
  return s;
}

}  // namespace mamba
