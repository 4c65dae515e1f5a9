// SPDX-License-Identifier: Apache-2.0
// Cases of the kernels that run over time: convolution, scans, SSD. Flops count the formula in the
// kernel's header: one multiply-add is 2, one exp is 1.
#include "bench/kernel_cases.h"

namespace mamba {
namespace {

void build_conv1d_forward(KernelCase& c) {
  const int64_t B = c.shape["B"], L = c.shape["L"], C = c.shape["C"], K = c.shape["K"];
  Conv1dArgs a{};
  a.B = B, a.L = L, a.C = C, a.K = K, a.silu = true;
  a.x = c.in(B * L * C), a.x_stride = C;
  a.weight = c.in(C * K);
  a.bias = c.in(C);
  a.state_in = c.in(B * (K - 1) * C), a.state_stride = (K - 1) * C;
  a.state_out = c.out(B * (K - 1) * C);
  a.y = c.out(B * L * C), a.y_stride = C;
  c.terms = K;
  c.cost.flops = static_cast<double>(B * L * C) * (2.0 * static_cast<double>(K) + 4);
  run_with(c, &Kernels::conv1d_forward, a);
}

void build_conv1d_backward(KernelCase& c) {
  const int64_t B = c.shape["B"], L = c.shape["L"], C = c.shape["C"], K = c.shape["K"];
  Conv1dBackwardArgs a{};
  a.B = B, a.L = L, a.C = C, a.K = K, a.silu = true;
  a.x = c.in(B * L * C), a.x_stride = C;
  a.weight = c.in(C * K);
  a.bias = c.in(C);
  a.dy = c.in(B * L * C), a.dy_stride = C;
  a.dx = c.out(B * L * C), a.dx_stride = C;
  a.dweight = c.inout(C * K);
  a.dbias = c.inout(C);
  c.terms = B * L;
  c.cost.flops = static_cast<double>(B * L * C) * (6.0 * static_cast<double>(K) + 10);
  run_with(c, &Kernels::conv1d_backward, a);
}

// Of one step of one channel and state: a' = d A, exp, h = a' h + (d u) B, y += C h.
constexpr double kScanFlops = 7;
// The forward again without y, then g = C dy + a g, and the sums into dB, dC, ddelta, du and dA.
constexpr double kScanBackwardFlops = 20;

void build_scan_forward(KernelCase& c) {
  const int64_t B = c.shape["B"], L = c.shape["L"], E = c.shape["E"], N = c.shape["N"];
  ScanArgs a{};
  a.B = B, a.L = L, a.E = E, a.N = N, a.G = 1;
  a.bc = ScanBC::kGrouped, a.delta_softplus = true;
  a.u = c.in(B * L * E), a.u_stride = E;
  a.delta = c.in(B * L * E), a.delta_stride = E;
  a.delta_bias = c.in(E, -4, -2);
  a.A_t = c.in(N * E, -8, -0.5);
  a.Bm = c.in(B * L * N), a.B_stride = N;
  a.Cm = c.in(B * L * N), a.C_stride = N;
  a.D = c.in(E);
  a.z = c.in(B * L * E), a.z_stride = E;
  a.h0 = c.in(B * N * E), a.h_stride = N * E;
  a.hT = c.out(B * N * E);
  a.y = c.out(B * L * E), a.y_stride = E;
  c.terms = N * L;
  c.cost.flops = static_cast<double>(B * L * E) * (kScanFlops * static_cast<double>(N) + 10);
  run_with(c, &Kernels::scan_forward, a);
}

void build_scan_backward(KernelCase& c) {
  const int64_t B = c.shape["B"], L = c.shape["L"], E = c.shape["E"], N = c.shape["N"];
  ScanBackwardArgs a{};
  a.B = B, a.L = L, a.E = E, a.N = N, a.G = 1;
  a.bc = ScanBC::kGrouped, a.delta_softplus = true;
  a.u = c.in(B * L * E), a.u_stride = E;
  a.delta = c.in(B * L * E), a.delta_stride = E;
  a.delta_bias = c.in(E, -4, -2);
  a.A_t = c.in(N * E, -8, -0.5);
  a.Bm = c.in(B * L * N), a.B_stride = N;
  a.Cm = c.in(B * L * N), a.C_stride = N;
  a.D = c.in(E);
  a.z = c.in(B * L * E), a.z_stride = E;
  a.h_stride = N * E;
  a.dy = c.in(B * L * E), a.dy_stride = E;
  a.du = c.out(B * L * E), a.du_stride = E;
  a.ddelta = c.out(B * L * E), a.ddelta_stride = E;
  a.ddelta_bias = c.inout(E);
  a.dA_t = c.inout(N * E);
  a.dBm = c.out(B * L * N), a.dB_stride = N;
  a.dCm = c.out(B * L * N), a.dC_stride = N;
  a.dD = c.inout(E);
  a.dz = c.out(B * L * E), a.dz_stride = E;
  c.terms = B * L * N;
  c.cost.flops =
      static_cast<double>(B * L * E) * (kScanBackwardFlops * static_cast<double>(N) + 30);
  run_with(c, &Kernels::scan_backward, a);
}

void build_scan_step(KernelCase& c) {
  const int64_t B = c.shape["B"], E = c.shape["E"], N = c.shape["N"];
  ScanStepArgs a{};
  a.B = B, a.E = E, a.N = N, a.G = 1;
  a.bc = ScanBC::kGrouped, a.delta_softplus = true;
  a.u = c.in(B * E), a.u_stride = E;
  a.delta = c.in(B * E), a.delta_stride = E;
  a.delta_bias = c.in(E, -4, -2);
  a.A_t = c.in(N * E, -8, -0.5);
  a.Bm = c.in(B * N), a.B_stride = N;
  a.Cm = c.in(B * N), a.C_stride = N;
  a.D = c.in(E);
  a.z = c.in(B * E), a.z_stride = E;
  a.h = c.inout(B * N * E), a.h_stride = N * E;
  a.y = c.out(B * E), a.y_stride = E;
  c.terms = N;
  c.cost.flops = static_cast<double>(B * E) * (kScanFlops * static_cast<double>(N) + 10);
  run_with(c, &Kernels::scan_step, a);
}

struct SsdSizes {
  explicit SsdSizes(const Shape& s)
      : B(s["B"]), L(s["L"]), H(s["H"]), P(s["P"]), N(s["N"]), chunk(s["chunk"]) {}
  int64_t B, L, H, P, N, chunk;
  int64_t x() const { return B * L * H * P; }
  // Of the chunked algorithm with one group, the triangle of each chunk counted as half: C B^T, its
  // product with x, chunk states, and what earlier chunks give.
  double flops() const {
    const double q = static_cast<double>(chunk), p = static_cast<double>(P);
    const double n = static_cast<double>(N), h = static_cast<double>(H);
    return static_cast<double>(B * L) * (q * n + h * q * p + 4 * h * p * n);
  }
};

void build_ssd_forward(KernelCase& c) {
  const SsdSizes s(c.shape);
  SsdArgs a{};
  a.B = s.B, a.L = s.L, a.H = s.H, a.P = s.P, a.N = s.N, a.G = 1, a.chunk = s.chunk;
  a.dt_min = 0, a.dt_max = 1e30;
  a.x = c.in(s.x()), a.x_stride = s.H * s.P;
  a.dt = c.in(s.B * s.L * s.H), a.dt_stride = s.H;
  a.dt_bias = c.in(s.H, -4, -2);
  a.A = c.in(s.H, -8, -0.5);
  a.Bm = c.in(s.B * s.L * s.N), a.B_stride = s.N;
  a.Cm = c.in(s.B * s.L * s.N), a.C_stride = s.N;
  a.D = c.in(s.H);
  a.S0 = c.in(s.B * s.H * s.P * s.N), a.s_stride = s.H * s.P * s.N;
  a.ST = c.out(s.B * s.H * s.P * s.N);
  a.y = c.out(s.x()), a.y_stride = s.H * s.P;
  c.terms = s.N * s.L;
  c.cost.flops = s.flops();
  run_with(c, &Kernels::ssd_forward, a);
}

void build_ssd_backward(KernelCase& c) {
  const SsdSizes s(c.shape);
  SsdBackwardArgs a{};
  a.B = s.B, a.L = s.L, a.H = s.H, a.P = s.P, a.N = s.N, a.G = 1, a.chunk = s.chunk;
  a.dt_min = 0, a.dt_max = 1e30;
  a.x = c.in(s.x()), a.x_stride = s.H * s.P;
  a.dt = c.in(s.B * s.L * s.H), a.dt_stride = s.H;
  a.dt_bias = c.in(s.H, -4, -2);
  a.A = c.in(s.H, -8, -0.5);
  a.Bm = c.in(s.B * s.L * s.N), a.B_stride = s.N;
  a.Cm = c.in(s.B * s.L * s.N), a.C_stride = s.N;
  a.D = c.in(s.H);
  a.s_stride = s.H * s.P * s.N;
  a.dy = c.in(s.x()), a.dy_stride = s.H * s.P;
  a.dx = c.out(s.x()), a.dx_stride = s.H * s.P;
  a.ddt = c.out(s.B * s.L * s.H), a.ddt_stride = s.H;
  a.ddt_bias = c.inout(s.H);
  a.dA = c.inout(s.H);
  a.dBm = c.out(s.B * s.L * s.N), a.dB_stride = s.N;
  a.dCm = c.out(s.B * s.L * s.N), a.dC_stride = s.N;
  a.dD = c.inout(s.H);
  c.terms = s.B * s.L * s.P * s.N;
  c.cost.flops = 3 * s.flops();  // the states again, and two products for each of the forward
  run_with(c, &Kernels::ssd_backward, a);
}

void build_ssd_step(KernelCase& c) {
  const int64_t B = c.shape["B"], H = c.shape["H"], P = c.shape["P"], N = c.shape["N"];
  SsdStepArgs a{};
  a.B = B, a.H = H, a.P = P, a.N = N, a.G = 1;
  a.dt_min = 0, a.dt_max = 1e30;
  a.x = c.in(B * H * P), a.x_stride = H * P;
  a.dt = c.in(B * H), a.dt_stride = H;
  a.dt_bias = c.in(H, -4, -2);
  a.A = c.in(H, -8, -0.5);
  a.Bm = c.in(B * N), a.B_stride = N;
  a.Cm = c.in(B * N), a.C_stride = N;
  a.D = c.in(H);
  a.S = c.inout(B * H * P * N), a.s_stride = H * P * N;
  a.y = c.out(B * H * P), a.y_stride = H * P;
  c.terms = N;
  c.cost.flops = 5.0 * static_cast<double>(B * H * P * N);
  run_with(c, &Kernels::ssd_step, a);
}

// Taps (C, K) of a convolution, and the same transposed.
template <class Args>
void set_taps(KernelCase& c, int64_t C, int64_t K, Args& a) {
  const CBuf weight = c.in(C * K);
  const Buf taps = c.room(K * C);
  a.conv_weight = weight, a.conv_taps = taps;
  c.prepare = [=](const Kernels& k, Stream& s) { k.transpose(s, {C, K, weight, taps}); };
}

void build_mamba1_step(KernelCase& c) {
  const int64_t B = c.shape["B"], E = c.shape["E"], N = c.shape["N"], R = c.shape["R"];
  const int64_t K = c.shape["K"], W = R + 2 * N;
  Mamba1StepArgs a{};
  a.B = B, a.E = E, a.N = N, a.R = R, a.K = K;
  a.conv_silu = true, a.product = Product::kF32;
  a.xz = c.in(B * 2 * E), a.xz_stride = 2 * E;
  set_taps(c, E, K, a);
  a.conv_bias = c.in(E);
  a.x_weight = c.in(W * E, -0.03, 0.03), a.dt_weight = c.in(E * R, -0.1, 0.1);
  a.dt_bias = c.in(E, -4, -2);
  a.A_t = c.in(N * E, -8, -0.5);
  a.D = c.in(E);
  // conv and ssm of a sequence lie behind each other.
  a.conv_state = c.inout(B * (K - 1 + N) * E), a.ssm_state = a.conv_state + (K - 1) * E;
  a.state_stride = (K - 1 + N) * E;
  a.conv_x = c.room(B * E), a.x_dbl = c.room(B * W), a.delta = c.room(B * E);
  a.y = c.out(B * E), a.y_stride = E;
  c.terms = E + R + N;
  c.cost.flops = static_cast<double>(B * E) *
                 (kScanFlops * static_cast<double>(N) + 2.0 * static_cast<double>(W + R + K) + 20);
  run_with(c, &Kernels::mamba1_step, a);
}

void build_mamba2_step(KernelCase& c) {
  const int64_t B = c.shape["B"], H = c.shape["H"], P = c.shape["P"], N = c.shape["N"];
  const int64_t K = c.shape["K"], S = H * P, C = S + 2 * N, W = S + C + H;
  Mamba2StepArgs a{};
  a.B = B, a.H = H, a.P = P, a.N = N, a.G = 1, a.K = K;
  a.conv_silu = true, a.dt_min = 0, a.dt_max = 1e30;
  a.zx = c.in(B * W), a.zx_stride = W;
  set_taps(c, C, K, a);
  a.conv_bias = c.in(C);
  a.dt_bias = c.in(H, -4, -2);
  a.A = c.in(H, -8, -0.5);
  a.D = c.in(H);
  a.gated_norm = true, a.norm_groups = 1, a.norm_eps = 1e-5, a.norm_weight = c.in(S, 0.5, 1.5);
  a.conv_state = c.inout(B * ((K - 1) * C + S * N)), a.ssm_state = a.conv_state + (K - 1) * C;
  a.state_stride = (K - 1) * C + S * N;
  a.conv_xbc = c.room(B * C), a.y = c.room(B * S);
  a.out = c.out(B * S), a.out_stride = S;
  c.terms = S + N;
  c.cost.flops = static_cast<double>(B * S) * (5.0 * static_cast<double>(N) + 20) +
                 static_cast<double>(B * C) * 2.0 * static_cast<double>(K);
  run_with(c, &Kernels::mamba2_step, a);
}

void build_affine_scan_forward(KernelCase& c) {
  AffineScanArgs a{};
  a.B = c.shape["B"], a.L = c.shape["L"], a.D = c.shape["D"];
  a.order = ScanOrder::kParallel;
  const int64_t count = a.B * a.L * a.D;
  a.a = c.in(count, 0, 1);
  a.x = c.in(count);
  a.h = c.out(count);
  c.terms = a.L;
  c.cost.flops = 2.0 * static_cast<double>(count);
  run_with(c, &Kernels::affine_scan_forward, a);
}

void build_affine_scan_backward(KernelCase& c) {
  AffineScanBackwardArgs a{};
  a.B = c.shape["B"], a.L = c.shape["L"], a.D = c.shape["D"];
  a.order = ScanOrder::kParallel;
  const int64_t count = a.B * a.L * a.D;
  a.a = c.in(count, 0, 1);
  a.h = c.in(count);
  a.dh = c.in(count);
  a.da = c.out(count);
  a.dx = c.out(count);
  c.terms = a.L;
  c.cost.flops = 3.0 * static_cast<double>(count);
  run_with(c, &Kernels::affine_scan_backward, a);
}

}  // namespace

std::vector<KernelEntry> sequence_kernel_entries() {
  // d_model 256, expand 2, batch 8, 256 tokens; steps at d_model 768.
  const Shape conv = {{"B", 8}, {"L", 256}, {"C", 512}, {"K", 4}};
  const Shape scan = {{"B", 8}, {"L", 256}, {"E", 512}, {"N", 16}};
  const Shape ssd = {{"B", 8}, {"L", 256}, {"H", 8}, {"P", 64}, {"N", 64}, {"chunk", 64}};
  const Shape affine = {{"B", 8}, {"L", 256}, {"D", 512}};
  return {
      {"conv1d_forward", conv, build_conv1d_forward},
      {"conv1d_backward", conv, build_conv1d_backward},
      {"scan_forward", scan, build_scan_forward},
      {"scan_backward", scan, build_scan_backward},
      {"scan_step", {{"B", 1}, {"E", 1536}, {"N", 16}}, build_scan_step},
      {"ssd_forward", ssd, build_ssd_forward},
      {"ssd_backward", ssd, build_ssd_backward},
      {"ssd_step", {{"B", 1}, {"H", 24}, {"P", 64}, {"N", 128}}, build_ssd_step},
      {"mamba1_step", {{"B", 1}, {"E", 1536}, {"N", 16}, {"R", 48}, {"K", 4}}, build_mamba1_step},
      {"mamba2_step", {{"B", 1}, {"H", 24}, {"P", 64}, {"N", 128}, {"K", 4}}, build_mamba2_step},
      {"affine_scan_forward", affine, build_affine_scan_forward},
      {"affine_scan_backward", affine, build_affine_scan_backward},
  };
}

}  // namespace mamba
