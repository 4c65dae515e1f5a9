// SPDX-License-Identifier: Apache-2.0
// f16 in memory, f32 in registers; exact.
#pragma once

#include "base/f16.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {

MAMBA_INLINE F32 load_f16(const f16* p) {
#if defined(__AVX512F__)
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
#elif defined(__F16C__)
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))};
#else
  float v[F32::kLanes];
  for (int i = 0; i < F32::kLanes; ++i) v[i] = to_f32(p[i]);
  return F32::load(v);
#endif
}

}  // namespace mamba::MAMBA_ISA
