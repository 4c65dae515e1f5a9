// SPDX-License-Identifier: Apache-2.0
// norm_linear for CUDA: one row in bf16 is normed by every warp for itself.
#include "kernels/linear_packed_cuda.cuh"
#include "kernels/linear_rows_cuda.cuh"
#include "kernels/step_sequence.h"

namespace mamba::cuda {

void norm_linear(Stream& stream, const NormLinearArgs& a) noexcept {
  CBuf weight = a.product.weight;
  int64_t stride = a.product.K;
  if (const PackedLinear* packed = a.product.packed; packed != nullptr) {
    if (!expect_packed(stream, "norm_linear", *packed, a.product.N, a.product.K)) return;
    weight = CBuf(packed->data, packed->dtype);
    stride = packed_stride(*packed);
  }
  const RmsNormArgs& norm = a.norm;
  const bool aligned = rows_aligned(weight, stride, 16) && rows_aligned(a.product.x, 0, 16) &&
                       rows_aligned(norm.x, 0, 16) && rows_aligned(norm.residual, 0, 16) &&
                       rows_aligned(norm.residual_out, 0, 16) && rows_aligned(norm.weight, 0, 16);
  const LinearShape shape = {a.product.M,  a.product.N,       a.product.K, weight.dtype,
                             norm.x.dtype, a.product.product, aligned};
  if (choose(stream, norm_linear_request(shape, norm.y.dtype)).way == Way::kFused) {
    return multiply_normed_row(stream, "norm_linear", a, weight, stride);
  }
  step_in_sequence(cuda_kernels(), stream, a);
}

}  // namespace mamba::cuda
