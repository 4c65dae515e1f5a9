// SPDX-License-Identifier: Apache-2.0
// ssd, the specification: the recurrence token by token and its exact reverse, no chunks.
// States and sums are held in double in f32 too; only what is stored is rounded.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/ssd.h"
#include "kernels/state_ref.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {
namespace {

// A token's place in a row: padding, the start of a further document, or neither.
enum class Place { kPadding, kReset, kInside };

std::vector<Place> places(const int32_t* ids, int64_t L) {
  std::vector<Place> row(L, Place::kInside);
  if (ids == nullptr) return row;
  int64_t last = -1;
  for (int64_t t = 0; t < L; ++t) {
    if (ids[t] < 0) {
      row[t] = Place::kPadding;
      continue;
    }
    if (last >= 0 && ids[t] != last) row[t] = Place::kReset;
    last = ids[t];
  }
  return row;
}

// d = clamp(softplus(raw)) and its derivative with respect to raw (0 where clamped).
struct StepSize {
  double d, derivative;
};

StepSize step_size(double raw, double dt_min, double dt_max) {
  const double soft = raw > 20 ? raw : std::log1p(std::exp(raw));
  const double slope = raw > 20 ? 1.0 : 1.0 / (1.0 + std::exp(-raw));
  const double d = std::min(std::max(soft, dt_min), dt_max);
  return {d, soft < dt_min || soft > dt_max ? 0.0 : slope};
}

// S (P, N) from a buffer of T, or zeros.
template <class T>
void load_states(const T* from, int64_t count, double* S) {
  for (int64_t i = 0; i < count; ++i) S[i] = from != nullptr ? static_cast<double>(from[i]) : 0.0;
}

// S = a S + d x (outer) B.
template <class T>
void advance(double* S, int64_t P, int64_t N, double a, double d, const T* x, const T* Bt) {
  for (int64_t p = 0; p < P; ++p) {
    for (int64_t n = 0; n < N; ++n) S[p * N + n] = a * S[p * N + n] + d * x[p] * Bt[n];
  }
}

// y[p] = sum_n S[p, n] C[n] + D x[p].
template <class T, class Args>
void read_out(const Args& a, int64_t h, const double* S, const T* x, const T* Ct, T* y) {
  const T* D = a.D.template as<T>();
  for (int64_t p = 0; p < a.P; ++p) {
    double sum = 0;
    for (int64_t n = 0; n < a.N; ++n) sum += S[p * a.N + n] * Ct[n];
    if (D != nullptr) sum += static_cast<double>(D[a.D_has_hdim ? h * a.P + p : h]) * x[p];
    y[p] = static_cast<T>(sum);
  }
}

template <class T>
void forward_head(const SsdArgs& a, int64_t b, int64_t h, const std::vector<Place>& row) {
  const int64_t PN = a.P * a.N, g = h / (a.H / a.G);
  std::vector<double> S(PN);
  const T* S0 = (a.S0 + (b * a.s_stride + h * PN)).as<T>();
  const T* S_reset = (a.S_reset + h * PN).as<T>();
  load_states(S0, PN, S.data());
  for (int64_t t = 0; t < a.L; ++t) {
    const int64_t token = b * a.L + t;
    T* y = a.y.as<T>() + token * a.y_stride + h * a.P;
    if (row[t] == Place::kPadding) {
      std::fill(y, y + a.P, T(0));
      continue;
    }
    if (row[t] == Place::kReset) load_states(S_reset, PN, S.data());
    const double raw = static_cast<double>(a.dt.as<T>()[token * a.dt_stride + h]) +
                       static_cast<double>(a.dt_bias.as<T>()[h]);
    const double d = step_size(raw, a.dt_min, a.dt_max).d;
    const T* x = a.x.as<T>() + token * a.x_stride + h * a.P;
    advance(S.data(), a.P, a.N, std::exp(d * a.A.as<T>()[h]), d, x,
            a.Bm.as<T>() + token * a.B_stride + g * a.N);
    read_out(a, h, S.data(), x, a.Cm.as<T>() + token * a.C_stride + g * a.N, y);
  }
  if (T* ST = (a.ST + (b * a.s_stride + h * PN)).as<T>()) {
    for (int64_t i = 0; i < PN; ++i) ST[i] = static_cast<T>(S[i]);
  }
}

// Sums over heads and rows, in the order h, b, t.
struct Sums {
  std::vector<double> dB, dC;        // (B, L, G, N)
  std::vector<double> ddt_bias, dA;  // (H)
  std::vector<double> dD, dS_reset;  // (H, P), (H, P, N)
};

// What the reverse pass needs of a head of a row.
struct Trace {
  std::vector<double> before;   // (L, P, N): the state that each token starts from
  std::vector<StepSize> steps;  // (L)
};

template <class T>
Trace record(const SsdBackwardArgs& a, int64_t b, int64_t h, const std::vector<Place>& row) {
  const int64_t PN = a.P * a.N, g = h / (a.H / a.G);
  Trace trace{std::vector<double>(a.L * PN), std::vector<StepSize>(a.L)};
  std::vector<double> S(PN);
  load_states((a.S0 + (b * a.s_stride + h * PN)).as<T>(), PN, S.data());
  for (int64_t t = 0; t < a.L; ++t) {
    if (row[t] == Place::kPadding) continue;
    const int64_t token = b * a.L + t;
    if (row[t] == Place::kReset) load_states((a.S_reset + h * PN).as<T>(), PN, S.data());
    std::copy(S.begin(), S.end(), trace.before.begin() + t * PN);
    const double raw = static_cast<double>(a.dt.as<T>()[token * a.dt_stride + h]) +
                       static_cast<double>(a.dt_bias.as<T>()[h]);
    trace.steps[t] = step_size(raw, a.dt_min, a.dt_max);
    const double d = trace.steps[t].d;
    advance(S.data(), a.P, a.N, std::exp(d * a.A.as<T>()[h]), d,
            a.x.as<T>() + token * a.x_stride + h * a.P,
            a.Bm.as<T>() + token * a.B_stride + g * a.N);
  }
  return trace;
}

// One token of one head. G comes in as a_{t+1} G_{t+1} and leaves as a_t G_t, where
//   G_t = dy_t (outer) C_t + a_{t+1} G_{t+1}   is the gradient of S_t:
//   dC_t = S_t^T dy_t,   dB_t = d_t G_t^T x_t,   dx_t = d_t G_t B_t + D dy_t,
//   dd_t = x_t^T G_t B_t + A a_t <G_t, S_{t-1}>,   dA = sum d_t a_t <G_t, S_{t-1}>.
template <class T>
void reverse_token(const SsdBackwardArgs& a, int64_t token, int64_t h, const StepSize& step,
                   const double* before, double* G, Sums* sums) {
  const int64_t P = a.P, N = a.N, g = h / (a.H / a.G);
  const T* x = a.x.as<T>() + token * a.x_stride + h * P;
  const T* Bt = a.Bm.as<T>() + token * a.B_stride + g * N;
  const T* Ct = a.Cm.as<T>() + token * a.C_stride + g * N;
  const T* dy = a.dy.as<T>() + token * a.dy_stride + h * P;
  const T* D = a.D.as<T>();
  T* dx = a.dx.as<T>() + token * a.dx_stride + h * P;
  double* dB = &sums->dB[(token * a.G + g) * N];
  double* dC = &sums->dC[(token * a.G + g) * N];
  const double A = a.A.as<T>()[h], d = step.d, decay = std::exp(d * A);
  double carried = 0, driven = 0;  // <G_t, S_{t-1}> and x_t^T G_t B_t
  for (int64_t p = 0; p < P; ++p) {
    double GB = 0;
    for (int64_t n = 0; n < N; ++n) {
      double& G_pn = G[p * N + n];
      const double S = decay * before[p * N + n] + d * x[p] * Bt[n];
      G_pn += static_cast<double>(dy[p]) * Ct[n];
      dC[n] += S * dy[p];
      dB[n] += d * G_pn * x[p];
      GB += G_pn * Bt[n];
      carried += G_pn * before[p * N + n];
      G_pn *= decay;
    }
    driven += GB * x[p];
    const double skip = D != nullptr ? D[a.D_has_hdim ? h * P + p : h] : T(0);
    dx[p] = static_cast<T>(d * GB + skip * dy[p]);
    sums->dD[h * P + p] += static_cast<double>(dy[p]) * x[p];
  }
  const double ddt = (driven + A * decay * carried) * step.derivative;
  a.ddt.as<T>()[token * a.ddt_stride + h] = static_cast<T>(ddt);
  sums->ddt_bias[h] += ddt;
  sums->dA[h] += d * decay * carried;
}

template <class T>
void backward_head(const SsdBackwardArgs& a, int64_t b, int64_t h, const std::vector<Place>& row,
                   Sums* sums) {
  const int64_t PN = a.P * a.N;
  const Trace trace = record<T>(a, b, h, row);
  std::vector<double> G(PN);
  load_states((a.dST + (b * a.H + h) * PN).as<T>(), PN, G.data());
  for (int64_t t = a.L - 1; t >= 0; --t) {
    const int64_t token = b * a.L + t;
    if (row[t] == Place::kPadding) {
      T* dx = a.dx.as<T>() + token * a.dx_stride + h * a.P;
      std::fill(dx, dx + a.P, T(0));
      a.ddt.as<T>()[token * a.ddt_stride + h] = T(0);
      continue;
    }
    reverse_token<T>(a, token, h, trace.steps[t], &trace.before[t * PN], G.data(), sums);
    if (row[t] == Place::kReset) {
      for (int64_t i = 0; i < PN; ++i) sums->dS_reset[h * PN + i] += G[i];
      std::fill(G.begin(), G.end(), 0.0);
    }
  }
  if (T* dS0 = (a.dS0 + (b * a.H + h) * PN).as<T>()) {
    for (int64_t i = 0; i < PN; ++i) dS0[i] = static_cast<T>(G[i]);
  }
}

template <class T>
void add_to(Buf out, const std::vector<double>& sum) {
  if (!out) return;
  T* to = out.as<T>();
  for (size_t i = 0; i < sum.size(); ++i) to[i] = static_cast<T>(to[i] + sum[i]);
}

template <class T>
void store_sums(const SsdBackwardArgs& a, const Sums& sums) {
  const int64_t GN = a.G * a.N;
  for (int64_t token = 0; token < a.B * a.L; ++token) {
    for (int64_t i = 0; i < GN; ++i) {
      a.dBm.as<T>()[token * a.dB_stride + i] = static_cast<T>(sums.dB[token * GN + i]);
      a.dCm.as<T>()[token * a.dC_stride + i] = static_cast<T>(sums.dC[token * GN + i]);
    }
  }
  add_to<T>(a.ddt_bias, sums.ddt_bias);
  add_to<T>(a.dA, sums.dA);
  add_to<T>(a.dS_reset, sums.dS_reset);
  if (a.D_has_hdim) {
    add_to<T>(a.dD, sums.dD);
    return;
  }
  std::vector<double> per_head(a.H);
  for (int64_t i = 0; i < a.H * a.P; ++i) per_head[i / a.P] += sums.dD[i];
  add_to<T>(a.dD, per_head);
}

}  // namespace

void ssd_forward(Stream&, const SsdArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    for (int64_t b = 0; b < a.B; ++b) {
      const std::vector<Place> row = places((a.doc_ids + b * a.L).as<int32_t>(), a.L);
      for (int64_t h = 0; h < a.H; ++h) forward_head<T>(a, b, h, row);
    }
  });
}

void ssd_backward(Stream&, const SsdBackwardArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    const int64_t BC = a.B * a.L * a.G * a.N, HP = a.H * a.P;
    Sums sums{std::vector<double>(BC),  std::vector<double>(BC), std::vector<double>(a.H),
              std::vector<double>(a.H), std::vector<double>(HP), std::vector<double>(HP * a.N)};
    for (int64_t h = 0; h < a.H; ++h) {
      for (int64_t b = 0; b < a.B; ++b) {
        const std::vector<Place> row = places((a.doc_ids + b * a.L).as<int32_t>(), a.L);
        backward_head<T>(a, b, h, row, &sums);
      }
    }
    store_sums<T>(a, sums);
  });
}

void ssd_step(Stream&, const SsdStepArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    const int64_t PN = a.P * a.N;
    std::vector<double> S(PN);
    for (int64_t b = 0; b < a.B; ++b) {
      for (int64_t h = 0; h < a.H; ++h) {
        const int64_t g = h / (a.H / a.G);
        const Buf state = a.S + (b * a.s_stride + h * PN);
        for (int64_t i = 0; i < PN; ++i) S[i] = static_cast<double>(load_state<T>(state, i));
        const double raw = static_cast<double>(a.dt.as<T>()[b * a.dt_stride + h]) +
                           static_cast<double>(a.dt_bias.as<T>()[h]);
        const double d = step_size(raw, a.dt_min, a.dt_max).d;
        const T* x = a.x.as<T>() + b * a.x_stride + h * a.P;
        advance(S.data(), a.P, a.N, std::exp(d * a.A.as<T>()[h]), d, x,
                a.Bm.as<T>() + b * a.B_stride + g * a.N);
        read_out(a, h, S.data(), x, a.Cm.as<T>() + b * a.C_stride + g * a.N,
                 a.y.as<T>() + b * a.y_stride + h * a.P);
        for (int64_t i = 0; i < PN; ++i) {
          store_state<T>(state, i, static_cast<T>(S[i]));
        }
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
