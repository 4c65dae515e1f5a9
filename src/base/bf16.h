// SPDX-License-Identifier: Apache-2.0
// bfloat16 storage type: the upper half of an f32, rounded to nearest even.
// Everything is always_inline so that files compiled for one ISA leave no weak symbols behind.
#pragma once

#include <stdint.h>
#include <string.h>

#define MAMBA_INLINE inline __attribute__((always_inline))

namespace mamba {

struct bf16 {
  uint16_t bits;
};

MAMBA_INLINE float to_f32(bf16 v) {
  uint32_t u = static_cast<uint32_t>(v.bits) << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

MAMBA_INLINE bf16 to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

}  // namespace mamba
