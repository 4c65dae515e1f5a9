// SPDX-License-Identifier: Apache-2.0
// Reference of scan: one channel at a time, in the order of the formula, f32 and f64.
#include <cmath>
#include <vector>

#include "kernels/scan.h"
#include "kernels/state_ref.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {
namespace {

enum class Token : uint8_t { kPlain, kReset, kPadding };

// Tokens of sequence b: the first token that is no padding continues h0 whatever its id.
std::vector<Token> tokens_of(const CBuf& doc_ids, int64_t b, int64_t L) {
  std::vector<Token> tokens(static_cast<size_t>(L), Token::kPlain);
  if (!doc_ids) return tokens;
  const int32_t* ids = doc_ids.as<int32_t>() + b * L;
  int32_t last = -1;
  for (int64_t t = 0; t < L; ++t) {
    if (ids[t] < 0) {
      tokens[t] = Token::kPadding;
      continue;
    }
    if (last >= 0 && ids[t] != last) tokens[t] = Token::kReset;
    last = ids[t];
  }
  return tokens;
}

template <class T>
T sigmoid_of(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

// delta before softplus.
template <class T, class Args>
T raw_delta(const Args& p, int64_t row, int64_t c) {
  const T x = p.delta.template as<T>()[row * p.delta_stride + c];
  return p.delta_bias ? x + p.delta_bias.template as<T>()[c] : x;
}

template <class T>
T step_size(T raw, bool delta_softplus) {
  return delta_softplus && raw <= T(20) ? std::log1p(std::exp(raw)) : raw;
}

// Where B[n] (or C[n]) of token `row` and channel c begins.
template <class Args>
int64_t bc_at(const Args& p, int64_t row, int64_t c, int64_t stride) {
  if (p.bc == ScanBC::kConstant) return c * p.N;
  return row * stride + c / (p.E / p.G) * p.N;
}

// h <- exp(d A) h + d B u for one token and channel.
template <class T, class Args>
void advance(const Args& p, int64_t row, int64_t c, std::vector<T>& h) {
  const T d = step_size(raw_delta<T>(p, row, c), p.delta_softplus);
  const T u = p.u.template as<T>()[row * p.u_stride + c];
  const T* B = p.Bm.template as<T>() + bc_at(p, row, c, p.B_stride);
  const T* A = p.A_t.template as<T>();
  for (int64_t n = 0; n < p.N; ++n) h[n] = std::exp(d * A[n * p.E + c]) * h[n] + d * B[n] * u;
}

// sum_n C h + D u, before the gate.
template <class T, class Args>
T output(const Args& p, int64_t row, int64_t c, const std::vector<T>& h) {
  const T* C = p.Cm.template as<T>() + bc_at(p, row, c, p.C_stride);
  T y = 0;
  for (int64_t n = 0; n < p.N; ++n) y += C[n] * h[n];
  if (p.D) y += p.D.template as<T>()[c] * p.u.template as<T>()[row * p.u_stride + c];
  return y;
}

template <class T, class Args>
T gate_of(const Args& p, int64_t row, int64_t c) {
  if (!p.z) return T(1);
  const T z = p.z.template as<T>()[row * p.z_stride + c];
  return z * sigmoid_of(z);
}

template <class T, class Args>
std::vector<T> first_state(const Args& p, int64_t b, int64_t c) {
  std::vector<T> h(static_cast<size_t>(p.N), T(0));
  if (!p.h0) return h;
  for (int64_t n = 0; n < p.N; ++n) h[n] = p.h0.template as<T>()[b * p.h_stride + n * p.E + c];
  return h;
}

template <class T>
void forward(const ScanArgs& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    const std::vector<Token> tokens = tokens_of(p.doc_ids, b, p.L);
    for (int64_t c = 0; c < p.E; ++c) {
      std::vector<T> h = first_state<T>(p, b, c);
      for (int64_t t = 0; t < p.L; ++t) {
        const int64_t row = b * p.L + t;
        T& y = p.y.as<T>()[row * p.y_stride + c];
        if (tokens[t] == Token::kPadding) {
          y = 0;
          continue;
        }
        if (tokens[t] == Token::kReset) h.assign(h.size(), T(0));
        advance(p, row, c, h);
        y = output(p, row, c, h) * gate_of<T>(p, row, c);
      }
      if (!p.hT) continue;
      for (int64_t n = 0; n < p.N; ++n) p.hT.as<T>()[b * p.h_stride + n * p.E + c] = h[n];
    }
  }
}

// Sums over tokens, channels and sequences, in double.
struct Sums {
  std::vector<double> dA, dB, dC, dD, ddelta_bias;
};

// The reverse walk over the tokens of channel c of sequence b; states[t] is h before token t (zero
// after a reset), states_after[t] the one after it.
template <class T>
struct ChannelBackward {
  const ScanBackwardArgs& p;
  Sums& sums;
  int64_t b, c;
  std::vector<T> g;  // (N): gradient of the state after the token at hand

  void padding(int64_t row) {
    p.du.as<T>()[row * p.du_stride + c] = 0;
    p.ddelta.as<T>()[row * p.ddelta_stride + c] = 0;
    if (p.dz) p.dz.as<T>()[row * p.dz_stride + c] = 0;
  }

  // y = output * z sigmoid(z). Returns the gradient of the ungated output and writes dz.
  T ungate(int64_t row, const std::vector<T>& after) {
    const T dy = p.dy.as<T>()[row * p.dy_stride + c];
    if (!p.z) return dy;
    const T z = p.z.as<T>()[row * p.z_stride + c];
    const T s = sigmoid_of(z);
    if (p.dz) {
      p.dz.as<T>()[row * p.dz_stride + c] =
          dy * output(p, row, c, after) * s * (T(1) + z * (T(1) - s));
    }
    return dy * z * s;
  }

  void token(int64_t row, const std::vector<T>& before, const std::vector<T>& after) {
    const T raw = raw_delta<T>(p, row, c);
    const T d = step_size(raw, p.delta_softplus);
    const T u = p.u.as<T>()[row * p.u_stride + c];
    const T dout = ungate(row, after);
    const int64_t b_at = bc_at(p, row, c, p.B_stride), c_at = bc_at(p, row, c, p.C_stride);
    const int64_t sum_at = p.bc == ScanBC::kConstant
                               ? c * p.N
                               : (row * p.G + c / (p.E / p.G)) * p.N;  // in (B, L, G, N)
    T g_B = 0, g_Aah = 0;                                              // sum_n g B, sum_n g A a h
    for (int64_t n = 0; n < p.N; ++n) {
      const T A = p.A_t.as<T>()[n * p.E + c], B = p.Bm.as<T>()[b_at + n];
      const T a = std::exp(d * A);
      g[n] += p.Cm.as<T>()[c_at + n] * dout;
      g_B += g[n] * B;
      g_Aah += g[n] * A * a * before[n];
      sums.dA[n * p.E + c] += d * a * g[n] * before[n];
      sums.dB[sum_at + n] += g[n] * d * u;
      sums.dC[sum_at + n] += dout * after[n];
      g[n] *= a;
    }
    const T D = p.D ? p.D.as<T>()[c] : T(0);
    const T dd = g_B * u + g_Aah;
    const T draw = p.delta_softplus && raw <= T(20) ? dd * sigmoid_of(raw) : dd;
    p.du.as<T>()[row * p.du_stride + c] = D * dout + d * g_B;
    p.ddelta.as<T>()[row * p.ddelta_stride + c] = draw;
    sums.ddelta_bias[c] += draw;
    sums.dD[c] += dout * u;
  }
};

template <class T>
void backward_channel(const ScanBackwardArgs& p, const std::vector<Token>& tokens, int64_t b,
                      int64_t c, Sums& sums) {
  std::vector<std::vector<T>> before(static_cast<size_t>(p.L)), after(static_cast<size_t>(p.L));
  std::vector<T> h = first_state<T>(p, b, c);
  for (int64_t t = 0; t < p.L; ++t) {
    if (tokens[t] == Token::kPadding) continue;
    if (tokens[t] == Token::kReset) h.assign(h.size(), T(0));
    before[t] = h;
    advance(p, b * p.L + t, c, h);
    after[t] = h;
  }
  ChannelBackward<T> walk{p, sums, b, c, std::vector<T>(static_cast<size_t>(p.N), T(0))};
  for (int64_t n = 0; n < p.N && p.dhT; ++n) {
    walk.g[n] = p.dhT.as<T>()[(b * p.N + n) * p.E + c];
  }
  for (int64_t t = p.L - 1; t >= 0; --t) {
    if (tokens[t] == Token::kPadding) {
      walk.padding(b * p.L + t);
      continue;
    }
    walk.token(b * p.L + t, before[t], after[t]);
    if (tokens[t] == Token::kReset) walk.g.assign(walk.g.size(), T(0));
  }
  for (int64_t n = 0; n < p.N && p.dh0; ++n) {
    p.dh0.as<T>()[(b * p.N + n) * p.E + c] = walk.g[n];
  }
}

template <class T>
void add_sums(const Buf& to, const std::vector<double>& sums) {
  for (size_t i = 0; i < sums.size() && to; ++i) to.as<T>()[i] += static_cast<T>(sums[i]);
}

template <class T>
void write_bc(const ScanBackwardArgs& p, const Buf& to, int64_t stride,
              const std::vector<double>& sums) {
  if (p.bc == ScanBC::kConstant) return add_sums<T>(to, sums);
  const int64_t width = p.G * p.N;
  for (int64_t row = 0; row < p.B * p.L; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      to.as<T>()[row * stride + i] = static_cast<T>(sums[row * width + i]);
    }
  }
}

template <class T>
void backward(const ScanBackwardArgs& p) {
  const auto zeros = [](int64_t count) {
    return std::vector<double>(static_cast<size_t>(count), 0.0);
  };
  const int64_t bc = p.bc == ScanBC::kConstant ? p.E * p.N : p.B * p.L * p.G * p.N;
  Sums sums{zeros(p.N * p.E), zeros(bc), zeros(bc), zeros(p.E), zeros(p.E)};
  for (int64_t b = 0; b < p.B; ++b) {
    const std::vector<Token> tokens = tokens_of(p.doc_ids, b, p.L);
    for (int64_t c = 0; c < p.E; ++c) backward_channel<T>(p, tokens, b, c, sums);
  }
  add_sums<T>(p.dA_t, sums.dA);
  add_sums<T>(p.dD, sums.dD);
  add_sums<T>(p.ddelta_bias, sums.ddelta_bias);
  write_bc<T>(p, p.dBm, p.dB_stride, sums.dB);
  write_bc<T>(p, p.dCm, p.dC_stride, sums.dC);
}

template <class T>
void one_token(const ScanStepArgs& p) {
  std::vector<T> h(static_cast<size_t>(p.N));
  for (int64_t row = 0; row < p.B; ++row) {
    for (int64_t c = 0; c < p.E; ++c) {
      const Buf state = p.h + (row * p.h_stride + c);  // (N), stride E
      for (int64_t n = 0; n < p.N; ++n) h[n] = load_state<T>(state, n * p.E);
      advance(p, row, c, h);
      for (int64_t n = 0; n < p.N; ++n) store_state<T>(state, n * p.E, h[n]);
      p.y.as<T>()[row * p.y_stride + c] = output(p, row, c, h) * gate_of<T>(p, row, c);
    }
  }
}

}  // namespace

void scan_forward(Stream&, const ScanArgs& p) noexcept {
  with_float(p.u.dtype, [&]<class T>() { forward<T>(p); });
}

void scan_backward(Stream&, const ScanBackwardArgs& p) noexcept {
  with_float(p.u.dtype, [&]<class T>() { backward<T>(p); });
}

void scan_step(Stream&, const ScanStepArgs& p) noexcept {
  with_float(p.u.dtype, [&]<class T>() { one_token<T>(p); });
}

}  // namespace mamba::MAMBA_ISA
