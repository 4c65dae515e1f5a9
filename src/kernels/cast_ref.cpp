// SPDX-License-Identifier: Apache-2.0
// cast, reference.
#include "kernels/cast.h"

namespace mamba::MAMBA_ISA {

void cast(Stream&, const CastArgs& a) noexcept {
  for (int64_t i = 0; i < a.count; ++i) {
    const float v = a.x.dtype == DType::kBF16 ? to_f32(a.x.as<bf16>()[i]) : a.x.as<float>()[i];
    if (a.y.dtype == DType::kBF16) {
      a.y.as<bf16>()[i] = to_bf16(v);
    } else {
      a.y.as<float>()[i] = v;
    }
  }
}

}  // namespace mamba::MAMBA_ISA
