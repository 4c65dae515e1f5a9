// SPDX-License-Identifier: Apache-2.0
// Counting what a Network would need. The layouts are those of network.cpp, forward.cpp and
// backward.cpp; a test holds both equal.
#include "model/size_estimate.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/check.h"
#include "device/arena.h"
#include "model/mixer.h"

namespace mamba {
namespace {

// Elements of tensors and derived values start at multiples of 64 bytes of f32.
int64_t padded(int64_t elements) { return (elements + 15) / 16 * 16; }
// Bytes that an arena takes for `elements` of f32.
int64_t arena_bytes(int64_t elements) { return 4 * padded(elements); }

class Counter {
 public:
  Counter(const Config& config, Device& device) : config_(config), device_(device) {
    ops_.push_back(make_mixer(config));
    if (config.d_intermediate > 0) ops_.push_back(make_gated_mlp(config));
  }

  SizeEstimate count(int64_t batch_size, int64_t seq_len) const {
    const int64_t layers = config_.n_layer;
    const int64_t tables = config_.tie_embeddings ? 1 : 2;
    const int64_t table = config_.vocab_size * config_.d_model;
    int64_t flat = tables * padded(table) + norm_elements(), derived = 0;
    SizeEstimate s;
    s.matrices = tables * table;
    for (const std::unique_ptr<Mixer>& op : ops_) {
      flat += layers * norm_elements();
      for (const ParamSpec& spec : op->params()) {
        flat += layers * padded(spec.count);
        if (spec.matrix) s.matrices += layers * spec.count;
      }
      derived += layers * padded(op->derived_count());
      s.state_elements += layers * op->state_count();
    }
    s.parameters = 4 * (flat + derived);
    s.prefill = forward_bytes(1, 512);
    s.training.parameters = s.parameters;
    s.training.gradients = 4 * flat;
    s.training.optimizer = 2 * s.training.gradients;
    count_activations(batch_size, seq_len, &s.training);
    return s;
  }

 private:
  Context context(int64_t B, int64_t L) const {
    Context ctx{};
    ctx.device = &device_;
    ctx.B = B;
    ctx.L = L;
    return ctx;
  }

  bool layer_norm() const { return config_.norm == NormKind::kLayer; }

  // Weight and bias of one norm.
  int64_t norm_elements() const { return (layer_norm() ? 2 : 1) * padded(config_.d_model); }

  // Input, output and statistics of one norm.
  int64_t norm_bytes(int64_t rows) const {
    return 2 * arena_bytes(rows * config_.d_model) + (layer_norm() ? 2 : 1) * arena_bytes(rows);
  }

  // Rows of logits at a time.
  int64_t head_rows(int64_t rows) const {
    constexpr int64_t kElements = 2 << 20;
    return std::min(std::clamp<int64_t>(kElements / config_.vocab_size / 64 * 64, 64, 1024), rows);
  }

  int64_t forward_bytes(int64_t B, int64_t L) const {
    const Context ctx = context(B, L);
    int64_t op_bytes = 0;
    for (const std::unique_ptr<Mixer>& op : ops_) {
      op_bytes = std::max(op_bytes, op->saved_bytes(ctx) + op->forward_bytes(ctx));
    }
    return norm_bytes(B * L) + arena_bytes(B * L * config_.d_model) +
           arena_bytes(B * config_.d_model) +
           arena_bytes(head_rows(B * L) * (config_.vocab_size + 1)) + op_bytes + 4096;
  }

  void count_activations(int64_t B, int64_t L, MemoryPlan* plan) const {
    const Context ctx = context(B, L);
    const int64_t rows = B * L;
    int64_t op_bytes = 0;
    plan->activations = norm_bytes(rows);
    for (const std::unique_ptr<Mixer>& op : ops_) {
      const int64_t saved = (op->saved_bytes(ctx) + 63) / 64 * 64;
      plan->activations += config_.n_layer * (norm_bytes(rows) + saved);
      op_bytes = std::max({op_bytes, op->forward_bytes(ctx), op->backward_bytes(ctx)});
    }
    const int64_t head =
        arena_bytes(head_rows(rows) * config_.vocab_size) + arena_bytes(head_rows(rows));
    plan->scratch = 2 * arena_bytes(rows * config_.d_model) + std::max(op_bytes, head);
  }

  const Config& config_;
  Device& device_;
  std::vector<std::unique_ptr<Mixer>> ops_;  // of one layer
};

}  // namespace

SizeEstimate estimate_sizes(const Config& config, Device& device, int64_t batch_size,
                            int64_t seq_len) {
  MAMBA_CHECK(device.real() == DType::kF32);
  config.validate();
  return Counter(config, device).count(batch_size, seq_len);
}

}  // namespace mamba
