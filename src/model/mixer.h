// SPDX-License-Identifier: Apache-2.0
// A variant of a block's operator: its parameters, its state, and forward, backward, step.
// One file in mixers/ implements it, one line in mixers.cpp registers it; everything else (files,
// initialisation, checkpoints, counting, generic tests) iterates over its lists.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "mamba/config.h"
#include "model/params.h"

namespace mamba {

// One tensor of the recurrent state of one sequence.
struct StateSpec {
  std::string name;            // e.g. "layers.0.conv", "layers.0.ssm"
  std::vector<int64_t> shape;  // of one sequence
  int64_t offset = 0;          // in elements from the start of a sequence's state
  int64_t count = 0;
};

// A parameter as kernels take it.
struct Weight {
  CBuf data;
  const PackedLinear* packed = nullptr;  // of matrices, where the model has packed them
  CBuf rounded = {};  // of matrices, a copy in bf16 for products, where training keeps one
};

// What every call shares. Batches are rectangles of B rows and L tokens; doc_ids (see conv1d.h)
// mark documents and padding.
struct Context {
  Device* device;
  int64_t B, L;
  Product product;    // of the matrix products
  bool decode;        // one token a row: matrix-vector kernels
  bool recompute;     // Recompute::kScan: forward keeps the products, backward does the rest anew
  CBuf ids, targets;  // (B, L) i32 in the device's memory; targets may be null
  CBuf doc_ids;       // (B, L) i32 there, or null
  int64_t state_stride;  // elements from one sequence's state to the next
  // Type of parameters, derived values, states, statistics and the residual stream.
  DType real() const { return device->real(); }
  // Type of what mixers read, keep and write beside those, and of its gradients.
  DType activation() const { return device->activation(product); }
  int64_t rows() const { return B * L; }
  Stream& stream() const { return device->stream(); }
  DeviceMemory& memory() const { return device->memory(); }
  const Kernels& kernels() const { return device->kernels(); }
};

// What a step reads: x (B, D), an activation; or, with `norm`, what that norm will make of its
// input, dense, where the norm is left to the product behind it.
struct StepInput {
  CBuf x;
  const RmsNormArgs* norm = nullptr;
};

// Views of one layer: parameters, derived values and gradients in the order of the mixer's
// add_param.
struct LayerView {
  const Weight* weights;  // indexed by what add_param returned
  const Buf* grads;       // the same index; null outside of training, and of frozen matrices
  Buf derived;            // derived_count() elements, filled by prepare
  CBuf state_in;  // of the first row, at this layer's first StateSpec; null: a fresh sequence
  Buf state_out;  // likewise; null: not wanted. May be the same memory as state_in
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // Names without the layer's prefix, e.g. "in_proj.weight"; filled by the constructor.
  const std::vector<ParamSpec>& params() const { return params_; }
  const std::vector<StateSpec>& states() const { return states_; }
  int64_t state_count() const { return state_count_; }
  // Elements of values computed from parameters once they change (such as A from A_log).
  virtual int64_t derived_count() const { return 0; }
  virtual void prepare(Device&, const LayerView&) const {}
  // Writes a fresh sequence's state (zero unless learned); dst has state_count() elements.
  virtual void initial_state(Device&, const LayerView&, Buf dst) const;
  // Adds the gradient of one fresh sequence's state to those of the parameters it was learned from.
  virtual void initial_state_backward(Device&, const LayerView&, CBuf) const {}

  // What forward keeps for backward, and the scratch of each call, in bytes for B x L tokens.
  virtual int64_t saved_bytes(const Context&) const = 0;
  virtual int64_t forward_bytes(const Context&) const = 0;
  virtual int64_t backward_bytes(const Context&) const = 0;

  // x, y and their gradients are in activation().
  // y (B, L, D) = mixer(x (B, L, D)) from state_in to state_out. With y null, only what backward
  // needs.
  virtual void forward(const Context&, const LayerView&, CBuf x, Buf y, Arena saved,
                       Arena scratch) const = 0;
  // dx (B, L, D) overwritten (it may be the memory of dy), gradients accumulated. x, saved and
  // state_in are those of forward; the gradient of the state is that of a fresh sequence unless
  // dstate_* are given: dstate_out (B, state_count()) contiguous or null (zero), dstate_in the
  // same, overwritten, or null. Both may be the same memory.
  virtual void backward(const Context&, const LayerView&, CBuf x, CBuf dy, Buf dx, CBuf dstate_out,
                        Buf dstate_in, Arena saved, Arena scratch) const = 0;
  // One token a row: y (B, D) = mixer(x), state updated in place (state_out).
  virtual void step(const Context&, const LayerView&, const StepInput& x, Buf y,
                    Arena scratch) const = 0;

 protected:
  // Both return the index by which LayerView (or the state offsets) are read.
  int add_param(std::string name, std::vector<int64_t> shape, Init init, double scale, bool decay,
                bool matrix);
  int add_state(std::string name, std::vector<int64_t> shape);
  std::vector<ParamSpec> params_;
  std::vector<StateSpec> states_;
  int64_t state_count_ = 0;
};

// The registered variants, e.g. {"mamba1", "mamba2"}.
std::vector<std::string> mixer_names();
// Throws unsupported for a name that is not registered, listing those that are.
std::unique_ptr<Mixer> make_mixer(const Config& config);
// The gated MLP of a block with d_intermediate > 0.
std::unique_ptr<Mixer> make_gated_mlp(const Config& config);

// Whether the weight is packed in blocks.
bool in_blocks(const Weight& weight);
// y = x W^T (+ bias), dense rows: the call, where the weight is not in blocks, and for any.
LinearArgs linear_args(const Context&, CBuf x, int64_t x_stride, const Weight& weight, CBuf bias,
                       Buf y, int64_t y_stride, int64_t N, int64_t K);
void linear(const Context&, CBuf x, int64_t x_stride, const Weight& weight, CBuf bias, Buf y,
            int64_t y_stride, int64_t N, int64_t K);
// The same of a step's input.
void linear(const Context&, const StepInput& x, const Weight& weight, CBuf bias, Buf y,
            int64_t y_stride, int64_t N, int64_t K);
// y (rows, K) = rows `ids` of a packed weight, zero for an id of -1.
void packed_rows(Device& device, const PackedLinear* packed, int64_t rows, CBuf ids, Buf y);
// dx = dy W (added to dx where accumulate), dW += dy^T x, dbias += column sums of dy; null dx, dW
// and dbias are not computed.
void linear_backward(const Context&, CBuf x, int64_t x_stride, const Weight& weight, CBuf dy,
                     int64_t dy_stride, Buf dx, int64_t dx_stride, bool accumulate, Buf dweight,
                     Buf dbias, int64_t N, int64_t K);
// count elements of zero; nothing where dst is null.
void fill_zero(DeviceMemory& memory, Buf dst, int64_t count);
// rows runs of count elements from one stride (0: the same run again) to another; nothing where
// either side is null.
void copy_rows(DeviceMemory& memory, CBuf from, int64_t from_stride, Buf to, int64_t to_stride,
               int64_t rows, int64_t count);

}  // namespace mamba
