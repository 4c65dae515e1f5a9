// SPDX-License-Identifier: Apache-2.0
// IEEE half precision as a storage type: 1 sign, 5 exponent (bias 15) and 10 mantissa bits.
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/bf16.h"

namespace mamba {

struct f16 {
  uint16_t bits;
};

// Exact.
MAMBA_INLINE float to_f32(f16 v) {
  const uint32_t sign = uint32_t{v.bits & 0x8000u} << 16;
  const uint32_t exponent = (v.bits >> 10) & 31u;
  const uint32_t mantissa = v.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t bits =
      sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest, ties to even; from 65520 on that is infinity. NaN stays NaN, quiet.
MAMBA_INLINE f16 to_f16(float value) {
  uint32_t u;
  memcpy(&u, &value, sizeof u);
  const uint32_t sign = u >> 16 & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return f16{static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu))};
  }
  if (magnitude >= 0x477ff000u) return f16{static_cast<uint16_t>(sign | 0x7c00u)};  // 65520
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
    float rest;
    memcpy(&rest, &magnitude, sizeof rest);
    // At 0.5 a step of f32 is 2^-24, so the addition rounds as wanted and leaves the steps below.
    rest += 0.5f;
    uint32_t steps;
    memcpy(&steps, &rest, sizeof steps);
    return f16{static_cast<uint16_t>(sign | (steps - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return f16{static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
}

}  // namespace mamba
