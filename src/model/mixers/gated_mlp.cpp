// SPDX-License-Identifier: Apache-2.0
// The gated MLP of a block (SwiGLU): [y; g] = W_1 x;  out = W_2 (y * silu(g)). No state.
#include <cmath>

#include "model/mixer.h"

namespace mamba {
namespace {

class GatedMlp : public Mixer {
 public:
  explicit GatedMlp(const Config& c) : D_(c.d_model), F_(c.d_intermediate) {
    double out_scale = 1 / std::sqrt(static_cast<double>(F_));
    if (c.rescale_prenorm_residual) out_scale /= std::sqrt(static_cast<double>(c.n_layer));
    fc1_ = add_param("fc1.weight", {2 * F_, D_}, Init::kUniform, 1 / std::sqrt(double(D_)), true,
                     true);
    fc2_ = add_param("fc2.weight", {D_, F_}, Init::kUniform, out_scale, true, true);
  }

  int64_t saved_bytes(const Context& ctx) const override {
    Arena count, other;
    layout_saved(ctx, count, other);
    return count.used();
  }
  int64_t forward_bytes(const Context& ctx) const override {
    Arena other, count;
    layout_saved(ctx, other, count);
    return count.used();
  }
  int64_t backward_bytes(const Context& ctx) const override {
    Arena other, count;
    layout_saved(ctx, other, count);
    layout_backward(ctx, count);
    return count.used();
  }

  void forward(const Context& ctx, const LayerView& v, CBuf x, Buf y, Arena saved,
               Arena scratch) const override {
    const Saved s = layout_saved(ctx, saved, scratch);
    linear(ctx, x, D_, v.weights[fc1_], CBuf(), s.both, 2 * F_, 2 * F_, D_);
    gate_forward(ctx, s);
    if (y) linear(ctx, s.hidden, F_, v.weights[fc2_], CBuf(), y, D_, D_, F_);
  }

  void backward(const Context& ctx, const LayerView& v, CBuf x, CBuf dy, Buf dx, CBuf, Buf,
                Arena saved, Arena scratch) const override {
    const Saved s = layout_saved(ctx, saved, scratch);
    const Saved t = layout_backward(ctx, scratch);
    if (ctx.recompute) gate_forward(ctx, s);
    linear_backward(ctx, s.hidden, F_, v.weights[fc2_], dy, D_, t.hidden, F_, false, v.grads[fc2_],
                    Buf(), D_, F_);
    GateBackwardArgs gate{};
    gate.rows = ctx.rows(), gate.dim = F_;
    gate.a = s.both, gate.a_stride = 2 * F_;
    gate.z = s.both + F_, gate.z_stride = 2 * F_;
    gate.dy = t.hidden, gate.dy_stride = F_;
    gate.da = t.both, gate.da_stride = 2 * F_;
    gate.dz = t.both + F_, gate.dz_stride = 2 * F_;
    ctx.kernels().gate_backward(ctx.stream(), gate);
    linear_backward(ctx, x, D_, v.weights[fc1_], t.both, 2 * F_, dx, D_, false, v.grads[fc1_],
                    Buf(), 2 * F_, D_);
  }

  void step(const Context& ctx, const LayerView& v, const StepInput& x, Buf y,
            Arena scratch) const override {
    MAMBA_CHECK(!ctx.recompute);
    Arena unused;
    const Saved s = layout_saved(ctx, scratch, unused);
    linear(ctx, x, v.weights[fc1_], CBuf(), s.both, 2 * F_, 2 * F_, D_);
    gate_forward(ctx, s);
    linear(ctx, s.hidden, F_, v.weights[fc2_], CBuf(), y, D_, D_, F_);
  }

 private:
  struct Saved {
    Buf both;    // (rows, 2F) fc1: value, gate
    Buf hidden;  // (rows, F)
  };
  // `again` is where that goes which a recomputing backward does anew.
  Saved layout_saved(const Context& ctx, Arena& saved, Arena& again) const {
    Saved s;
    s.both = saved.alloc(ctx.activation(), ctx.rows() * 2 * F_);
    s.hidden = (ctx.recompute ? again : saved).alloc(ctx.activation(), ctx.rows() * F_);
    return s;
  }
  // Gradients of the same shapes.
  Saved layout_backward(const Context& ctx, Arena& arena) const {
    Saved t;
    t.both = arena.alloc(ctx.activation(), ctx.rows() * 2 * F_);
    t.hidden = arena.alloc(ctx.activation(), ctx.rows() * F_);
    return t;
  }

  void gate_forward(const Context& ctx, const Saved& s) const {
    GateArgs gate{};
    gate.rows = ctx.rows(), gate.dim = F_;
    gate.a = s.both, gate.a_stride = 2 * F_;
    gate.z = s.both + F_, gate.z_stride = 2 * F_;
    gate.y = s.hidden, gate.y_stride = F_;
    ctx.kernels().gate_forward(ctx.stream(), gate);
  }

  const int64_t D_, F_;
  int fc1_ = -1, fc2_ = -1;
};

}  // namespace

std::unique_ptr<Mixer> make_gated_mlp(const Config& config) {
  return std::make_unique<GatedMlp>(config);
}

}  // namespace mamba
