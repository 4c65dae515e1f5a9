// SPDX-License-Identifier: Apache-2.0
// The product of one row in front of the step of Mamba-1, with the norm in front of it: a block of
// rows that are channels of x convolves these, and computes their part of x_proj.
#include "kernels/linear_row_cuda.cuh"

namespace mamba::cuda {
namespace {

using namespace row;

constexpr int kThreads = kWarps * kWarp;
constexpr int kOutputs = static_cast<int>(kMostConvolvedOutputs) / kThreads;  // of a thread

struct Input {
  Row product;
  Norm norm;
  step::Conv conv;
  bool round;
  const bf16* x_weight;
  int64_t x_stride, outputs;
  float* partial;  // (blocks that convolve, outputs)
};

template <class X, class Y, int kRows, int kNormed>
__global__ void __launch_bounds__(kThreads)
    convolved_kernel(const __grid_constant__ Input p, const bf16* weight, const X* x, Y* xz) {
  constexpr int kChannels = kWarps * kRows, kPieces = kChannels / kEach;
  static_assert(kChannels <= kWarp && kChannels % kEach == 0);
  __shared__ float values[kChannels];
  __shared__ __align__(16) float convolved[kChannels];
  const int tid = threadIdx.x, lane = tid % kWarp, warp = tid / kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChannels, n = first + warp * kRows;
  const bool convolves = first < p.conv.C;
  NormedRows<kRows, kNormed> rows;
  rows.fetch(p.product, p.norm, weight, n);
  Vector<bf16, kEach> x_weight[kOutputs][kPieces];
  step::Taps taps;
  step::Window window;
  const int64_t c = first + tid;  // of the first threads
  if (convolves) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int64_t output = tid + i * kThreads;
      if (output >= p.outputs) break;
      const bf16* from = p.x_weight + output * p.x_stride + first;
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        x_weight[i][k] = *reinterpret_cast<const Vector<bf16, kEach>*>(from + k * kEach);
      }
    }
    if (tid < kChannels) {
      taps.load(p.conv, c);
      step::prefetch_window(p.conv, 0, c);
    }
  }
  wait_for_previous();

  if (convolves && tid < kChannels) window.load(p.conv, 0, c);
  float sum[kRows] = {};
  rows.multiply(p.product, p.norm, x, n, sum);
  const float value = put_rows<kRows>(p.product, xz, n, sum);
  if (!convolves) return;
  constexpr int kLanes = kWarp / kRows;  // that have the same row
  if (lane % kLanes == 0) values[warp * kRows + lane / kLanes] = to_float(from_float<Y>(value));
  __syncthreads();
  if (tid < kChannels) {
    const float v = window.output<Y>(p.conv, taps, 0, c, values[tid]);
    convolved[tid] = p.round ? to_float(from_float<bf16>(v)) : v;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t output = tid + i * kThreads;
    if (output >= p.outputs) break;
    float part = 0;
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      float v[kEach];
      load_n<kEach>(convolved + k * kEach, v);
#pragma unroll
      for (int j = 0; j < kEach; ++j) part = fmaf(to_float(x_weight[i][k].at[j]), v[j], part);
    }
    p.partial[blockIdx.x * p.outputs + output] = part;
  }
}

// Rows of a warp.
int rows_of(int64_t K) { return K <= 3 * kSweep ? 4 : 2; }

}  // namespace

int64_t convolved_channels(int64_t K) noexcept {
  return K <= kNormedByWarps ? kWarps * rows_of(K) : 0;
}

void multiply_convolved_row(Stream& stream, const char* name, const NormLinearArgs& a,
                            const ConvolvedRow& row, CBuf weight, int64_t weight_stride) noexcept {
  const LinearArgs& product = a.product;
  const Input p = {row_of(product, weight_stride),
                   norm_of(a.norm),
                   row.conv,
                   row.round,
                   row.x_weight,
                   row.x_stride,
                   row.outputs,
                   row.partial};
  const dim3 grid(static_cast<unsigned>(ceil_div(product.N, convolved_channels(product.K))));
  with_type(product.y.dtype, [&]<class Y>() {
    with_training_type(a.norm.x.dtype, [&]<class X>() {
      const auto run = [&](auto* kernel) {
        launch_early(stream, name, kernel, grid, dim3(kThreads), 0, p, weight.as<bf16>(),
                     a.norm.x.as<X>(), product.y.as<Y>());
      };
      if (rows_of(p.product.K) == 4) return run(convolved_kernel<X, Y, 4, 3>);
      run(convolved_kernel<X, Y, 2, 4>);
    });
  });
}

}  // namespace mamba::cuda
