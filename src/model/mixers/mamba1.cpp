// SPDX-License-Identifier: Apache-2.0
// Mamba-1 (Gu & Dao 2023) and, with bcdt_rms, Falcon-Mamba's weightless norms on B, C and dt.
//   [x; z] = W_in u;  x = silu(conv(x));  [dt; B; C] = W_x x;  y = scan(x, W_dt dt + b, A, B, C, D,
//   z); out = W_out y.
#include <cmath>

#include "model/mixers/all.h"

namespace mamba {
namespace {

class Mamba1 : public Mixer {
 public:
  explicit Mamba1(const Config& c)
      : c_(c), D_(c.d_model), E_(c.d_inner), N_(c.d_state), K_(c.d_conv), R_(c.dt_rank) {
    const double in_scale = 1 / std::sqrt(static_cast<double>(D_));
    const double conv_scale =
        c.conv_init > 0 ? c.conv_init : 1 / std::sqrt(static_cast<double>(K_));
    const double dt_scale = c.dt_scale / std::sqrt(static_cast<double>(R_));
    double out_scale = 1 / std::sqrt(static_cast<double>(E_));
    if (c.rescale_prenorm_residual) out_scale /= std::sqrt(static_cast<double>(c.n_layer));
    in_w_ = add_param("in_proj.weight", {2 * E_, D_}, Init::kUniform, in_scale, true, true);
    if (c.use_bias) in_b_ = add_param("in_proj.bias", {2 * E_}, Init::kZero, 0, false, false);
    conv_w_ = add_param("conv1d.weight", {E_, 1, K_}, Init::kUniform, conv_scale, true, false);
    if (c.conv_bias) {
      conv_b_ =
          add_param("conv1d.bias", {E_}, Init::kUniform, 1 / std::sqrt(double(K_)), false, false);
    }
    x_w_ = add_param("x_proj.weight", {R_ + 2 * N_, E_}, Init::kUniform,
                     1 / std::sqrt(static_cast<double>(E_)), true, true);
    dt_w_ = add_param("dt_proj.weight", {E_, R_},
                      c.dt_init_random ? Init::kUniform : Init::kConstant, dt_scale, true, true);
    dt_b_ = add_param("dt_proj.bias", {E_}, Init::kDtBias, 0, false, false);
    A_log_ = add_param("A_log", {E_, N_}, Init::kLogCount, 0, false, false);
    D_param_ = add_param("D", {E_}, Init::kOne, 0, false, false);
    out_w_ = add_param("out_proj.weight", {D_, E_}, Init::kUniform, out_scale, true, true);
    if (c.use_bias) out_b_ = add_param("out_proj.bias", {D_}, Init::kZero, 0, false, false);
    add_state("conv", {K_ - 1, E_});
    ssm_ = states_[static_cast<size_t>(add_state("ssm", {N_, E_}))].offset;
  }

  // A_t (N, E) = -exp(A_log (E, N)) transposed, and the taps (K, E) of the convolution.
  int64_t derived_count() const override { return N_ * E_ + K_ * E_; }
  void prepare(Device& device, const LayerView& v) const override {
    const CBuf A_log = v.weights[A_log_].data, taps = v.weights[conv_w_].data;
    device.kernels().decay_forward(device.stream(), {E_, N_, A_log, v.derived});
    device.kernels().transpose(device.stream(), {E_, K_, taps, v.derived + N_ * E_});
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
    linear(ctx, x, D_, v.weights[in_w_], bias(v, in_b_), s.xz, 2 * E_, 2 * E_, D_);
    convolve(ctx, v, s);
    linear(ctx, s.xc, E_, v.weights[x_w_], CBuf(), s.x_dbl, R_ + 2 * N_, R_ + 2 * N_, E_);
    prepare_scan(ctx, v, s);
    scan_forward(ctx, v, s);
    if (y) linear(ctx, s.y, E_, v.weights[out_w_], bias(v, out_b_), y, D_, D_, E_);
  }

  void backward(const Context& ctx, const LayerView& v, CBuf x, CBuf dy, Buf dx, CBuf dstate_out,
                Buf dstate_in, Arena saved, Arena scratch) const override {
    const Saved s = layout_saved(ctx, saved, scratch);
    const Scratch t = layout_backward(ctx, scratch);
    if (ctx.recompute) {
      convolve(ctx, v, s);
      prepare_scan(ctx, v, s);
      scan_forward(ctx, v, s);
    }
    linear_backward(ctx, s.y, E_, v.weights[out_w_], dy, D_, t.dy, E_, false, v.grads[out_w_],
                    grad(v, out_b_), D_, E_);
    split_state(ctx, dstate_out, t);
    scan_backward(ctx, v, s, t, bool(dstate_out), bool(dstate_in));
    // dt_proj without its bias, whose gradient came from the scan.
    linear_backward(ctx, s.normed, R_ + 2 * N_, v.weights[dt_w_], t.ddelta, E_, t.dx_dbl,
                    R_ + 2 * N_, false, v.grads[dt_w_], Buf(), E_, R_);
    if (c_.bcdt_rms) norms_backward(ctx, s, t);
    linear_backward(ctx, s.xc, E_, v.weights[x_w_], t.dx_dbl, R_ + 2 * N_, t.du, E_, true,
                    v.grads[x_w_], Buf(), R_ + 2 * N_, E_);
    Conv1dBackwardArgs conv{};
    conv.B = ctx.B, conv.L = ctx.L, conv.C = E_, conv.K = K_, conv.silu = c_.conv_silu;
    conv.x = s.xz, conv.x_stride = 2 * E_;
    conv.weight = v.weights[conv_w_].data, conv.bias = bias(v, conv_b_);
    conv.state_in = v.state_in, conv.state_stride = ctx.state_stride, conv.doc_ids = ctx.doc_ids;
    conv.dy = t.du, conv.dy_stride = E_;
    conv.dstate_out = dstate_out ? CBuf(t.dconv_out) : CBuf();
    conv.dx = t.dxz, conv.dx_stride = 2 * E_;
    conv.dweight = v.grads[conv_w_], conv.dbias = grad(v, conv_b_);
    conv.dstate_in = dstate_in ? t.dconv_in : Buf();
    ctx.kernels().conv1d_backward(ctx.stream(), conv);
    join_state(ctx, t, dstate_in);
    linear_backward(ctx, x, D_, v.weights[in_w_], t.dxz, 2 * E_, dx, D_, false, v.grads[in_w_],
                    grad(v, in_b_), 2 * E_, D_);
  }

  void step(const Context& ctx, const LayerView& v, const StepInput& x, Buf y,
            Arena scratch) const override {
    const Saved s = layout_saved(ctx, scratch, scratch);
    Mamba1StepArgs a{};
    if (x.norm != nullptr && !in_blocks(v.weights[in_w_])) {
      a.input = {*x.norm, linear_args(ctx, x.x, D_, v.weights[in_w_], bias(v, in_b_), s.xz, 2 * E_,
                                      2 * E_, D_)};
    } else {
      linear(ctx, x, v.weights[in_w_], bias(v, in_b_), s.xz, 2 * E_, 2 * E_, D_);
    }
    a.B = ctx.B, a.E = E_, a.N = N_, a.R = R_, a.K = K_;
    a.conv_silu = c_.conv_silu, a.norms = c_.bcdt_rms, a.norm_eps = c_.bcdt_rms_eps;
    a.product = ctx.product;
    a.xz = s.xz, a.xz_stride = 2 * E_;
    a.conv_weight = v.weights[conv_w_].data, a.conv_taps = v.derived + N_ * E_;
    a.conv_bias = bias(v, conv_b_);
    a.x_weight = v.weights[x_w_].data, a.x_packed = v.weights[x_w_].packed;
    a.dt_weight = v.weights[dt_w_].data, a.dt_packed = v.weights[dt_w_].packed;
    a.dt_bias = v.weights[dt_b_].data, a.A_t = v.derived, a.D = v.weights[D_param_].data;
    a.conv_state = v.state_out, a.ssm_state = v.state_out + ssm_;
    a.state_stride = ctx.state_stride;
    a.conv_x = s.xc, a.x_dbl = s.x_dbl, a.delta = s.delta;
    if (c_.bcdt_rms) a.normed = s.normed;
    a.y = s.y, a.y_stride = E_;
    ctx.kernels().mamba1_step(ctx.stream(), a);
    linear(ctx, s.y, E_, v.weights[out_w_], bias(v, out_b_), y, D_, D_, E_);
  }

 private:
  struct Saved {
    Buf xz;      // (rows, 2E) in_proj
    Buf xc;      // (rows, E) conv
    Buf x_dbl;   // (rows, R + 2N) x_proj: dt, B, C
    Buf normed;  // the same after the weightless norms; x_dbl itself without them
    Buf rstd;    // (3, rows) of those norms: dt, B, C
    Buf delta;   // (rows, E) dt_proj without bias
    Buf y;       // (rows, E) gated scan
  };
  struct Scratch {
    Buf dy, du, ddelta;       // (rows, E)
    Buf dxz;                  // (rows, 2E)
    Buf dx_dbl;               // (rows, R + 2N)
    Buf dA_t;                 // (N, E)
    Buf dh_in, dh_out;        // (B, N, E)
    Buf dconv_in, dconv_out;  // (B, K-1, E)
  };

  // `again` is where that goes which a recomputing backward does anew.
  Saved layout_saved(const Context& ctx, Arena& saved, Arena& again) const {
    const DType real = ctx.real(), act = ctx.activation();
    const int64_t rows = ctx.rows();
    Arena& rest = ctx.recompute ? again : saved;
    Saved s;
    s.xz = saved.alloc(act, rows * 2 * E_);
    s.x_dbl = saved.alloc(act, rows * (R_ + 2 * N_));
    s.xc = rest.alloc(act, rows * E_);
    s.normed = c_.bcdt_rms ? rest.alloc(act, rows * (R_ + 2 * N_)) : s.x_dbl;
    if (c_.bcdt_rms) s.rstd = rest.alloc(real, 3 * rows);
    s.delta = rest.alloc(act, rows * E_);
    s.y = rest.alloc(act, rows * E_);
    return s;
  }
  Scratch layout_backward(const Context& ctx, Arena& arena) const {
    const DType real = ctx.real(), act = ctx.activation();
    const int64_t rows = ctx.rows();
    Scratch t;
    t.dy = arena.alloc(act, rows * E_);
    t.du = t.dy;  // the scan reads dy before it writes du
    t.ddelta = arena.alloc(act, rows * E_);
    t.dxz = arena.alloc(act, rows * 2 * E_);
    t.dx_dbl = arena.alloc(act, rows * (R_ + 2 * N_));
    t.dA_t = arena.alloc(real, N_ * E_);
    t.dh_in = arena.alloc(real, ctx.B * N_ * E_);
    t.dh_out = arena.alloc(real, ctx.B * N_ * E_);
    t.dconv_in = arena.alloc(real, ctx.B * (K_ - 1) * E_);
    t.dconv_out = arena.alloc(real, ctx.B * (K_ - 1) * E_);
    return t;
  }

  CBuf bias(const LayerView& v, int index) const {
    return index >= 0 ? v.weights[index].data : CBuf();
  }
  Buf grad(const LayerView& v, int index) const { return index >= 0 ? v.grads[index] : Buf(); }

  void convolve(const Context& ctx, const LayerView& v, const Saved& s) const {
    Conv1dArgs conv{};
    conv.B = ctx.B, conv.L = ctx.L, conv.C = E_, conv.K = K_, conv.silu = c_.conv_silu;
    conv.x = s.xz, conv.x_stride = 2 * E_;
    conv.weight = v.weights[conv_w_].data, conv.bias = bias(v, conv_b_);
    conv.state_in = v.state_in, conv.state_out = v.state_out, conv.state_stride = ctx.state_stride;
    conv.doc_ids = ctx.doc_ids;
    conv.y = s.xc, conv.y_stride = E_;
    ctx.kernels().conv1d_forward(ctx.stream(), conv);
  }

  // The norms of x_dbl, and delta.
  void prepare_scan(const Context& ctx, const LayerView& v, const Saved& s) const {
    const int64_t W = R_ + 2 * N_;
    if (c_.bcdt_rms) {
      const int64_t at[] = {0, R_, R_ + N_}, dims[] = {R_, N_, N_};
      for (int i = 0; i < 3; ++i) {
        RmsNormArgs norm{};
        norm.rows = ctx.rows(), norm.dim = dims[i], norm.eps = c_.bcdt_rms_eps;
        norm.x = s.x_dbl + at[i], norm.x_stride = W;
        norm.y = s.normed + at[i], norm.y_stride = W;
        norm.rstd = s.rstd + i * ctx.rows();
        ctx.kernels().rms_norm_forward(ctx.stream(), norm);
      }
    }
    linear(ctx, s.normed, W, v.weights[dt_w_], CBuf(), s.delta, E_, E_, R_);
  }

  void scan_forward(const Context& ctx, const LayerView& v, const Saved& s) const {
    ScanArgs scan{};
    scan.B = ctx.B, scan.L = ctx.L, scan.E = E_, scan.N = N_, scan.G = 1;
    scan.bc = ScanBC::kGrouped, scan.delta_softplus = true;
    scan.u = s.xc, scan.u_stride = E_;
    scan.delta = s.delta, scan.delta_stride = E_;
    scan.delta_bias = v.weights[dt_b_].data, scan.A_t = v.derived;
    scan.Bm = s.normed + R_, scan.Cm = s.normed + (R_ + N_);
    scan.B_stride = scan.C_stride = R_ + 2 * N_;
    scan.D = v.weights[D_param_].data;
    scan.z = s.xz + E_, scan.z_stride = 2 * E_;
    scan.h0 = v.state_in + ssm_, scan.hT = v.state_out + ssm_, scan.h_stride = ctx.state_stride;
    scan.doc_ids = ctx.doc_ids;
    scan.y = s.y, scan.y_stride = E_;
    ctx.kernels().scan_forward(ctx.stream(), scan);
  }

  void norms_backward(const Context& ctx, const Saved& s, const Scratch& t) const {
    const int64_t W = R_ + 2 * N_;
    const int64_t at[] = {0, R_, R_ + N_}, dims[] = {R_, N_, N_};
    for (int i = 0; i < 3; ++i) {
      RmsNormBackwardArgs norm{};
      norm.rows = ctx.rows(), norm.dim = dims[i];
      norm.r = s.x_dbl + at[i], norm.r_stride = W;
      norm.rstd = s.rstd + i * ctx.rows();
      norm.dy = t.dx_dbl + at[i], norm.dy_stride = W;
      norm.dr = t.dx_dbl + at[i], norm.dr_stride = W;
      ctx.kernels().rms_norm_backward(ctx.stream(), norm);
    }
  }

  void scan_backward(const Context& ctx, const LayerView& v, const Saved& s, const Scratch& t,
                     bool with_dhT, bool with_dh0) const {
    const int64_t W = R_ + 2 * N_;
    fill_zero(ctx.memory(), t.dA_t, N_ * E_);
    ScanBackwardArgs scan{};
    scan.B = ctx.B, scan.L = ctx.L, scan.E = E_, scan.N = N_, scan.G = 1;
    scan.bc = ScanBC::kGrouped, scan.delta_softplus = true;
    scan.u = s.xc, scan.u_stride = E_;
    scan.delta = s.delta, scan.delta_stride = E_;
    scan.delta_bias = v.weights[dt_b_].data, scan.A_t = v.derived;
    scan.Bm = s.normed + R_, scan.Cm = s.normed + (R_ + N_), scan.B_stride = scan.C_stride = W;
    scan.D = v.weights[D_param_].data;
    scan.z = s.xz + E_, scan.z_stride = 2 * E_;
    scan.h0 = v.state_in + ssm_, scan.h_stride = ctx.state_stride, scan.doc_ids = ctx.doc_ids;
    scan.dy = t.dy, scan.dy_stride = E_;
    scan.dhT = with_dhT ? CBuf(t.dh_out) : CBuf();
    scan.du = t.du, scan.du_stride = E_;
    scan.ddelta = t.ddelta, scan.ddelta_stride = E_;
    scan.ddelta_bias = v.grads[dt_b_], scan.dA_t = t.dA_t;
    scan.dBm = t.dx_dbl + R_, scan.dCm = t.dx_dbl + (R_ + N_), scan.dB_stride = scan.dC_stride = W;
    scan.dD = v.grads[D_param_];
    scan.dz = t.dxz + E_, scan.dz_stride = 2 * E_;
    scan.dh0 = with_dh0 ? t.dh_in : Buf();
    ctx.kernels().scan_backward(ctx.stream(), scan);
    ctx.kernels().decay_backward(ctx.stream(), {E_, N_, t.dA_t, v.derived, v.grads[A_log_]});
  }

  // Gradients of states are contiguous per sequence outside, per tensor for the kernels.
  void split_state(const Context& ctx, CBuf all, const Scratch& t) const {
    const int64_t conv = (K_ - 1) * E_;
    copy_rows(ctx.memory(), all, state_count_, t.dconv_out, conv, ctx.B, conv);
    copy_rows(ctx.memory(), all + ssm_, state_count_, t.dh_out, N_ * E_, ctx.B, N_ * E_);
  }
  void join_state(const Context& ctx, const Scratch& t, Buf all) const {
    const int64_t conv = (K_ - 1) * E_;
    copy_rows(ctx.memory(), t.dconv_in, conv, all, state_count_, ctx.B, conv);
    copy_rows(ctx.memory(), t.dh_in, N_ * E_, all + ssm_, state_count_, ctx.B, N_ * E_);
  }

  const Config c_;
  const int64_t D_, E_, N_, K_, R_;
  int64_t ssm_ = 0;
  int in_w_ = -1, in_b_ = -1, conv_w_ = -1, conv_b_ = -1, x_w_ = -1, dt_w_ = -1, dt_b_ = -1,
      A_log_ = -1, D_param_ = -1, out_w_ = -1, out_b_ = -1;
};

}  // namespace

std::unique_ptr<Mixer> make_mamba1(const Config& config) {
  return std::make_unique<Mamba1>(config);
}

}  // namespace mamba
