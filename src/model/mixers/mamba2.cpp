// SPDX-License-Identifier: Apache-2.0
// Mamba-2 (Dao & Gu 2024).
//   [z0; x0; z; xBC; dt] = W_in u;  [x; B; C] = silu(conv(xBC));  y = ssd(x, dt, A, B, C, D);
//   y = gated_norm(y, z) or y * silu(z);  out = W_out [silu(z0) * x0; y].
// z0 and x0 exist where d_ssm < d_inner: a gated MLP beside the state space part.
#include <cmath>

#include "model/mixers/all.h"

namespace mamba {
namespace {

class Mamba2 : public Mixer {
 public:
  explicit Mamba2(const Config& c)
      : c_(c),
        D_(c.d_model),
        E_(c.d_inner),
        S_(c.d_ssm),
        M_(c.d_inner - c.d_ssm),
        N_(c.d_state),
        K_(c.d_conv),
        H_(c.n_heads()),
        P_(c.headdim),
        G_(c.n_groups),
        C_(S_ + 2 * G_ * N_),
        W_(2 * E_ + 2 * G_ * N_ + H_) {
    const double in_scale = 1 / std::sqrt(static_cast<double>(D_));
    const double conv_scale =
        c.conv_init > 0 ? c.conv_init : 1 / std::sqrt(static_cast<double>(K_));
    double out_scale = 1 / std::sqrt(static_cast<double>(E_));
    if (c.rescale_prenorm_residual) out_scale /= std::sqrt(static_cast<double>(c.n_layer));
    in_w_ = add_param("in_proj.weight", {W_, D_}, Init::kUniform, in_scale, true, true);
    if (c.use_bias) in_b_ = add_param("in_proj.bias", {W_}, Init::kZero, 0, false, false);
    conv_w_ = add_param("conv1d.weight", {C_, 1, K_}, Init::kUniform, conv_scale, true, false);
    if (c.conv_bias) {
      conv_b_ =
          add_param("conv1d.bias", {C_}, Init::kUniform, 1 / std::sqrt(double(K_)), false, false);
    }
    if (c.learnable_init_states) {
      init_ = add_param("init_states", {H_, P_, N_}, Init::kZero, 0, false, false);
    }
    dt_b_ = add_param("dt_bias", {H_}, Init::kDtBias, 0, false, false);
    A_log_ = add_param("A_log", {H_}, Init::kLogUniform, 0, false, false);
    D_param_ = add_param("D", {c.D_has_hdim ? S_ : H_}, Init::kOne, 0, false, false);
    if (c.gated_norm) norm_w_ = add_param("norm.weight", {S_}, Init::kOne, 0, false, false);
    out_w_ = add_param("out_proj.weight", {D_, E_}, Init::kUniform, out_scale, true, true);
    if (c.use_bias) out_b_ = add_param("out_proj.bias", {D_}, Init::kZero, 0, false, false);
    add_state("conv", {K_ - 1, C_});
    ssm_ = states_[static_cast<size_t>(add_state("ssm", {H_, P_, N_}))].offset;
  }

  // A (H) = -exp(A_log), and the taps (K, C) of the convolution.
  int64_t derived_count() const override { return H_ + K_ * C_; }
  void prepare(Device& device, const LayerView& v) const override {
    const CBuf A_log = v.weights[A_log_].data, taps = v.weights[conv_w_].data;
    device.kernels().decay_forward(device.stream(), {H_, 1, A_log, v.derived});
    device.kernels().transpose(device.stream(), {C_, K_, taps, v.derived + H_});
  }
  void initial_state(Device& device, const LayerView& v, Buf dst) const override {
    DeviceMemory& memory = device.memory();
    fill_zero(memory, dst, state_count_);
    if (init_ >= 0) copy_rows(memory, v.weights[init_].data, 0, dst + ssm_, 0, 1, H_ * P_ * N_);
  }

  void initial_state_backward(Device& device, const LayerView& v, CBuf dstate) const override {
    if (init_ < 0) return;
    const int64_t count = H_ * P_ * N_;
    device.kernels().column_sum(device.stream(), {1, count, dstate + ssm_, count, v.grads[init_]});
  }

  int64_t saved_bytes(const Context& ctx) const override {
    Arena count, other;
    layout_saved(ctx, count, other);
    return count.used();
  }
  int64_t forward_bytes(const Context& ctx) const override {
    Arena other, count;
    fresh_state(ctx, count);
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
    const Buf start = fresh_state(ctx, scratch);
    const Saved s = layout_saved(ctx, saved, scratch);
    linear(ctx, x, D_, v.weights[in_w_], bias(v, in_b_), s.zx, W_, W_, D_);
    mix(ctx, v, s, start);
    gates_forward(ctx, v, s);
    if (y) linear(ctx, s.cat, E_, v.weights[out_w_], bias(v, out_b_), y, D_, D_, E_);
  }

  void backward(const Context& ctx, const LayerView& v, CBuf x, CBuf dy, Buf dx, CBuf dstate_out,
                Buf dstate_in, Arena saved, Arena scratch) const override {
    const Saved s = layout_saved(ctx, saved, scratch);
    const Scratch t = layout_backward(ctx, scratch);
    if (ctx.recompute) {
      mix(ctx, v, s, t.S0);
      gates_forward(ctx, v, s);
    }
    linear_backward(ctx, s.cat, E_, v.weights[out_w_], dy, D_, t.dcat, E_, false, v.grads[out_w_],
                    grad(v, out_b_), D_, E_);
    gates_backward(ctx, v, s, t);
    const int64_t conv_count = (K_ - 1) * C_, ssm_count = H_ * P_ * N_;
    copy_rows(ctx.memory(), dstate_out, state_count_, t.dconv_out, conv_count, ctx.B, conv_count);
    copy_rows(ctx.memory(), dstate_out + ssm_, state_count_, t.dS_out, ssm_count, ctx.B, ssm_count);
    ssd_backward(ctx, v, s, t, bool(dstate_out), bool(dstate_in));
    Conv1dBackwardArgs conv{};
    conv.B = ctx.B, conv.L = ctx.L, conv.C = C_, conv.K = K_, conv.silu = c_.conv_silu;
    conv.x = s.zx + at_conv(), conv.x_stride = W_;
    conv.weight = v.weights[conv_w_].data, conv.bias = bias(v, conv_b_);
    conv.state_in = v.state_in, conv.state_stride = ctx.state_stride, conv.doc_ids = ctx.doc_ids;
    conv.dy = t.dxBC, conv.dy_stride = C_;
    conv.dstate_out = dstate_out ? CBuf(t.dconv_out) : CBuf();
    conv.dx = t.dzx + at_conv(), conv.dx_stride = W_;
    conv.dweight = v.grads[conv_w_], conv.dbias = grad(v, conv_b_);
    conv.dstate_in = dstate_in ? t.dconv_in : Buf();
    ctx.kernels().conv1d_backward(ctx.stream(), conv);
    copy_rows(ctx.memory(), t.dconv_in, conv_count, dstate_in, state_count_, ctx.B, conv_count);
    copy_rows(ctx.memory(), t.dS_in, ssm_count, dstate_in + ssm_, state_count_, ctx.B, ssm_count);
    linear_backward(ctx, x, D_, v.weights[in_w_], t.dzx, W_, dx, D_, false, v.grads[in_w_],
                    grad(v, in_b_), W_, D_);
  }

  void step(const Context& ctx, const LayerView& v, const StepInput& x, Buf y,
            Arena scratch) const override {
    const Saved s = layout_saved(ctx, scratch, scratch);
    linear(ctx, x, v.weights[in_w_], bias(v, in_b_), s.zx, W_, W_, D_);
    Mamba2StepArgs a{};
    a.B = ctx.B, a.H = H_, a.P = P_, a.N = N_, a.G = G_, a.K = K_, a.M = M_;
    a.conv_silu = c_.conv_silu, a.dt_min = c_.dt_limit_min, a.dt_max = c_.dt_limit_max;
    a.zx = s.zx, a.zx_stride = W_;
    a.conv_weight = v.weights[conv_w_].data, a.conv_taps = v.derived + H_;
    a.conv_bias = bias(v, conv_b_);
    a.dt_bias = v.weights[dt_b_].data, a.A = v.derived;
    a.D = v.weights[D_param_].data, a.D_has_hdim = c_.D_has_hdim;
    a.gated_norm = c_.gated_norm, a.norm_before_gate = c_.norm_before_gate;
    a.norm_groups = c_.norm_groups, a.norm_eps = c_.norm_eps, a.norm_weight = bias(v, norm_w_);
    a.conv_state = v.state_out, a.ssm_state = v.state_out + ssm_;
    a.state_stride = ctx.state_stride;
    a.conv_xbc = s.xBC, a.y = s.y;
    a.out = s.cat, a.out_stride = E_;
    if (in_blocks(v.weights[out_w_])) {
      ctx.kernels().mamba2_step(ctx.stream(), a);
      linear(ctx, s.cat, E_, v.weights[out_w_], bias(v, out_b_), y, D_, D_, E_);
      return;
    }
    a.product = linear_args(ctx, s.cat, E_, v.weights[out_w_], bias(v, out_b_), y, D_, D_, E_);
    ctx.kernels().mamba2_step(ctx.stream(), a);
  }

 private:
  struct Saved {
    Buf zx;    // (rows, W) in_proj: z0 (M), x0 (M), z (S), x (S), B (GN), C (GN), dt (H)
    Buf xBC;   // (rows, S + 2GN) conv
    Buf y;     // (rows, S) ssd
    Buf cat;   // (rows, E) what out_proj reads: gated MLP (M), normed y (S)
    Buf rstd;  // (rows, norm_groups)
  };
  struct Scratch {
    Buf dcat;                 // (rows, E)
    Buf dzx;                  // (rows, W)
    Buf dxBC;                 // (rows, S + 2GN)
    Buf dA;                   // (H)
    Buf S0;                   // (B, H, P, N) learned start of each row
    Buf dS_in, dS_out;        // (B, H, P, N)
    Buf dconv_in, dconv_out;  // (B, K-1, S + 2GN)
  };

  int64_t at_conv() const { return 2 * M_ + S_; }
  int64_t at_dt() const { return 2 * M_ + S_ + C_; }

  // `again` is where that goes which a recomputing backward does anew.
  Saved layout_saved(const Context& ctx, Arena& saved, Arena& again) const {
    const DType real = ctx.real(), act = ctx.activation();
    const int64_t rows = ctx.rows();
    Arena& rest = ctx.recompute ? again : saved;
    Saved s;
    s.zx = saved.alloc(act, rows * W_);
    s.xBC = rest.alloc(act, rows * C_);
    s.y = rest.alloc(act, rows * S_);
    s.cat = rest.alloc(act, rows * E_);
    s.rstd = rest.alloc(real, rows * c_.norm_groups);
    return s;
  }
  Scratch layout_backward(const Context& ctx, Arena& arena) const {
    const DType real = ctx.real(), act = ctx.activation();
    const int64_t rows = ctx.rows();
    Scratch t;
    t.S0 = fresh_state(ctx, arena);
    t.dcat = arena.alloc(act, rows * E_);
    t.dzx = arena.alloc(act, rows * W_);
    t.dxBC = arena.alloc(act, rows * C_);
    t.dA = arena.alloc(real, H_);
    t.dS_in = arena.alloc(real, ctx.B * H_ * P_ * N_);
    t.dS_out = arena.alloc(real, ctx.B * H_ * P_ * N_);
    t.dconv_in = arena.alloc(real, ctx.B * (K_ - 1) * C_);
    t.dconv_out = arena.alloc(real, ctx.B * (K_ - 1) * C_);
    return t;
  }

  CBuf bias(const LayerView& v, int index) const {
    return index >= 0 ? v.weights[index].data : CBuf();
  }
  Buf grad(const LayerView& v, int index) const { return index >= 0 ? v.grads[index] : Buf(); }

  // Room for the learned start of every row of a fresh batch.
  Buf fresh_state(const Context& ctx, Arena& arena) const {
    return arena.alloc(ctx.real(), init_ >= 0 ? ctx.B * H_ * P_ * N_ : 0);
  }
  // Where the ssd starts: the state given, or a fresh one (zero, or learned: then in `room`).
  CBuf first_state(const Context& ctx, const LayerView& v, Buf room, int64_t* stride) const {
    *stride = ctx.state_stride;
    if (v.state_in || init_ < 0) return v.state_in + ssm_;
    // state_out, where wanted, has the caller's stride: a fresh learned start is only for training.
    MAMBA_CHECK(!v.state_out);
    *stride = H_ * P_ * N_;
    copy_rows(ctx.memory(), v.weights[init_].data, 0, room, *stride, ctx.B, *stride);
    return room;
  }

  // Convolution and ssd; `room` is that of fresh_state.
  void mix(const Context& ctx, const LayerView& v, const Saved& s, Buf room) const {
    Conv1dArgs conv{};
    conv.B = ctx.B, conv.L = ctx.L, conv.C = C_, conv.K = K_, conv.silu = c_.conv_silu;
    conv.x = s.zx + at_conv(), conv.x_stride = W_;
    conv.weight = v.weights[conv_w_].data, conv.bias = bias(v, conv_b_);
    conv.state_in = v.state_in, conv.state_out = v.state_out, conv.state_stride = ctx.state_stride;
    conv.doc_ids = ctx.doc_ids;
    conv.y = s.xBC, conv.y_stride = C_;
    ctx.kernels().conv1d_forward(ctx.stream(), conv);

    SsdArgs ssd{};
    ssd.B = ctx.B, ssd.L = ctx.L, ssd.H = H_, ssd.P = P_, ssd.N = N_, ssd.G = G_;
    ssd.chunk = c_.chunk_size, ssd.dt_min = c_.dt_limit_min, ssd.dt_max = c_.dt_limit_max;
    ssd.x = s.xBC, ssd.x_stride = C_;
    ssd.dt = s.zx + at_dt(), ssd.dt_stride = W_;
    ssd.dt_bias = v.weights[dt_b_].data, ssd.A = v.derived;
    ssd.Bm = s.xBC + S_, ssd.Cm = s.xBC + (S_ + G_ * N_), ssd.B_stride = ssd.C_stride = C_;
    ssd.D = v.weights[D_param_].data, ssd.D_has_hdim = c_.D_has_hdim;
    ssd.S0 = first_state(ctx, v, room, &ssd.s_stride);
    ssd.ST = v.state_out + ssm_;
    ssd.S_reset = bias(v, init_);
    ssd.doc_ids = ctx.doc_ids;
    ssd.y = s.y, ssd.y_stride = S_;
    ctx.kernels().ssd_forward(ctx.stream(), ssd);
  }

  // Gate or gated norm, and the MLP part: cat.
  void gates_forward(const Context& ctx, const LayerView& v, const Saved& s) const {
    if (M_ > 0) {
      GateArgs gate{};
      gate.rows = ctx.rows(), gate.dim = M_;
      gate.a = s.zx + M_, gate.a_stride = W_;
      gate.z = s.zx, gate.z_stride = W_;
      gate.y = s.cat, gate.y_stride = E_;
      ctx.kernels().gate_forward(ctx.stream(), gate);
    }
    if (c_.gated_norm) {
      GatedNormArgs norm{};
      norm.rows = ctx.rows(), norm.dim = S_, norm.groups = c_.norm_groups, norm.eps = c_.norm_eps;
      norm.norm_before_gate = c_.norm_before_gate;
      norm.x = s.y, norm.x_stride = S_;
      norm.z = s.zx + 2 * M_, norm.z_stride = W_;
      norm.weight = v.weights[norm_w_].data;
      norm.y = s.cat + M_, norm.y_stride = E_;
      norm.rstd = s.rstd;
      ctx.kernels().gated_norm_forward(ctx.stream(), norm);
    } else {
      GateArgs gate{};
      gate.rows = ctx.rows(), gate.dim = S_;
      gate.a = s.y, gate.a_stride = S_;
      gate.z = s.zx + 2 * M_, gate.z_stride = W_;
      gate.y = s.cat + M_, gate.y_stride = E_;
      ctx.kernels().gate_forward(ctx.stream(), gate);
    }
  }

  // From dcat: dz0, dx0, dz into dzx, and the gradient of the ssd's y in place of dcat's second
  // part.
  void gates_backward(const Context& ctx, const LayerView& v, const Saved& s,
                      const Scratch& t) const {
    if (M_ > 0) {
      GateBackwardArgs gate{};
      gate.rows = ctx.rows(), gate.dim = M_;
      gate.a = s.zx + M_, gate.a_stride = W_;
      gate.z = s.zx, gate.z_stride = W_;
      gate.dy = t.dcat, gate.dy_stride = E_;
      gate.da = t.dzx + M_, gate.da_stride = W_;
      gate.dz = t.dzx, gate.dz_stride = W_;
      ctx.kernels().gate_backward(ctx.stream(), gate);
    }
    if (c_.gated_norm) {
      GatedNormBackwardArgs norm{};
      norm.rows = ctx.rows(), norm.dim = S_, norm.groups = c_.norm_groups;
      norm.norm_before_gate = c_.norm_before_gate;
      norm.x = s.y, norm.x_stride = S_;
      norm.z = s.zx + 2 * M_, norm.z_stride = W_;
      norm.weight = v.weights[norm_w_].data, norm.rstd = s.rstd;
      norm.dy = t.dcat + M_, norm.dy_stride = E_;
      norm.dx = t.dcat + M_, norm.dx_stride = E_;
      norm.dz = t.dzx + 2 * M_, norm.dz_stride = W_;
      norm.dweight = v.grads[norm_w_];
      ctx.kernels().gated_norm_backward(ctx.stream(), norm);
    } else {
      GateBackwardArgs gate{};
      gate.rows = ctx.rows(), gate.dim = S_;
      gate.a = s.y, gate.a_stride = S_;
      gate.z = s.zx + 2 * M_, gate.z_stride = W_;
      gate.dy = t.dcat + M_, gate.dy_stride = E_;
      gate.da = t.dcat + M_, gate.da_stride = E_;
      gate.dz = t.dzx + 2 * M_, gate.dz_stride = W_;
      ctx.kernels().gate_backward(ctx.stream(), gate);
    }
  }

  void ssd_backward(const Context& ctx, const LayerView& v, const Saved& s, const Scratch& t,
                    bool with_dST, bool with_dS0) const {
    const int64_t ssm_count = H_ * P_ * N_;
    fill_zero(ctx.memory(), t.dA, H_);
    SsdBackwardArgs ssd{};
    ssd.B = ctx.B, ssd.L = ctx.L, ssd.H = H_, ssd.P = P_, ssd.N = N_, ssd.G = G_;
    ssd.chunk = c_.chunk_size, ssd.dt_min = c_.dt_limit_min, ssd.dt_max = c_.dt_limit_max;
    ssd.x = s.xBC, ssd.x_stride = C_;
    ssd.dt = s.zx + at_dt(), ssd.dt_stride = W_;
    ssd.dt_bias = v.weights[dt_b_].data, ssd.A = v.derived;
    ssd.Bm = s.xBC + S_, ssd.Cm = s.xBC + (S_ + G_ * N_), ssd.B_stride = ssd.C_stride = C_;
    ssd.D = v.weights[D_param_].data, ssd.D_has_hdim = c_.D_has_hdim;
    const bool learned_start = init_ >= 0 && !v.state_in;
    ssd.S0 = first_state(ctx, v, t.S0, &ssd.s_stride);
    ssd.S_reset = bias(v, init_), ssd.doc_ids = ctx.doc_ids;
    ssd.dy = t.dcat + M_, ssd.dy_stride = E_;
    ssd.dST = with_dST ? CBuf(t.dS_out) : CBuf();
    ssd.dx = t.dxBC, ssd.dx_stride = C_;
    ssd.ddt = t.dzx + at_dt(), ssd.ddt_stride = W_;
    ssd.ddt_bias = v.grads[dt_b_], ssd.dA = t.dA;
    ssd.dBm = t.dxBC + S_, ssd.dCm = t.dxBC + (S_ + G_ * N_), ssd.dB_stride = ssd.dC_stride = C_;
    ssd.dD = v.grads[D_param_];
    ssd.dS0 = with_dS0 || learned_start ? t.dS_in : Buf();
    ssd.dS_reset = grad(v, init_);
    ctx.kernels().ssd_backward(ctx.stream(), ssd);
    ctx.kernels().decay_backward(ctx.stream(), {H_, 1, t.dA, v.derived, v.grads[A_log_]});
    if (!learned_start) return;
    ctx.kernels().column_sum(ctx.stream(), {ctx.B, ssm_count, t.dS_in, ssm_count, v.grads[init_]});
  }

  const Config c_;
  // D model, E inner, S ssm part of it, M gated-MLP part, C conv channels, W in_proj rows.
  const int64_t D_, E_, S_, M_, N_, K_, H_, P_, G_, C_, W_;
  int64_t ssm_ = 0;
  int in_w_ = -1, in_b_ = -1, conv_w_ = -1, conv_b_ = -1, init_ = -1, dt_b_ = -1, A_log_ = -1,
      D_param_ = -1, norm_w_ = -1, out_w_ = -1, out_b_ = -1;
};

}  // namespace

std::unique_ptr<Mixer> make_mamba2(const Config& config) {
  return std::make_unique<Mamba2>(config);
}

}  // namespace mamba
