// SPDX-License-Identifier: Apache-2.0
// Products of few rows with a matrix that is read once: the steps of generation.
#pragma once

#include "kernels/choices.h"
#include "kernels/cuda.cuh"
#include "kernels/norm_linear.h"
#include "kernels/step.cuh"

namespace mamba::cuda {

// y = x W^T + bias (+ y) by kernels that read W (N, K), row stride weight_stride, at the speed of
// memory: Way::kTensor or kPlain, which linear_request() must have allowed.
void multiply_few_rows(Stream& stream, const char* name, const LinearArgs& args, CBuf weight,
                       int64_t weight_stride, Way way) noexcept;

// The same for up to 64 rows: Way::kTiles (linear_tiles_cuda.cu).
void multiply_tiles(Stream& stream, const char* name, const LinearArgs& args, CBuf weight,
                    int64_t weight_stride) noexcept;

// The same for one row of bf16 or f16: Way::kRow (linear_row_cuda.cu).
void multiply_row(Stream& stream, const char* name, const LinearArgs& args, CBuf weight,
                  int64_t weight_stride) noexcept;
// norm_linear of one row in bf16: Way::kFused.
void multiply_normed_row(Stream& stream, const char* name, const NormLinearArgs& args, CBuf weight,
                         int64_t weight_stride) noexcept;

// The step of Mamba-1 up to x_proj: norm_linear of one row of 2 conv.C, whose first half is
// convolved, in bf16, and the parts of x_proj that blocks of channels have
// (linear_convolved_cuda.cu).
inline constexpr int64_t kMostConvolvedOutputs = 256;
struct ConvolvedRow {
  step::Conv conv;
  bool round;            // what x_proj takes to bf16
  const bf16* x_weight;  // (outputs, conv.C), rows aligned to 16 bytes
  int64_t x_stride, outputs;
  float* partial;  // (conv.C / convolved_channels(K), outputs)
};
// Channels of a block, by which conv.C is to be divisible; 0: not of so many columns K.
int64_t convolved_channels(int64_t K) noexcept;
void multiply_convolved_row(Stream& stream, const char* name, const NormLinearArgs& args,
                            const ConvolvedRow& row, CBuf weight, int64_t weight_stride) noexcept;

// The step of Mamba-2 behind its state: y (K) is gated already; the product of norm(y), of bf16
// weights, and the move of the convolution's state of B and C (linear_gated_cuda.cu).
struct GatedRow {
  CBuf y;  // (K)
  const float* norm_weight;
  float eps;
  step::Conv conv;
  CBuf conv_input;      // (conv.C), of the type of y
  int64_t from, moved;  // channels of the convolution whose state is moved
};
void multiply_gated_row(Stream& stream, const char* name, const LinearArgs& args,
                        const GatedRow& row, CBuf weight, int64_t weight_stride) noexcept;

}  // namespace mamba::cuda
