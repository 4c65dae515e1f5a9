// SPDX-License-Identifier: Apache-2.0
// The search for scales of a group of weights. All errors are sums of w (x - x')^2. A group has a
// length known to the compiler, so that the loops over it become vector code.
#pragma once

#include <algorithm>
#include <cmath>

#include "base/f16.h"

namespace mamba::quant {

// To the nearest whole number, ties to even, for |v| < 2^22.
inline float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }
inline float clamp(float v, float low, float high) {
  const float raised = v < low ? low : v;
  return raised > high ? high : raised;
}
inline float round_to_f16(float v) { return to_f32(to_f16(v)); }

// Codes that are whole numbers in [low, high].
struct Whole {
  float low, high;
  float operator()(float v) const { return clamp(nearest(v), low, high); }
};

// sum of term(i): eight partial sums, so that they need not wait for each other.
template <int n, class Term>
float sum_of(Term term) {
  float part[8] = {};
  for (int i = 0; i < n; i += 8) {
    for (int j = 0; j < 8; ++j) part[j] += term(i + j);
  }
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

// 1 / scale, or 0 where that would be no number of use.
inline float inverse(float scale) {
  const float inv = 1 / scale;
  return std::isfinite(inv) ? inv : 0.0f;
}

// The error of x' = scale * code(x / scale).
template <int n, class Code>
float scale_error(const float* x, const float* w, float scale, Code code) {
  const float inv = inverse(scale);
  return sum_of<n>([&](int i) {
    const float off = x[i] - scale * code(x[i] * inv);
    return w[i] * off * off;
  });
}

// The scale for which x is nearest to scale * code, for the codes that inv = 1 / scale gives.
template <int n, class Code>
float refit_scale(const float* x, const float* w, float inv, Code code, float* gain) {
  float xq = 0, qq = 0;
  {
    float px[8] = {}, pq[8] = {};
    for (int i = 0; i < n; i += 8) {
      for (int j = 0; j < 8; ++j) {
        const float q = code(x[i + j] * inv), wq = w[i + j] * q;
        px[j] += wq * x[i + j];
        pq[j] += wq * q;
      }
    }
    for (int j = 0; j < 8; ++j) xq += px[j], qq += pq[j];
  }
  *gain = qq > 0 ? xq * (xq / qq) : 0;  // how much less the error is than that of zeros
  return qq > 0 ? xq / qq : 0;
}

// The scale, of either sign, with the least error that a search finds: the largest |x| is put at
// each end of the codes and at places around it, a third of them before the end and two thirds
// beyond it (to clip a value pays), and each is refitted. `step` in codes.
template <int n, class Code>
float search_scale(const float* x, const float* w, Code code, float low, float high, int steps,
                   float step) {
  float largest = 0;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  float best = 0, best_gain = 0;
  if (!(std::fabs(largest) > 1e-30f)) return 0;
  for (const float end : {low, high}) {
    for (int i = -steps; i <= 2 * steps; ++i) {
      const float at = end + (end < 0 ? -step : step) * static_cast<float>(i);
      float gain = 0;
      const float scale = refit_scale<n>(x, w, at / largest, code, &gain);
      if (gain > best_gain) best = scale, best_gain = gain;
    }
    if (low == -high) break;  // the other sign gives the same
  }
  return best;
}

// The best scale among f16 numbers near `scale`: refitted as long as that helps.
template <int n, class Code>
float settle_scale(const float* x, const float* w, Code code, float scale) {
  scale = round_to_f16(scale);
  float error = scale_error<n>(x, w, scale, code);
  for (int round = 0; round < 4; ++round) {
    float gain = 0;
    const float next = round_to_f16(refit_scale<n>(x, w, inverse(scale), code, &gain));
    const float next_error = scale_error<n>(x, w, next, code);
    if (!(next_error < error)) break;
    scale = next, error = next_error;
  }
  return scale;
}

// x' = scale * q + offset with whole q in [0, high].
struct Affine {
  float scale = 0, offset = 0;
};

template <int n>
float affine_error(const float* x, const float* w, Affine a, float high) {
  const Whole code{0, high};
  const float inv = inverse(a.scale);
  return sum_of<n>([&](int i) {
    const float off = x[i] - (a.scale * code((x[i] - a.offset) * inv) + a.offset);
    return w[i] * off * off;
  });
}

// Least squares for the codes that `a` gives; the offset at most `max_offset`.
template <int n>
Affine refit_affine(const float* x, const float* w, Affine a, float high, float max_offset) {
  const Whole code{0, high};
  const float inv = inverse(a.scale);
  float sw[8] = {}, sq[8] = {}, sqq[8] = {}, sx[8] = {}, sxq[8] = {};
  for (int i = 0; i < n; i += 8) {
    for (int j = 0; j < 8; ++j) {
      const float v = x[i + j], wi = w[i + j], q = code((v - a.offset) * inv);
      sw[j] += wi, sq[j] += wi * q, sqq[j] += wi * q * q, sx[j] += wi * v, sxq[j] += wi * v * q;
    }
  }
  double W = 0, Q = 0, QQ = 0, X = 0, XQ = 0;
  for (int j = 0; j < 8; ++j) {
    W += double{sw[j]}, Q += double{sq[j]}, QQ += double{sqq[j]};
    X += double{sx[j]}, XQ += double{sxq[j]};
  }
  const double determinant = W * QQ - Q * Q;
  if (determinant > 0) {
    const double scale = (W * XQ - Q * X) / determinant, offset = (QQ * X - Q * XQ) / determinant;
    if (offset <= double{max_offset}) {
      return {static_cast<float>(scale), static_cast<float>(offset)};
    }
  }
  if (QQ <= 0) return a;
  const double fixed = std::min<double>(double{a.offset}, double{max_offset});
  return {static_cast<float>((XQ - fixed * Q) / QQ), static_cast<float>(fixed)};
}

// The scale >= 0 and offset with the least error that a search finds.
template <int n>
Affine search_affine(const float* x, const float* w, float high, float max_offset) {
  const float low_x = std::min(*std::min_element(x, x + n), max_offset);
  const float high_x = std::max(*std::max_element(x, x + n), low_x);
  if (!(high_x - low_x > 1e-30f)) return {0, low_x};
  const float width = high_x - low_x;
  Affine best{width / high, low_x};
  float best_error = affine_error<n>(x, w, best, high);
  const auto consider = [&](Affine a) {
    for (int round = 0; round < 3 && a.scale >= 0; ++round) {
      a = refit_affine<n>(x, w, a, high, max_offset);
      const float error = affine_error<n>(x, w, a, high);
      if (!(error < best_error) || a.scale < 0) return;
      best = a, best_error = error;
    }
  };
  // Both ends moved inwards by parts of a code: what lies beyond is clipped.
  for (int below = -1; below <= 4; ++below) {
    for (int above = -1; above <= 4; ++above) {
      const float code = width / high, cut = 0.3f * code;
      const float from = std::min(low_x + cut * static_cast<float>(below), max_offset);
      const float to = high_x - cut * static_cast<float>(above);
      if (to > from) consider({(to - from) / high, from});
    }
  }
  return best;
}

}  // namespace mamba::quant
