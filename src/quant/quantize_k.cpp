// SPDX-License-Identifier: Apache-2.0
// Blocks of 256 weights: groups are fitted alone, their scales rounded to whole multiples of the
// block's, and then scales and codes improved in turn with what was rounded already.
#include "quant/quantize_k.h"

#include <cmath>
#include <cstring>

#include "quant/fit.h"

namespace mamba::quant {
namespace {

constexpr int kGroups = 8, kGroup = 32;     // Q4_K, Q5_K
constexpr int kGroups6 = 16, kGroup6 = 16;  // Q6_K
constexpr int kRounds = 3;

// In f16, and not 0 where v is not: whole multiples of the least number still hold small weights.
float block_scale(float v) {
  constexpr float kLeast = 0x1p-24f;
  return std::fabs(v) >= kLeast || v == 0 ? round_to_f16(v) : std::copysign(kLeast, v);
}

// Q4_K and Q5_K: x' = d sc q - dmin mn, with sc and mn in 0..63 and q in 0..high.
struct TwoLevel {
  float d = 0, dmin = 0;
  float sc[kGroups] = {}, mn[kGroups] = {};
  Affine group(int g) const { return {d * sc[g], -dmin * mn[g]}; }
};

float group_error(const float* x, const float* w, const TwoLevel& t, int g, float high) {
  return affine_error<kGroup>(x + g * kGroup, w + g * kGroup, t.group(g), high);
}

float block_error(const float* x, const float* w, const TwoLevel& t, float high) {
  float error = 0;
  for (int g = 0; g < kGroups; ++g) error += group_error(x, w, t, g, high);
  return error;
}

// d and dmin by least squares for the codes that `t` gives.
void refit_block(const float* x, const float* w, float high, TwoLevel* t) {
  const Whole code{0, high};
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;  // a = sc q, b = -mn
  for (int g = 0; g < kGroups; ++g) {
    const Affine of = t->group(g);
    const float inv = inverse(of.scale);
    for (int i = g * kGroup; i < (g + 1) * kGroup; ++i) {
      const float a = t->sc[g] * code((x[i] - of.offset) * inv), b = -t->mn[g];
      aa += double{w[i] * a * a}, ab += double{w[i] * a * b}, bb += double{w[i] * b * b};
      ax += double{w[i] * a * x[i]}, bx += double{w[i] * b * x[i]};
    }
  }
  const double determinant = aa * bb - ab * ab;
  TwoLevel next = *t;
  if (determinant > 1e-6 * aa * bb) {
    next.d = static_cast<float>((ax * bb - bx * ab) / determinant);
    next.dmin = static_cast<float>((bx * aa - ax * ab) / determinant);
  } else if (aa > 0) {
    next.d = static_cast<float>((ax - ab * double{t->dmin}) / aa);
  }
  next.d = round_to_f16(next.d);
  next.dmin = round_to_f16(next.dmin);
  if (next.d < 0 || next.dmin < 0) return;
  if (block_error(x, w, next, high) < block_error(x, w, *t, high)) *t = next;
}

// The neighbours of a group's two numbers; true if one was better.
bool improve_group(const float* x, const float* w, int g, float high, TwoLevel* t) {
  TwoLevel trial = *t;
  float best = group_error(x, w, *t, g, high);
  bool better = false;
  const float sc = t->sc[g], mn = t->mn[g];
  for (float s = sc - 1; s <= sc + 1; ++s) {
    for (float m = mn - 1; m <= mn + 1; ++m) {
      if (s < 0 || s > 63 || m < 0 || m > 63 || (s == sc && m == mn)) continue;
      trial.sc[g] = s, trial.mn[g] = m;
      const float error = group_error(x, w, trial, g, high);
      if (error < best) t->sc[g] = s, t->mn[g] = m, best = error, better = true;
    }
  }
  return better;
}

TwoLevel fit_two_levels(const float* x, const float* w, float high) {
  Affine alone[kGroups];
  float largest_scale = 0, largest_min = 0;
  for (int g = 0; g < kGroups; ++g) {
    alone[g] = search_affine<kGroup>(x + g * kGroup, w + g * kGroup, high, 0);
    largest_scale = std::max(largest_scale, alone[g].scale);
    largest_min = std::max(largest_min, -alone[g].offset);
  }
  TwoLevel t;
  t.d = block_scale(largest_scale / 63);
  t.dmin = block_scale(largest_min / 63);
  const float inv_d = inverse(t.d), inv_min = inverse(t.dmin);
  for (int g = 0; g < kGroups; ++g) {
    t.sc[g] = clamp(nearest(alone[g].scale * inv_d), 0, 63);
    t.mn[g] = clamp(nearest(-alone[g].offset * inv_min), 0, 63);
  }
  for (int round = 0; round < kRounds; ++round) {
    bool better = false;
    for (int g = 0; g < kGroups; ++g) better = improve_group(x, w, g, high, &t) || better;
    refit_block(x, w, high, &t);
    if (!better) break;
  }
  return t;
}

void codes_of(const float* x, const TwoLevel& t, float high, uint8_t* codes) {
  const Whole code{0, high};
  for (int g = 0; g < kGroups; ++g) {
    const Affine of = t.group(g);
    const float inv = inverse(of.scale);
    for (int i = g * kGroup; i < (g + 1) * kGroup; ++i) {
      codes[i] = static_cast<uint8_t>(code((x[i] - of.offset) * inv));
    }
  }
}

// The inverse of scale_of_group.
void pack_scales(const TwoLevel& t, uint8_t scales[12]) {
  std::memset(scales, 0, 12);
  const auto bits = [](float v) { return static_cast<unsigned>(v); };
  for (int g = 0; g < kGroups; ++g) {
    const unsigned sc = bits(t.sc[g]), mn = bits(t.mn[g]);
    const auto add = [&](int byte, unsigned value) {
      scales[byte] = static_cast<uint8_t>(scales[byte] | value);
    };
    if (g < 4) {
      add(g, sc);
      add(g + 4, mn);
    } else {
      add(g + 4, (sc & 15) | (mn & 15) << 4);
      add(g - 4, sc >> 4 << 6);
      add(g, mn >> 4 << 6);
    }
  }
}

template <class Block>
void fill_block(const float* x, const float* w, float high, Block* b, uint8_t* codes) {
  const TwoLevel t = fit_two_levels(x, w, high);
  b->d = to_f16(t.d);
  b->dmin = to_f16(t.dmin);
  pack_scales(t, b->scales);
  codes_of(x, t, high, codes);
  std::memset(b->qs, 0, sizeof b->qs);
  for (int g = 0; g < kGroups; ++g) {
    for (int i = 0; i < kGroup; ++i) {
      uint8_t& byte = b->qs[g / 2 * kGroup + i];
      byte = static_cast<uint8_t>(byte | (codes[g * kGroup + i] & 15) << (g % 2 * 4));
    }
  }
}

// Q6_K: x' = d sc q with sc in -128..127 and q in -32..31.
struct SixBits {
  float d = 0;
  float sc[kGroups6] = {};
};
constexpr Whole kCode6{-32, 31};

float error_of(const float* x, const float* w, const SixBits& s, int g) {
  return scale_error<kGroup6>(x + g * kGroup6, w + g * kGroup6, s.d * s.sc[g], kCode6);
}

float error_of(const float* x, const float* w, const SixBits& s) {
  float error = 0;
  for (int g = 0; g < kGroups6; ++g) error += error_of(x, w, s, g);
  return error;
}

void refit_block(const float* x, const float* w, SixBits* s) {
  double aa = 0, ax = 0;
  for (int g = 0; g < kGroups6; ++g) {
    const float inv = inverse(s->d * s->sc[g]);
    for (int i = g * kGroup6; i < (g + 1) * kGroup6; ++i) {
      const float a = s->sc[g] * kCode6(x[i] * inv);
      aa += double{w[i] * a * a}, ax += double{w[i] * a * x[i]};
    }
  }
  if (!(aa > 0)) return;
  SixBits next = *s;
  next.d = round_to_f16(static_cast<float>(ax / aa));
  if (error_of(x, w, next) < error_of(x, w, *s)) *s = next;
}

bool improve_group(const float* x, const float* w, int g, SixBits* s) {
  SixBits trial = *s;
  float best = error_of(x, w, *s, g);
  bool better = false;
  const float sc = s->sc[g];
  for (float v = sc - 2; v <= sc + 2; ++v) {
    if (v < -128 || v > 127 || v == sc) continue;
    trial.sc[g] = v;
    const float error = error_of(x, w, trial, g);
    if (error < best) s->sc[g] = v, best = error, better = true;
  }
  return better;
}

SixBits fit_six_bits(const float* x, const float* w) {
  float alone[kGroups6], largest = 0;
  for (int g = 0; g < kGroups6; ++g) {
    alone[g] = search_scale<kGroup6>(x + g * kGroup6, w + g * kGroup6, kCode6, -32, 31, 6, 0.15f);
    if (std::fabs(alone[g]) > std::fabs(largest)) largest = alone[g];
  }
  SixBits s;
  s.d = block_scale(largest / -128);
  const float inv = inverse(s.d);
  for (int g = 0; g < kGroups6; ++g) s.sc[g] = clamp(nearest(alone[g] * inv), -128, 127);
  for (int round = 0; round < kRounds; ++round) {
    bool better = false;
    for (int g = 0; g < kGroups6; ++g) better = improve_group(x, w, g, &s) || better;
    refit_block(x, w, &s);
    if (!better) break;
  }
  return s;
}

}  // namespace

BlockQ4_K make_q4_k(const float* x, const float* w) {
  BlockQ4_K b;
  uint8_t codes[256];
  fill_block(x, w, 15, &b, codes);
  return b;
}

BlockQ5_K make_q5_k(const float* x, const float* w) {
  BlockQ5_K b;
  uint8_t codes[256];
  fill_block(x, w, 31, &b, codes);
  std::memset(b.qh, 0, sizeof b.qh);
  for (int e = 0; e < 256; ++e) {
    uint8_t& byte = b.qh[e % kGroup];
    byte = static_cast<uint8_t>(byte | (codes[e] >> 4) << e / kGroup);
  }
  return b;
}

BlockQ6_K make_q6_k(const float* x, const float* w) {
  BlockQ6_K b;
  const SixBits s = fit_six_bits(x, w);
  std::memset(&b, 0, sizeof b);
  b.d = to_f16(s.d);
  for (int g = 0; g < kGroups6; ++g) {
    b.scales[g] = static_cast<int8_t>(s.sc[g]);
    const float inv = inverse(s.d * s.sc[g]);
    for (int e = g * kGroup6; e < (g + 1) * kGroup6; ++e) {
      const unsigned code = static_cast<unsigned>(kCode6(x[e] * inv) + 32);
      const int half = e / 128, k = e % 128 / 32, i = e % 32;
      uint8_t& low = b.ql[64 * half + 32 * (k % 2) + i];
      uint8_t& high = b.qh[32 * half + i];
      low = static_cast<uint8_t>(low | (code & 15) << (k < 2 ? 0 : 4));
      high = static_cast<uint8_t>(high | (code >> 4) << 2 * k);
    }
  }
  return b;
}

}  // namespace mamba::quant
