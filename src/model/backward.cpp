// SPDX-License-Identifier: Apache-2.0
// The training step of the network: forward that keeps what backward needs, then the same chain in
// reverse. One buffer dr carries the gradient of the residual stream from the last block to the
// first.
#include <algorithm>

#include "base/check.h"
#include "kernels/with_float.h"
#include "model/network.h"

namespace mamba {

void Network::norm_backward(const Context& ctx, int weight, int bias, const NormIO& io, CBuf dy,
                            bool first, Buf dr) const {
  const CBuf w = weights_[static_cast<size_t>(weight)].data;
  const CBuf past = first ? CBuf() : CBuf(dr);
  if (config_.norm == NormKind::kLayer) {
    LayerNormBackwardArgs args{};
    args.rows = ctx.rows(), args.dim = config_.d_model;
    args.r = io.r, args.weight = w, args.mean = io.mean, args.rstd = io.rstd;
    args.dy = dy, args.dresidual_out = past, args.dr = dr;
    args.dweight = grad_views_[static_cast<size_t>(weight)];
    args.dbias = grad_views_[static_cast<size_t>(bias)];
    ctx.kernels().layer_norm_backward(ctx.stream(), args);
    return;
  }
  RmsNormBackwardArgs args{};
  args.rows = ctx.rows(), args.dim = config_.d_model;
  args.r = io.r, args.r_stride = config_.d_model, args.weight = w, args.rstd = io.rstd;
  args.dy = dy, args.dy_stride = config_.d_model, args.dresidual_out = past;
  args.dr = dr, args.dr_stride = config_.d_model;
  args.dweight = grad_views_[static_cast<size_t>(weight)];
  ctx.kernels().rms_norm_backward(ctx.stream(), args);
}

int64_t Network::training_bytes(const Context& ctx, int64_t* scratch) const {
  const int64_t D = config_.d_model;
  Arena kept;
  int64_t op = 0;
  for (const SubLayer& layer : layers_) {
    layout_norm(ctx, kept);
    kept.alloc(DType::kU8, layer.op->saved_bytes(ctx));
    op = std::max({op, layer.op->forward_bytes(ctx), layer.op->backward_bytes(ctx)});
  }
  layout_norm(ctx, kept);
  Arena shared;
  shared.alloc(ctx.real(), ctx.rows() * D);  // h, later dx
  shared.alloc(ctx.real(), ctx.rows() * D);  // dr
  Arena head;
  head.alloc(ctx.real(), std::min(head_rows(), ctx.rows()) * config_.vocab_size);
  head.alloc(ctx.real(), std::min(head_rows(), ctx.rows()));
  *scratch = shared.used() + std::max(op, head.used());
  return kept.used();
}

MemoryPlan Network::plan_training(int64_t B, int64_t L) const {
  Context ctx{};
  ctx.device = device_.get();
  ctx.B = B;
  ctx.L = L;
  MemoryPlan plan;
  plan.parameters = (table_.flat_count() + derived_count_) * dtype_size(ctx.real());
  plan.gradients = table_.flat_count() * dtype_size(ctx.real());
  plan.optimizer = 2 * plan.gradients;
  plan.activations = training_bytes(ctx, &plan.scratch);
  return plan;
}

LossSum Network::head_backward(const Context& ctx, const Batch& batch, CBuf x, Buf dx,
                               double grad_scale, Arena arena) {
  const int64_t D = config_.d_model, V = config_.vocab_size;
  const int64_t block = std::min(head_rows(), ctx.rows());
  const Buf logits = arena.alloc(ctx.real(), block * V);
  const Buf nll = arena.alloc(ctx.real(), block);
  const Weight& weight = weights_[static_cast<size_t>(head_weight_)];
  LossSum sum;
  for (int64_t row = 0; row < ctx.rows(); row += block) {
    const int64_t rows = std::min(block, ctx.rows() - row);
    head(ctx, x + row * D, rows, false, logits);
    CrossEntropyArgs args{};
    args.rows = rows, args.vocab = V, args.targets = batch.targets + row;
    args.logits = logits, args.logits_stride = V;
    args.write_gradient = true, args.scale = grad_scale, args.nll = nll;
    ctx.kernels().cross_entropy(ctx.stream(), args);
    with_float(ctx.real(), [&]<class T>() {
      for (int64_t i = 0; i < rows; ++i) {
        sum.nll += static_cast<double>(nll.as<T>()[i]);
        sum.targets += batch.targets[row + i] >= 0;
      }
    });
    Context part = ctx;
    part.B = rows;
    part.L = 1;
    linear_backward(part, x + row * D, D, weight, logits, V, dx + row * D, D, false,
                    grad_views_[static_cast<size_t>(head_weight_)], Buf(), V, D);
  }
  return sum;
}

LossSum Network::forward_backward(const Batch& batch, double grad_scale) {
  check(batch);
  MAMBA_CHECK(batch.targets != nullptr);
  gradients();
  if (batch.B * batch.L == 0) return {};
  const Context ctx = context(batch, false);
  const int64_t D = config_.d_model;
  int64_t scratch_bytes = 0;
  const int64_t kept_bytes = training_bytes(ctx, &scratch_bytes);
  Arena arena = workspace(kept_bytes + scratch_bytes);

  std::vector<NormIO> norms;
  std::vector<Arena> saved;
  for (const SubLayer& layer : layers_) {
    norms.push_back(layout_norm(ctx, arena));
    saved.push_back(arena.rest());
    arena.alloc(DType::kU8, layer.op->saved_bytes(ctx));
  }
  norms.push_back(layout_norm(ctx, arena));
  const Buf h = arena.alloc(ctx.real(), ctx.rows() * D);
  const Buf dr = arena.alloc(ctx.real(), ctx.rows() * D);
  const Arena scratch = arena.rest();

  embed(ctx, batch, h);
  CBuf residual;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const SubLayer& layer = layers_[i];
    norm_forward(ctx, layer.norm_weight, layer.norm_bias, h, residual, norms[i]);
    residual = norms[i].r;
    layer.op->forward(ctx, view(layer, nullptr, nullptr, false), norms[i].y, h, saved[i], scratch);
  }
  const NormIO& last = norms.back();
  norm_forward(ctx, norm_f_weight_, norm_f_bias_, h, residual, last);

  const Buf dx = h;  // no longer needed as an output
  const LossSum sum = head_backward(ctx, batch, last.y, dx, grad_scale, scratch);
  norm_backward(ctx, norm_f_weight_, norm_f_bias_, last, dx, true, dr);
  for (size_t i = layers_.size(); i-- > 0;) {
    const SubLayer& layer = layers_[i];
    layer.op->backward(ctx, view(layer, nullptr, nullptr, true), norms[i].y, dr, dx, CBuf(), Buf(),
                       saved[i], scratch);
    norm_backward(ctx, layer.norm_weight, layer.norm_bias, norms[i], dx, false, dr);
  }
  EmbedBackwardArgs args{};
  args.rows = ctx.rows(), args.dim = D, args.vocab = config_.vocab_size;
  args.ids = batch.ids, args.dy = dr, args.dweight = grad_views_[static_cast<size_t>(embedding_)];
  ctx.kernels().embed_backward(ctx.stream(), args);
  device_->sync();
  return sum;
}

}  // namespace mamba
