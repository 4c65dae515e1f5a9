// SPDX-License-Identifier: Apache-2.0
// conv1d: the specification. A window of K-1 sources walks over the tokens of a row.
#include <cmath>
#include <vector>

#include "kernels/conv1d.h"
#include "kernels/state_ref.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {
namespace {

// Where a tap reads: a token t >= 0, the slot k of state_in as -2 - k, or zero.
using Source = int64_t;
constexpr Source kZero = -1;
Source state_slot(int64_t k) { return -2 - k; }
bool is_state(Source s) { return s <= -2; }

// Calls token(t, window) for every token of row b that is not padding, with the K-1 sources before
// it, oldest first, and returns the window after the last one.
template <class Args, class Body>
std::vector<Source> walk(const Args& a, int64_t b, Body&& token) {
  std::vector<Source> window;
  for (int64_t k = 0; k < a.K - 1; ++k) window.push_back(state_slot(k));
  bool first = true;
  int32_t document = 0;
  for (int64_t t = 0; t < a.L; ++t) {
    if (a.doc_ids) {
      const int32_t id = a.doc_ids.template as<int32_t>()[b * a.L + t];
      if (id < 0) continue;
      if (!first && id != document) window.assign(window.size(), kZero);
      document = id;
      first = false;
    }
    token(t, window);
    window.push_back(t);
    window.erase(window.begin());
  }
  return window;
}

// in[] of the contract.
template <class T, class Args>
T value(const Args& a, int64_t b, Source s, int64_t c) {
  if (s >= 0) return a.x.template as<T>()[(b * a.L + s) * a.x_stride + c];
  if (!is_state(s) || !a.state_in) return T(0);
  return load_state<T>(a.state_in, b * a.state_stride + (-2 - s) * a.C + c);
}

// bias[c] + sum_{j=0}^{K-1} weight[c, j] * in[b, t - (K-1) + j, c]
template <class T, class Args>
T pre_activation(const Args& a, int64_t b, int64_t t, const std::vector<Source>& window,
                 int64_t c) {
  const T* weight = a.weight.template as<T>() + c * a.K;
  double sum = a.bias ? a.bias.template as<T>()[c] : T(0);
  for (int64_t j = 0; j < a.K; ++j) {
    const Source s = j < a.K - 1 ? window[static_cast<size_t>(j)] : t;
    sum += static_cast<double>(weight[j]) * value<T>(a, b, s, c);
  }
  return static_cast<T>(sum);
}

template <class T>
void forward_row(const Conv1dArgs& a, int64_t b) {
  const auto y = [&](int64_t t) { return a.y.as<T>() + (b * a.L + t) * a.y_stride; };
  for (int64_t t = 0; t < a.L; ++t) {
    for (int64_t c = 0; c < a.C; ++c) y(t)[c] = 0;  // what padding keeps
  }
  const auto last = walk(a, b, [&](int64_t t, const std::vector<Source>& window) {
    for (int64_t c = 0; c < a.C; ++c) {
      const T pre = pre_activation<T>(a, b, t, window, c);
      y(t)[c] = a.silu ? pre / (1 + std::exp(-pre)) : pre;
    }
  });
  if (!a.state_out) return;
  // Slot k never reads a slot before k, so state_out may be state_in.
  for (int64_t k = 0; k < a.K - 1; ++k) {
    for (int64_t c = 0; c < a.C; ++c) {
      const T v = value<T>(a, b, last[static_cast<size_t>(k)], c);
      store_state<T>(a.state_out, b * a.state_stride + k * a.C + c, v);
    }
  }
}

// Sums of the gradients in double: dx and dstate_in of one row, dweight and dbias of all.
struct Gradients {
  std::vector<double> dx, dstate_in;   // (L, C), (K-1, C)
  std::vector<double> dweight, dbias;  // (C, K), (C)
};

template <class T>
void backward_row(const Conv1dBackwardArgs& a, int64_t b, Gradients& g) {
  g.dx.assign(static_cast<size_t>(a.L * a.C), 0);
  g.dstate_in.assign(static_cast<size_t>((a.K - 1) * a.C), 0);
  const auto add = [&](Source s, int64_t c, double v) {
    if (s >= 0) g.dx[static_cast<size_t>(s * a.C + c)] += v;
    if (is_state(s)) g.dstate_in[static_cast<size_t>((-2 - s) * a.C + c)] += v;
  };
  const auto last = walk(a, b, [&](int64_t t, const std::vector<Source>& window) {
    for (int64_t c = 0; c < a.C; ++c) {
      // dpre = dy * act'(pre)
      const double pre = pre_activation<T>(a, b, t, window, c);
      const double s = 1 / (1 + std::exp(-pre));
      const double slope = a.silu ? s * (1 + pre * (1 - s)) : 1;
      const double dpre = a.dy.as<T>()[(b * a.L + t) * a.dy_stride + c] * slope;
      for (int64_t j = 0; j < a.K; ++j) {
        const Source source = j < a.K - 1 ? window[static_cast<size_t>(j)] : t;
        g.dweight[static_cast<size_t>(c * a.K + j)] += dpre * value<T>(a, b, source, c);
        add(source, c, dpre * a.weight.as<T>()[c * a.K + j]);
      }
      g.dbias[static_cast<size_t>(c)] += dpre;
    }
  });
  for (int64_t k = 0; a.dstate_out && k < a.K - 1; ++k) {
    for (int64_t c = 0; c < a.C; ++c) {
      const T d = a.dstate_out.as<T>()[(b * (a.K - 1) + k) * a.C + c];
      add(last[static_cast<size_t>(k)], c, d);
    }
  }
}

}  // namespace

void conv1d_forward(Stream&, const Conv1dArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    for (int64_t b = 0; b < a.B; ++b) forward_row<T>(a, b);
  });
}

void conv1d_backward(Stream&, const Conv1dBackwardArgs& a) noexcept {
  with_float(a.x.dtype, [&]<class T>() {
    Gradients g;
    g.dweight.assign(static_cast<size_t>(a.C * a.K), 0);
    g.dbias.assign(static_cast<size_t>(a.C), 0);
    for (int64_t b = 0; b < a.B; ++b) {
      backward_row<T>(a, b, g);
      for (int64_t i = 0; i < a.L * a.C; ++i) {
        const int64_t t = i / a.C, c = i % a.C;
        a.dx.as<T>()[(b * a.L + t) * a.dx_stride + c] =
            static_cast<T>(g.dx[static_cast<size_t>(i)]);
      }
      const int64_t state = (a.K - 1) * a.C;
      for (int64_t i = 0; a.dstate_in && i < state; ++i) {
        a.dstate_in.as<T>()[b * state + i] = static_cast<T>(g.dstate_in[static_cast<size_t>(i)]);
      }
    }
    for (int64_t i = 0; i < a.C * a.K; ++i) {
      a.dweight.as<T>()[i] += static_cast<T>(g.dweight[static_cast<size_t>(i)]);
    }
    for (int64_t c = 0; a.dbias && c < a.C; ++c) {
      a.dbias.as<T>()[c] += static_cast<T>(g.dbias[static_cast<size_t>(c)]);
    }
  });
}

}  // namespace mamba::MAMBA_ISA
