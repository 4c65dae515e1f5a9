// SPDX-License-Identifier: Apache-2.0
// The network forward: embedding -> (r = r + h; h = op(norm(r))) per sub-layer -> norm -> head.
#include <algorithm>

#include "base/check.h"
#include "kernels/with_float.h"
#include "model/network.h"

namespace mamba {

void Network::check(const Batch& batch) const {
  if (batch.B < 0 || batch.L < 0 || (batch.L > 0 && batch.B > (int64_t{1} << 31) / batch.L)) {
    fail(ErrorCode::kInvalidArgument,
         "[forward] expected at most 2^31 tokens in a call, got {} x {}", batch.B, batch.L);
  }
  for (int64_t i = 0; i < batch.B * batch.L; ++i) {
    const bool bad_target = batch.targets != nullptr &&
                            (batch.targets[i] < -1 || batch.targets[i] >= config_.vocab_size);
    const int32_t id = bad_target ? batch.targets[i] : batch.ids[i];
    if (bad_target || id < -1 || id >= config_.vocab_size) {
      fail(ErrorCode::kInvalidArgument,
           "[forward] expected {} in 0..{} (-1: padding), got {} at row {}, position {}",
           bad_target ? "targets" : "token ids", config_.vocab_size - 1, id, i / batch.L,
           i % batch.L);
    }
  }
}

Context Network::context(const Batch& batch, bool decode) {
  Context ctx{};
  ctx.device = device_.get();
  ctx.B = batch.B;
  ctx.L = batch.L;
  ctx.product = product_;
  ctx.decode = decode;
  ctx.state_stride = state_elements_;
  const int64_t count = batch.B * batch.L;
  const bool padded = batch.ids != nullptr &&
                      std::any_of(batch.ids, batch.ids + count, [](int32_t id) { return id < 0; });
  if (padded || batch.doc_ids != nullptr) {
    documents_.assign(static_cast<size_t>(count), 0);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t document = batch.doc_ids != nullptr ? batch.doc_ids[i] : 0;
      documents_[static_cast<size_t>(i)] = batch.ids[i] < 0 ? -1 : document;
    }
  } else {
    documents_.clear();
  }
  place(batch, documents_.empty() ? nullptr : documents_.data(), &ctx);
  return ctx;
}

void Network::place(const Batch& batch, const int32_t* documents, Context* ctx) {
  const int64_t count = batch.B * batch.L, size = dtype_size(DType::kI32);
  if (!memory().on_host() && 3 * count * size > tokens_.size()) {
    tokens_ = AlignedBlock();
    tokens_ = AlignedBlock(3 * count * size, "tokens", memory());
  }
  const auto placed = [&](const int32_t* from, int64_t index) {
    if (from == nullptr || memory().on_host()) return CBuf(from);
    const Buf to = Buf(tokens_.data(), DType::kI32) + index * count;
    memory().copy_in(to.data, from, count * size);
    return CBuf(to);
  };
  ctx->ids = placed(batch.ids, 0);
  ctx->targets = placed(batch.targets, 1);
  ctx->doc_ids = placed(documents, 2);
}

void Network::norm_forward(const Context& ctx, int weight, int bias, CBuf h, CBuf residual,
                           const NormIO& io) const {
  if (config_.norm == NormKind::kLayer) {
    LayerNormArgs args{};
    args.rows = ctx.rows(), args.dim = config_.d_model, args.eps = config_.norm_eps;
    args.x = h, args.residual = residual, args.residual_out = io.r;
    args.weight = weights_[static_cast<size_t>(weight)].data;
    args.bias = weights_[static_cast<size_t>(bias)].data;
    args.y = io.y, args.mean = io.mean, args.rstd = io.rstd;
    ctx.kernels().layer_norm_forward(ctx.stream(), args);
    return;
  }
  ctx.kernels().rms_norm_forward(ctx.stream(), rms_norm(ctx, weight, h, residual, io));
}

RmsNormArgs Network::rms_norm(const Context& ctx, int weight, CBuf h, CBuf residual,
                              const NormIO& io) const {
  RmsNormArgs args{};
  args.rows = ctx.rows(), args.dim = config_.d_model, args.eps = config_.norm_eps;
  args.x = h, args.x_stride = config_.d_model;
  args.residual = residual, args.residual_out = io.r;
  args.weight = weights_[static_cast<size_t>(weight)].data;
  args.y = io.y, args.y_stride = config_.d_model, args.rstd = io.rstd;
  return args;
}

void Network::embed(const Context& ctx, Buf h) const {
  const Weight& weight = weights_[static_cast<size_t>(embedding_)];
  if (weight.packed != nullptr) {
    packed_rows(*ctx.device, weight.packed, ctx.rows(), ctx.ids, h);
    return;
  }
  EmbedArgs args{};
  args.rows = ctx.rows(), args.dim = config_.d_model, args.vocab = config_.vocab_size;
  args.ids = ctx.ids, args.weight = weight.data, args.y = h;
  ctx.kernels().embed_forward(ctx.stream(), args);
}

int64_t Network::inference_bytes(const Context& ctx) const {
  return mamba::inference_bytes(config_, layer_list_.ops, ctx);
}

int64_t Network::forward_bytes(int64_t B, int64_t L) const {
  Context ctx{};
  ctx.device = device_.get();
  ctx.product = product_;
  ctx.B = B;
  ctx.L = L;
  return inference_bytes(ctx);
}

Network::LayerMemory Network::layout_layers(const Context& ctx, Arena& arena) const {
  LayerMemory m;
  m.io = layout_norm(config_, ctx, true, arena);
  m.h = arena.alloc(ctx.activation(), ctx.rows() * config_.d_model);
  m.spare = ctx.decode ? arena.alloc(ctx.real(), ctx.rows() * config_.d_model) : m.io.r;
  return m;
}

void Network::run_layers(const Context& ctx, State* state, LayerMemory m, const Arena& rest) {
  NormIO& io = m.io;
  embed(ctx, io.r);    // as it is: h may be bf16
  CBuf before = io.r;  // what the next norm adds to the residual
  CBuf residual;       // none before the first block
  for (const SubLayer& layer : layers_) {
    std::swap(io.r, m.spare);
    const bool norm_with_product = ctx.decode && config_.norm == NormKind::kRms;
    RmsNormArgs norm{};
    if (norm_with_product) {
      norm = rms_norm(ctx, layer.norm_weight, before, residual, io);
      norm.rstd = Buf();
    } else {
      norm_forward(ctx, layer.norm_weight, layer.norm_bias, before, residual, io);
    }
    const LayerView v = view(layer, state, state, false);
    if (ctx.decode) {
      layer.op->step(ctx, v, {io.y, norm_with_product ? &norm : nullptr}, m.h, rest);
    } else {
      Arena saved = rest;
      Arena scratch = saved;
      scratch.alloc(DType::kU8, layer.op->saved_bytes(ctx));
      layer.op->forward(ctx, v, io.y, m.h, saved, scratch.rest());
    }
    before = m.h;
    residual = io.r;
  }
  std::swap(io.r, m.spare);
  norm_forward(ctx, norm_f_weight_, norm_f_bias_, before, residual, io);
}

std::vector<uint64_t> Network::replay_key(const Context& ctx, const State* state,
                                          CBuf logits) const {
  const auto at = [](const void* address) { return reinterpret_cast<uint64_t>(address); };
  return {values_id_,
          ctx.decode ? 1u : 0u,
          static_cast<uint64_t>(ctx.B),
          static_cast<uint64_t>(ctx.L),
          state != nullptr ? at(state->sequence(0)) : 0,
          at(ctx.ids.data),
          at(ctx.doc_ids.data),
          at(logits.data),
          at(workspace_.data())};
}

void Network::head(const Context& ctx, CBuf x, int64_t rows, bool decode, Buf logits) const {
  Context part = ctx;
  part.B = rows;
  part.L = 1;
  part.decode = decode;
  linear(part, x, config_.d_model, weights_[static_cast<size_t>(head_weight_)], CBuf(), logits,
         config_.vocab_size, config_.vocab_size, config_.d_model);
}

void Network::head_to_host(const Context& ctx, CBuf x, int64_t rows, bool decode, Buf logits,
                           Arena arena) const {
  if (memory().on_host()) return head(ctx, x, rows, decode, logits);
  const int64_t V = config_.vocab_size, block = std::min(head_rows(), rows);
  const Buf part = arena.alloc(ctx.real(), block * V);
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t count = std::min(block, rows - row);
    head(ctx, x + row * config_.d_model, count, decode, part);
    memory().copy_out((logits + row * V).data, part.data, count * V * dtype_size(ctx.real()));
  }
}

void Network::last_logits(const Context& ctx, const Batch& batch, CBuf x, Buf logits,
                          Arena arena) const {
  // One row at a time into place, so that a row of padding alone leaves its logits unchanged; rows
  // that follow each other go together and share the weights.
  const int64_t D = config_.d_model, V = config_.vocab_size;
  const Buf last = arena.alloc(ctx.activation(), ctx.B * D);
  int64_t from = 0, ready = 0;
  for (int64_t b = 0; b <= ctx.B; ++b) {
    int64_t t = -1;
    if (b < ctx.B) {
      t = ctx.L - 1;
      while (t >= 0 && batch.ids[b * ctx.L + t] < 0) --t;
    }
    if (t >= 0) {
      copy_rows(memory(), x + (b * ctx.L + t) * D, 0, last + (from + ready) * D, 0, 1, D);
      ++ready;
      continue;
    }
    if (ready > 0) head_to_host(ctx, last + from * D, ready, true, logits + from * V, arena);
    from = b + 1;
    ready = 0;
  }
}

void Network::all_logits(const Context& ctx, const Batch& batch, CBuf x, Buf logits,
                         Arena arena) const {
  const int64_t V = config_.vocab_size;
  for (int64_t row = 0; row < ctx.rows(); row += head_rows()) {
    const int64_t rows = std::min(head_rows(), ctx.rows() - row);
    head_to_host(ctx, x + row * config_.d_model, rows, ctx.decode, logits + row * V, arena);
  }
  for (int64_t row = 0; row < ctx.rows(); ++row) {
    if (batch.ids[row] < 0) fill_zero(host_memory(), logits + row * V, V);
  }
}

// Adds up the scored of `nll` (rows) in the order of the rows; `out` (rows), the host's, gets all.
LossSum Network::sum_losses(const Batch& batch, CBuf nll, int64_t rows, Buf out) const {
  const HostView values(memory(), nll, rows);
  copy_rows(host_memory(), values.buf(), 0, out, 0, 1, rows);
  LossSum sum;
  with_float(nll.dtype, [&]<class T>() {
    for (int64_t i = 0; i < rows; ++i) {
      if (batch.targets[i] < 0) continue;
      sum.nll += static_cast<double>(values.as<T>()[i]);
      ++sum.targets;
    }
  });
  return sum;
}

LossSum Network::losses(const Context& ctx, const Batch& batch, CBuf x, Buf nll,
                        Arena arena) const {
  const int64_t V = config_.vocab_size, block = std::min(head_rows(), ctx.rows());
  const Buf logits = arena.alloc(ctx.real(), block * V);
  const Buf each = arena.alloc(ctx.real(), ctx.rows());
  for (int64_t row = 0; row < ctx.rows(); row += block) {
    const int64_t rows = std::min(block, ctx.rows() - row);
    head(ctx, x + row * config_.d_model, rows, false, logits);
    CrossEntropyArgs args{};
    args.rows = rows, args.vocab = V, args.targets = ctx.targets + row;
    args.logits = logits, args.logits_stride = V;
    args.nll = each + row;
    ctx.kernels().cross_entropy(ctx.stream(), args);
  }
  return sum_losses(batch, each, ctx.rows(), nll);
}

LossSum Network::forward(const Batch& batch, State* state, Logits want, Buf logits, Buf nll) {
  if (state != nullptr && state->dtype() == DType::kBF16) {  // chunks are computed in f32
    State wide(state_tensors_, state_elements_, DType::kF32, state->batch(),
               device_->shared_memory());
    const int64_t count = state->batch() * state_elements_;
    const Buf narrow(state->sequence(0), DType::kBF16), f32(wide.sequence(0), DType::kF32);
    device_->kernels().cast(device_->stream(), {count, narrow, f32});
    const LossSum sum = forward(batch, &wide, want, logits, nll);
    device_->kernels().cast(device_->stream(), {count, f32, narrow});
    device_->sync();
    return sum;
  }
  check(batch);
  LossSum sum;
  if (batch.B * batch.L == 0) return sum;
  const Context ctx = context(batch, false);
  Arena arena = workspace(inference_bytes(ctx));
  const LayerMemory m = layout_layers(ctx, arena);
  const Buf x = m.io.y;
  device_->replay(replay_key(ctx, state, CBuf()), [&] { run_layers(ctx, state, m, arena.rest()); });
  if (want == Logits::kLast) last_logits(ctx, batch, x, logits, arena.rest());
  if (want == Logits::kAll) all_logits(ctx, batch, x, logits, arena.rest());
  if (batch.targets != nullptr) sum = losses(ctx, batch, x, nll, arena.rest());
  device_->sync();
  return sum;
}

void Network::enqueue_step(const int32_t* ids, State& state, Buf logits) {
  Batch batch;
  batch.B = state.batch();
  batch.L = 1;
  batch.ids = ids;
  check(batch);
  if (batch.B == 0) return;
  const Context ctx = context(batch, true);
  MAMBA_CHECK(!ctx.doc_ids);
  Arena arena = workspace(inference_bytes(ctx));
  const LayerMemory m = layout_layers(ctx, arena);
  device_->replay(replay_key(ctx, &state, logits), [&] {
    run_layers(ctx, &state, m, arena.rest());
    if (logits) head(ctx, m.io.y, ctx.B, true, logits);
  });
}

CBuf Network::step(const int32_t* ids, State& state) {
  const DType real = device_->real();
  const int64_t bytes = state.batch() * config_.vocab_size * dtype_size(real);
  if (bytes > logits_.size()) {
    logits_ = AlignedBlock();
    logits_ = AlignedBlock(bytes, "logits", memory());
  }
  const Buf logits(logits_.data(), real);
  enqueue_step(ids, state, logits);
  return logits;
}

void Network::step(const int32_t* ids, State& state, Buf logits) {
  if (memory().on_host() || !logits) {
    enqueue_step(ids, state, logits);
    device_->sync();
    return;
  }
  const CBuf from = step(ids, state);
  memory().copy_out(logits.data, from.data,
                    state.batch() * config_.vocab_size * dtype_size(from.dtype));
  device_->sync();
}

}  // namespace mamba
