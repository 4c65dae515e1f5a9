// SPDX-License-Identifier: Apache-2.0
// The network on a device: embedding -> blocks -> norm -> head, forward, step and backward over
// flat buffers of parameters and gradients. Model (public) and the trainer are thin layers over it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "mamba/model.h"
#include "mamba/state.h"
#include "model/mixer.h"
#include "model/params.h"

namespace mamba {

// A rectangle of B x L tokens. ids and targets (B, L): -1 is padding, or a target that is not
// scored. doc_ids (B, L) or null: a change of id between two tokens starts a fresh sequence there.
struct Batch {
  int64_t B = 0, L = 0;
  const int32_t* ids = nullptr;
  const int32_t* targets = nullptr;
  const int32_t* doc_ids = nullptr;
};

struct LossSum {
  double nll = 0;       // nats, summed over scored targets
  int64_t targets = 0;  // how many
};

// Bytes of one training step, planned by the code that will use them.
struct MemoryPlan {
  int64_t parameters = 0, gradients = 0, optimizer = 0, activations = 0, scratch = 0;
  int64_t total() const { return parameters + gradients + optimizer + activations + scratch; }
};

class Network {
 public:
  Network(const Config& config, std::unique_ptr<Device> device, Product product);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const Config& config() const { return config_; }
  const ParamTable& table() const { return table_; }
  Device& device() const { return *device_; }
  Product product() const { return product_; }

  // The flat buffer of parameters, f32 (f64 on ref64), table().flat_count() elements. After writing
  // to it call parameters_changed().
  Buf parameters() { return Buf(params_.data(), device_->real()); }
  CBuf parameters() const { return CBuf(params_.data(), device_->real()); }
  // Recomputes derived values and, with pack, prepares matrices once for inference.
  void parameters_changed(bool pack);

  // Gradients of the same layout; allocated (zero) by the first call.
  Buf gradients();
  void zero_gradients();

  // Training from fresh states: adds grad_scale * d(sum of nll)/d(parameters) to gradients().
  LossSum forward_backward(const Batch& batch, double grad_scale);
  // Forward alone from `state` (null: fresh) to `state`. logits as in Model::forward, in real();
  // nll (B, L) in real() where targets are given; either may be null.
  LossSum forward(const Batch& batch, State* state, Logits want, Buf logits, Buf nll);
  // One token a row; ids (B) in [0, V), logits (B, V) in real().
  void step(const int32_t* ids, State& state, Buf logits);

  State new_state(int64_t batch) const;
  int64_t state_elements() const { return state_elements_; }
  MemoryPlan plan_training(int64_t B, int64_t L) const;
  // Bytes of a forward of B x L tokens beside parameters and states.
  int64_t forward_bytes(int64_t B, int64_t L) const;
  // 16 hex digits over configuration, product and parameters; computed once after they change.
  const std::string& fingerprint() const;

 private:
  // One residual sub-layer: r = r + h; h = op(norm(r)).
  struct SubLayer {
    std::unique_ptr<Mixer> op;
    int norm_weight = -1, norm_bias = -1;  // indices into the table; bias -1 for RMSNorm
    int first_param = 0;                   // of op, in the table
    int64_t state_offset = 0;              // of op's first state in a sequence's state
    int64_t derived_offset = 0;            // in elements
  };
  // Input and statistics of one norm: what its backward reads.
  struct NormIO {
    Buf r;           // (rows, D) residual after the addition
    Buf y;           // (rows, D) normalised
    Buf mean, rstd;  // (rows); mean for LayerNorm alone
  };

  void build();
  void add_layer(std::unique_ptr<Mixer> op, const std::string& prefix, const std::string& norm_name,
                 const std::string& op_name);
  int add_norm(const std::string& name, int* bias);
  void check(const Batch& batch) const;
  Context context(const Batch& batch, bool decode);
  LayerView view(const SubLayer& layer, const State* in, State* out, bool with_grads) const;
  NormIO layout_norm(const Context&, Arena& arena) const;
  // io.r = h + residual (residual may be null), io.y = norm(io.r).
  void norm_forward(const Context&, int weight, int bias, CBuf h, CBuf residual,
                    const NormIO& io) const;
  // dr = gradient of io.r from dy and what flows past the norm (dr itself, unless first).
  void norm_backward(const Context&, int weight, int bias, const NormIO& io, CBuf dy, bool first,
                     Buf dr) const;
  void embed(const Context&, const Batch& batch, Buf h) const;
  // Bytes of run_layers' scratch for inference.
  int64_t inference_bytes(const Context&) const;
  int64_t training_bytes(const Context&, int64_t* scratch) const;
  // The normalised output (rows, D) of the last block.
  Buf run_layers(const Context&, const Batch& batch, State* state, Arena& arena);
  int64_t head_rows() const;
  void head(const Context&, CBuf x, int64_t rows, bool decode, Buf logits) const;
  void last_logits(const Context&, const Batch& batch, CBuf x, Buf logits, Arena arena) const;
  void all_logits(const Context&, const Batch& batch, CBuf x, Buf logits) const;
  LossSum losses(const Context&, const Batch& batch, CBuf x, Buf nll, Arena arena) const;
  LossSum head_backward(const Context&, const Batch& batch, CBuf x, Buf dx, double grad_scale,
                        Arena arena);
  Arena workspace(int64_t bytes);

  Config config_;
  std::unique_ptr<Device> device_;
  Product product_;
  ParamTable table_;
  std::vector<SubLayer> layers_;
  int embedding_ = -1, norm_f_weight_ = -1, norm_f_bias_ = -1, head_weight_ = -1;
  std::shared_ptr<std::vector<StateTensor>> state_tensors_;
  int64_t state_elements_ = 0, derived_count_ = 0;
  AlignedBlock params_, grads_, derived_, workspace_;
  std::vector<Weight> weights_;  // by table index
  std::vector<Buf> grad_views_;  // by table index; null before gradients()
  std::vector<PackedLinear*> packed_;
  std::vector<int32_t> documents_;  // of the running call, where it has padding or documents
  mutable std::string fingerprint_;
};

// Product that a dtype of weights means; throws invalid_argument but for f32 and bf16.
Product product_of(DType dtype);

}  // namespace mamba
