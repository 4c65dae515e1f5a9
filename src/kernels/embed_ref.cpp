// SPDX-License-Identifier: Apache-2.0
// embed, reference.
#include "kernels/embed.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {

void embed_forward(Stream&, const EmbedArgs& a) noexcept {
  with_float(a.y.dtype, [&]<class T>() {
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t id = a.ids.as<int32_t>()[r];
      for (int64_t d = 0; d < a.dim; ++d) {
        T& y = a.y.as<T>()[r * a.dim + d];
        if (id < 0) {
          y = 0;
        } else if (a.weight.dtype == DType::kBF16) {
          y = to_f32(a.weight.as<bf16>()[id * a.dim + d]);
        } else {
          y = a.weight.as<T>()[id * a.dim + d];
        }
      }
    }
  });
}

void embed_backward(Stream&, const EmbedBackwardArgs& a) noexcept {
  with_float(a.dy.dtype, [&]<class T>() {
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t id = a.ids.as<int32_t>()[r];
      if (id < 0) continue;
      for (int64_t d = 0; d < a.dim; ++d) {
        a.dweight.as<T>()[id * a.dim + d] += a.dy.as<T>()[r * a.dim + d];
      }
    }
  });
}

}  // namespace mamba::MAMBA_ISA
