// SPDX-License-Identifier: Apache-2.0
// The training step of the network: forward that keeps what backward needs, then the same chain in
// reverse. One buffer dr carries the gradient of the residual stream from the last block to the
// first.
#include <algorithm>
#include <bit>

#include "base/check.h"
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

MemoryPlan Network::plan_training(int64_t B, int64_t L, const StepOptions& options) const {
  Context ctx{};
  ctx.device = device_.get();
  ctx.product = product_;
  ctx.B = B;
  ctx.L = (L + options.segments - 1) / options.segments;
  ctx.recompute = options.recompute == Recompute::kScan;
  TrainingLayout layout;
  layout.lay_out(config_, layer_list_, ctx, options, Arena());
  const int64_t size = dtype_size(ctx.real());
  MemoryPlan plan;
  plan.parameters = (table_.flat_count() + derived_count_) * size;
  if (ctx.activation() != ctx.real()) {  // copies of matrices
    plan.parameters += table_.flat_count() * dtype_size(ctx.activation());
  }
  plan.gradients = (trained_.count + trained_.sink) * size;
  plan.optimizer = 2 * trained_.count * size;
  plan.activations = layout.kept_bytes;
  plan.scratch = layout.scratch_bytes;
  return plan;
}

void Network::head_backward(const Context& ctx, CBuf x, Buf dx, Buf nll, double grad_scale,
                            Arena arena) {
  const int64_t D = config_.d_model, V = config_.vocab_size;
  const int64_t block = std::min(head_rows(), ctx.rows());
  const Buf logits = arena.alloc(ctx.activation(), block * V);
  const Weight& weight = weights_[static_cast<size_t>(head_weight_)];
  for (int64_t row = 0; row < ctx.rows(); row += block) {
    const int64_t rows = std::min(block, ctx.rows() - row);
    head(ctx, x + row * D, rows, false, logits);
    CrossEntropyArgs args{};
    args.rows = rows, args.vocab = V, args.targets = ctx.targets + row;
    args.logits = logits, args.logits_stride = V;
    args.write_gradient = true, args.scale = grad_scale, args.nll = nll + row;
    ctx.kernels().cross_entropy(ctx.stream(), args);
    Context part = ctx;
    part.B = rows;
    part.L = 1;
    linear_backward(part, x + row * D, D, weight, logits, V, dx + row * D, D, false,
                    grad_views_[static_cast<size_t>(head_weight_)], Buf(), V, D);
  }
}

void Network::segment_forward(const Context& ctx, CBuf state_in, Buf state_out) {
  const TrainingLayout& at = training_;
  embed(ctx, at.norms.front().r);  // as it is: h may be bf16
  CBuf before = at.norms.front().r, residual;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const SubLayer& layer = layers_[i];
    norm_forward(ctx, layer.norm_weight, layer.norm_bias, before, residual, at.norms[i]);
    before = at.h;
    residual = at.norms[i].r;
    // Where only the states are wanted, nobody reads the output of the last layer.
    const Buf out = state_out && i + 1 == layers_.size() ? Buf() : at.h;
    layer.op->forward(ctx, view(layer, state_in, state_out, false), at.norms[i].y, out, at.saved[i],
                      at.scratch);
  }
  if (state_out) return;
  norm_forward(ctx, norm_f_weight_, norm_f_bias_, before, residual, at.norms.back());
}

void Network::segment_backward(const Context& ctx, double grad_scale, CBuf state_in, Buf dstate) {
  const TrainingLayout& at = training_;
  const NormIO& last = at.norms.back();
  const Buf dx = at.h;  // no longer needed as an output
  head_backward(ctx, last.y, dx, at.nll, grad_scale, at.scratch);
  norm_backward(ctx, norm_f_weight_, norm_f_bias_, last, dx, true, at.dr);
  const size_t first = static_cast<size_t>(layer_list_.first_trained);
  for (size_t i = layers_.size(); i-- > first;) {
    const SubLayer& layer = layers_[i];
    const LayerView v = view(layer, state_in, Buf(), true);
    if (step_.recompute == Recompute::kBlock) {
      NormIO again = at.norms[i];  // of the residual alone, which is there
      again.r = Buf();
      norm_forward(ctx, layer.norm_weight, layer.norm_bias, at.norms[i].r, CBuf(), again);
      layer.op->forward(ctx, v, again.y, Buf(), at.saved[i], at.scratch);
    }
    const Buf dstate_of_layer = dstate + layer.state_offset * ctx.B;
    CBuf dy = at.dr;
    if (ctx.activation() != ctx.real()) {
      ctx.kernels().cast(ctx.stream(), {ctx.rows() * config_.d_model, at.dr, dx});
      dy = dx;
    }
    layer.op->backward(ctx, v, at.norms[i].y, dy, dx, dstate_of_layer, dstate_of_layer, at.saved[i],
                       at.scratch);
    norm_backward(ctx, layer.norm_weight, layer.norm_bias, at.norms[i], dx, false, at.dr);
  }
  EmbedBackwardArgs args{};
  args.rows = ctx.rows(), args.dim = config_.d_model, args.vocab = config_.vocab_size;
  args.ids = ctx.ids, args.dy = at.dr;
  args.dweight = grad_views_[static_cast<size_t>(embedding_)];
  if (args.dweight) ctx.kernels().embed_backward(ctx.stream(), args);
}

std::vector<uint64_t> Network::training_key(const Context& ctx, double grad_scale) const {
  const auto at = [](const void* address) { return reinterpret_cast<uint64_t>(address); };
  // Updates change parameters where they lie; packed matrices are others after every change.
  const bool packed = std::any_of(packed_.begin(), packed_.end(),
                                  [](const PackedLinear* matrix) { return matrix != nullptr; });
  return {packed ? values_id_ : 0,
          static_cast<uint64_t>(ctx.B),
          static_cast<uint64_t>(ctx.L),
          static_cast<uint64_t>(step_.recompute),
          std::bit_cast<uint64_t>(grad_scale),
          at(ctx.ids.data),
          at(ctx.targets.data),
          at(ctx.doc_ids.data),
          at(params_.data()),
          at(grads_.data()),
          at(workspace_.data())};
}

// Copies tokens begin..end of every row: a batch is contiguous.
Context Network::cut_segment(const Context& ctx, const Batch& batch, int64_t begin, int64_t end,
                             Batch* part) {
  const auto copy = [&](const int32_t* from, std::vector<int32_t>* to) -> const int32_t* {
    to->clear();
    for (int64_t b = 0; b < batch.B; ++b) {
      to->insert(to->end(), from + b * batch.L + begin, from + b * batch.L + end);
    }
    return to->data();
  };
  part->B = batch.B;
  part->L = end - begin;
  part->ids = copy(batch.ids, &part_ids_);
  part->targets = copy(batch.targets, &part_targets_);
  Context cut = ctx;
  cut.L = part->L;
  cut.recompute = step_.recompute == Recompute::kScan;
  place(*part, documents_.empty() ? nullptr : copy(documents_.data(), &part_documents_), &cut);
  return cut;
}

// Whether the row's state at `begin` is that of a fresh sequence: at the start, and where another
// document begins. Kernels see changes within a segment alone.
bool Network::starts_afresh(const Batch& batch, int64_t row, int64_t begin, int64_t end) const {
  if (begin == 0) return true;
  if (documents_.empty()) return false;
  const int32_t* documents = documents_.data() + row * batch.L;
  int64_t after = begin, before = begin - 1;
  while (after < end && documents[after] < 0) ++after;
  while (before >= 0 && documents[before] < 0) --before;
  return after < end && before >= 0 && documents[after] != documents[before];
}

// First the states at the start of each segment, then the segments from the last to the first, each
// with its forward done anew: so only one of them has its activations in memory. The gradient of a
// segment's first state is that of the last state of the segment before it.
LossSum Network::run_segments(const Context& whole, const Batch& batch, double grad_scale) {
  const int64_t count = step_.segments, per_segment = batch.B * state_elements_;
  const TrainingLayout& at = training_;
  const auto begin = [&](int64_t s) { return s * batch.L / count; };
  Batch part;
  for (int64_t s = 0; s < count; ++s) {
    const Buf states = at.states + s * per_segment;
    for (int64_t row = 0; row < batch.B; ++row) {
      if (!starts_afresh(batch, row, begin(s), begin(s + 1))) continue;
      for (const SubLayer& layer : layers_) {
        layer.op->initial_state(*device_, view(layer, CBuf(), Buf(), false),
                                states + (row * state_elements_ + layer.state_offset));
      }
    }
    if (s + 1 == count) break;
    const Context ctx = cut_segment(whole, batch, begin(s), begin(s + 1), &part);
    segment_forward(ctx, states, states + per_segment);
  }
  LossSum sum;
  fill_zero(memory(), at.dstates, per_segment);
  for (int64_t s = count; s-- > 0;) {
    const CBuf states = at.states + s * per_segment;
    const Context ctx = cut_segment(whole, batch, begin(s), begin(s + 1), &part);
    segment_forward(ctx, states, Buf());
    segment_backward(ctx, grad_scale, states, at.dstates);
    const LossSum one = sum_losses(part, at.nll, ctx.rows(), Buf());
    sum.nll += one.nll;
    sum.targets += one.targets;
    for (int64_t row = 0; row < batch.B; ++row) {
      if (starts_afresh(batch, row, begin(s), begin(s + 1))) end_gradient(row, batch.B);
    }
  }
  return sum;
}

// The gradient of a fresh state goes to what it was learned from, not into the segment before.
void Network::end_gradient(int64_t row, int64_t B) {
  for (size_t i = static_cast<size_t>(layer_list_.first_trained); i < layers_.size(); ++i) {
    const SubLayer& layer = layers_[i];
    const int64_t count = layer.op->state_count();
    const Buf dstate = training_.dstates + (layer.state_offset * B + row * count);
    layer.op->initial_state_backward(*device_, view(layer, CBuf(), Buf(), true), dstate);
    fill_zero(memory(), dstate, count);
  }
}

LossSum Network::forward_backward(const Batch& batch, double grad_scale,
                                  const StepOptions& options) {
  check(batch);
  MAMBA_CHECK(batch.targets != nullptr);
  gradients();
  if (batch.B * batch.L == 0) return {};
  if (options.segments < 1 || options.segments > batch.L) {
    fail(ErrorCode::kInvalidArgument, "[train] expected 1..{} segments of {} tokens, got {}",
         batch.L, batch.L, options.segments);
  }
  step_ = options;
  const Context whole = context(batch, false);
  Context ctx = whole;
  ctx.L = (batch.L + options.segments - 1) / options.segments;
  ctx.recompute = options.recompute == Recompute::kScan;
  training_.lay_out(config_, layer_list_, ctx, options, Arena());
  const Arena arena = workspace(training_.kept_bytes + training_.scratch_bytes);
  training_.lay_out(config_, layer_list_, ctx, options, arena);
  LossSum sum;
  if (options.segments > 1) {
    sum = run_segments(whole, batch, grad_scale);
  } else {
    device_->replay(training_key(ctx, grad_scale), [&] {
      segment_forward(ctx, CBuf(), Buf());
      segment_backward(ctx, grad_scale, CBuf(), Buf());
    });
    // Read once all of the pass is enqueued: this waits for it.
    sum = sum_losses(batch, training_.nll, ctx.rows(), Buf());
  }
  device_->sync();
  return sum;
}

}  // namespace mamba
