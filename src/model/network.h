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
#include "model/parameter_table.h"
#include "model/training_layout.h"

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

// kKept: all parameters in one flat buffer, to be trained or changed. kPackedOnly, for inference:
// a matrix exists only as its kernel wants it, which needs half the memory or less.
enum class Matrices : uint8_t { kKept, kPackedOnly };

class Network {
 public:
  Network(const Config& config, std::unique_ptr<Device> device, Product product,
          Matrices matrices = Matrices::kKept);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const Config& config() const { return config_; }
  const ParamTable& table() const { return table_; }
  Device& device() const { return *device_; }
  DeviceMemory& memory() const { return device_->memory(); }
  Product product() const { return product_; }
  // What most elements of matrices are held in: the type of the products, or blocks.
  DType weight_dtype() const;

  // Throws invalid_argument unless the matrices are kept: gradients and updates need them.
  void expect_kept() const;
  // The flat buffer of parameters in memory(), f32 (f64 on ref64), table().flat_count() elements;
  // with kKept alone (expect_kept). After writing to it (HostView) call parameters_changed().
  Buf parameters();
  // Type and bytes that a tensor is held in for inference, padding of panels left out.
  DType held_type(int index) const;
  int64_t held_bytes(int index) const;
  // Overwrites one tensor with `values` (row-major, aligned; f32, bf16 or f64), which need not
  // outlive the call. After the last one call parameters_changed().
  void set_parameter(int index, CBuf values);
  // Rows first..first+count (of the first axis) of a tensor; a matrix that is packed alone comes
  // back as it was packed, rounded where that was for bf16.
  void get_rows(int index, int64_t first, int64_t count, float* out) const;
  // Recomputes derived values and, with pack_matrices, prepares matrices once for inference.
  void parameters_changed(bool pack_matrices);

  // Chooses the parameters that have no gradient, by table index; before the first gradients().
  void freeze(const std::vector<bool>& frozen);
  const TrainedLayout& trained() const { return trained_; }
  // Gradients in the layout of trained(), in memory(); allocated (zero) by the first call. With
  // kKept alone.
  Buf gradients();
  void zero_gradients();

  // Training from fresh states: adds grad_scale * d(sum of nll)/d(parameters) to gradients().
  LossSum forward_backward(const Batch& batch, double grad_scale, const StepOptions& options = {});
  // Tokens of a prompt to give to one forward: enough for full tiles of the matrix products, and on
  // a CPU its activations stay in cache for small models; a GPU has more to fill.
  int64_t prefill_chunk() const { return memory().on_host() ? 512 : 8192; }
  // Forward alone from `state` (null: fresh) to `state`. logits as in Model::forward, in real();
  // nll (B, L) in real() where targets are given; either may be null, and both are the host's.
  LossSum forward(const Batch& batch, State* state, Logits want, Buf logits, Buf nll);
  // One token a row; ids (B) in [0, V), logits (B, V) in real(), the host's, or null.
  void step(const int32_t* ids, State& state, Buf logits);
  // The same, enqueued; the logits (B, V) in memory() that it returns are valid until the next
  // call.
  CBuf step(const int32_t* ids, State& state);

  // Type of new states: f32 or bf16 (f64 on ref64 whatever is said).
  void set_state_dtype(DType dtype);
  State new_state(int64_t batch) const;
  int64_t state_elements() const { return state_elements_; }
  MemoryPlan plan_training(int64_t B, int64_t L, const StepOptions& options = {}) const;
  // Bytes of the memory of activations taken so far, and how many of them were handed out at once.
  int64_t workspace_bytes() const { return workspace_.size(); }
  int64_t workspace_peak() const { return workspace_peak_; }
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
  void build();
  void pack(size_t index, CBuf rows);
  // Brings the copies of matrices in bf16 up to date.
  void round_matrices();
  void pack_from_host(size_t index, CBuf rows);
  void unpack(size_t index);
  void add_layer(std::unique_ptr<Mixer> op, const std::string& prefix, int* next_param);
  void check(const Batch& batch) const;
  Context context(const Batch& batch, bool decode);
  // ids, targets and doc_ids where kernels of the device read them.
  void place(const Batch& batch, const int32_t* documents, Context* ctx);
  LayerView view(const SubLayer& layer, const State* in, State* out, bool with_grads) const;
  // io.r = h + residual (residual may be null), io.y = norm(io.r).
  void norm_forward(const Context&, int weight, int bias, CBuf h, CBuf residual,
                    const NormIO& io) const;
  RmsNormArgs rms_norm(const Context&, int weight, CBuf h, CBuf residual, const NormIO& io) const;
  // dr = gradient of io.r from dy and what flows past the norm (dr itself, unless first).
  void norm_backward(const Context&, int weight, int bias, const NormIO& io, CBuf dy, bool first,
                     Buf dr) const;
  void embed(const Context&, Buf h) const;
  // Bytes of run_layers' scratch for inference.
  int64_t inference_bytes(const Context&) const;
  // The input, output and residual of every block in turn. A step reads the residual at one place
  // and writes it to another, as norm_linear demands.
  struct LayerMemory {
    NormIO io;
    Buf h, spare;
  };
  LayerMemory layout_layers(const Context&, Arena& arena) const;
  // m.io.y: the normalised output (rows, D) of the last block.
  void run_layers(const Context&, State* state, LayerMemory m, const Arena& rest);
  // What Device::replay must know of a forward or a step.
  std::vector<uint64_t> replay_key(const Context&, const State* state, CBuf logits) const;
  int64_t head_rows() const { return mamba::head_rows(config_, *device_); }
  void head(const Context&, CBuf x, int64_t rows, bool decode, Buf logits) const;
  // The same, but `logits` are the host's.
  void head_to_host(const Context&, CBuf x, int64_t rows, bool decode, Buf logits,
                    Arena arena) const;
  void last_logits(const Context&, const Batch& batch, CBuf x, Buf logits, Arena arena) const;
  void all_logits(const Context&, const Batch& batch, CBuf x, Buf logits, Arena arena) const;
  LossSum sum_losses(const Batch& batch, CBuf nll, int64_t rows, Buf out) const;
  LossSum losses(const Context&, const Batch& batch, CBuf x, Buf nll, Arena arena) const;
  // dx and the losses of every row.
  void head_backward(const Context&, CBuf x, Buf dx, Buf nll, double grad_scale, Arena arena);
  // A training step and its parts, in backward.cpp. States are those of all layers and rows, null
  // for a step of one segment.
  LayerView view(const SubLayer& layer, CBuf state_in, Buf state_out, bool with_grads) const;
  Context cut_segment(const Context&, const Batch& batch, int64_t begin, int64_t end, Batch* part);
  bool starts_afresh(const Batch& batch, int64_t row, int64_t begin, int64_t end) const;
  LossSum run_segments(const Context& whole, const Batch& batch, double grad_scale);
  void end_gradient(int64_t row, int64_t B);
  void segment_forward(const Context&, CBuf state_in, Buf state_out);
  // Gradients, and the losses of every row in training_.nll; enqueued alone.
  void segment_backward(const Context&, double grad_scale, CBuf state_in, Buf dstate);
  // What Device::replay must know of a training step of one segment.
  std::vector<uint64_t> training_key(const Context&, double grad_scale) const;
  // One step with logits (B, V) in memory(), or null; enqueued, not waited for.
  void enqueue_step(const int32_t* ids, State& state, Buf logits);
  Arena workspace(int64_t bytes);

  Config config_;
  std::unique_ptr<Device> device_;
  Product product_;
  Matrices matrices_;
  ParamTable table_;
  TrainedLayout trained_;
  std::vector<SubLayer> layers_;
  LayerList layer_list_;  // the same layers, for the layout of memory
  int embedding_ = -1, norm_f_weight_ = -1, norm_f_bias_ = -1, head_weight_ = -1;
  std::shared_ptr<std::vector<StateTensor>> state_tensors_;
  int64_t state_elements_ = 0, derived_count_ = 0;
  DType state_dtype_ = DType::kF32;
  AlignedBlock params_, grads_, derived_, workspace_;
  AlignedBlock logits_;      // (B, V) of the last step that left them here
  AlignedBlock rounded_;     // params_ in bf16 for the products of training on a GPU
  AlignedBlock tokens_;      // ids, targets and documents of the running call on a GPU
  std::vector<Buf> values_;  // by table index, in params_; null where packed alone
  int64_t workspace_peak_ = 0;
  uint64_t values_id_ = 0;  // of these parameters; no other network has it, nor other values
  StepOptions step_;        // of the running training step, and where it keeps what
  TrainingLayout training_;
  std::vector<Weight> weights_;  // by table index
  std::vector<Buf> grad_views_;  // by table index; null before gradients()
  std::vector<PackedLinear*> packed_;
  // Of the running call, where it has padding or documents, and of one of its segments.
  std::vector<int32_t> documents_;
  std::vector<int32_t> part_ids_, part_targets_, part_documents_;
  mutable std::string fingerprint_;
};

// Product that a dtype of weights means; throws invalid_argument but for f32 and bf16.
Product product_of(DType dtype);

}  // namespace mamba
