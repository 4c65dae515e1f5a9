// SPDX-License-Identifier: Apache-2.0
// The layout of a training step's memory under each policy.
#include "model/training_layout.h"

#include <algorithm>

namespace mamba {

NormIO layout_norm(const Config& config, const Context& ctx, bool with_r, Arena& arena) {
  NormIO io;
  if (with_r) io.r = arena.alloc(ctx.real(), ctx.rows() * config.d_model);
  io.y = arena.alloc(ctx.activation(), ctx.rows() * config.d_model);
  io.rstd = arena.alloc(ctx.real(), ctx.rows());
  if (config.norm == NormKind::kLayer) io.mean = arena.alloc(ctx.real(), ctx.rows());
  return io;
}

int64_t inference_bytes(const Config& config, const std::vector<const Mixer*>& ops,
                        const Context& ctx) {
  int64_t op_bytes = 0;
  for (const Mixer* op : ops) {
    op_bytes = std::max(op_bytes, op->saved_bytes(ctx) + op->forward_bytes(ctx));
  }
  Arena count;
  layout_norm(config, ctx, true, count);
  const int64_t head = std::min(head_rows(config, *ctx.device), ctx.rows());
  count.alloc(ctx.activation(), ctx.rows() * config.d_model);  // h
  count.alloc(ctx.real(), ctx.B * config.d_model);             // a step's residual
  count.alloc(ctx.activation(), ctx.B * config.d_model);       // last rows
  count.alloc(ctx.real(), head * config.vocab_size);           // logits
  count.alloc(ctx.real(), ctx.rows());                         // losses
  return count.used() + op_bytes + 4096;
}

int64_t head_rows(const Config& config, const Device& device) {
  // In whole tiles of linear: about 8 MiB of logits at a time, which caches of CPUs hold. On a GPU
  // each block of rows reads and writes the gradient of the whole head (309 MB at 50280 x 768), so
  // they are few.
  const bool host = device.memory().on_host();
  const int64_t elements = host ? int64_t{2} << 20 : int64_t{128} << 20;
  return std::clamp<int64_t>(elements / config.vocab_size / 64 * 64, 64, host ? 1024 : 2048);
}

int first_trained_layer(const Config& config, const std::vector<const Mixer*>& ops,
                        const TrainedLayout& trained) {
  if (!trained.frozen(0)) return 0;  // the embedding, before all of them
  int index = 1, layer = 0;
  for (const Mixer* op : ops) {
    const int end =
        index + (config.norm == NormKind::kLayer ? 2 : 1) + static_cast<int>(op->params().size());
    for (; index < end; ++index) {
      if (!trained.frozen(index)) return layer;
    }
    ++layer;
  }
  return layer;
}

void TrainingLayout::lay_out_segments(const LayerList& layers, const Context& ctx, int64_t segments,
                                      Arena& arena) {
  states = dstates = Buf();
  if (segments == 1) return;
  states = arena.alloc(ctx.real(), segments * ctx.B * layers.state_elements);
  dstates = arena.alloc(ctx.real(), ctx.B * layers.state_elements);
}

void TrainingLayout::lay_out(const Config& config, const LayerList& layers, const Context& ctx,
                             const StepOptions& options, Arena arena) {
  const bool block = options.recompute == Recompute::kBlock;
  const size_t count = layers.ops.size(), first = static_cast<size_t>(layers.first_trained);
  norms.assign(count + 1, NormIO());
  saved.assign(count, Arena());
  lay_out_segments(layers, ctx, options.segments, arena);
  int64_t op_bytes = 0, shared_bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    const Mixer& op = *layers.ops[i];
    op_bytes = std::max({op_bytes, op.forward_bytes(ctx), op.backward_bytes(ctx)});
    if (i < first || block) {
      shared_bytes = std::max(shared_bytes, op.saved_bytes(ctx));
      if (i >= first) norms[i].r = arena.alloc(ctx.real(), ctx.rows() * config.d_model);
      continue;
    }
    norms[i] = layout_norm(config, ctx, true, arena);
    saved[i] = arena.rest();
    arena.alloc(DType::kU8, op.saved_bytes(ctx));
  }
  norms[count] = layout_norm(config, ctx, true, arena);
  kept_bytes = arena.used();

  if (first > 0 || (block && count > 0)) {  // one room for all that is not kept
    const NormIO shared = layout_norm(config, ctx, first > 0, arena);
    const Arena room = arena.rest();
    arena.alloc(DType::kU8, shared_bytes);
    for (size_t i = 0; i < count; ++i) {
      if (i >= first && !block) break;
      const Buf own = norms[i].r;
      norms[i] = shared;
      if (i >= first) norms[i].r = own;
      saved[i] = room;
    }
  }
  h = arena.alloc(ctx.activation(), ctx.rows() * config.d_model);
  dr = arena.alloc(ctx.real(), ctx.rows() * config.d_model);
  nll = arena.alloc(ctx.real(), ctx.rows());
  scratch = arena.rest();
  Arena head;
  head.alloc(ctx.activation(),
             std::min(head_rows(config, *ctx.device), ctx.rows()) * config.vocab_size);
  arena.alloc(DType::kU8, std::max(op_bytes, head.used()));
  Context plain = ctx;
  plain.recompute = false;
  scratch_bytes = std::max(arena.used(), inference_bytes(config, layers.ops, plain)) - kept_bytes;
}

}  // namespace mamba
