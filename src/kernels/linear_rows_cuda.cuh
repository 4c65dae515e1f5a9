// SPDX-License-Identifier: Apache-2.0
// Products of few rows with a matrix that is read once: the steps of generation.
#pragma once

#include "kernels/cuda.cuh"
#include "kernels/norm_linear.h"

namespace mamba::cuda {

// y = x W^T + bias (+ y) by kernels that read W (N, K), row stride weight_stride, at the speed of
// memory. False, with nothing done, where they do not take types, alignment or so many rows.
bool multiply_few_rows(Stream& stream, const char* name, const LinearArgs& args, CBuf weight,
                       int64_t weight_stride) noexcept;

// The same for one row of bf16 or f16 (linear_row_cuda.cu).
bool multiply_row(Stream& stream, const char* name, const LinearArgs& args, CBuf weight,
                  int64_t weight_stride) noexcept;
// norm_linear of one row in bf16.
bool multiply_normed_row(Stream& stream, const char* name, const NormLinearArgs& args, CBuf weight,
                         int64_t weight_stride) noexcept;

}  // namespace mamba::cuda
