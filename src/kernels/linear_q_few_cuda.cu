// SPDX-License-Identifier: Apache-2.0
// linear_q of few rows: the codes of a row of W are on their way while x is still rounded, by every
// block for itself.
#include "kernels/choices.h"
#include "kernels/linear_q_cuda.cuh"

namespace mamba::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMostRows = kMostQuantizedRows;
constexpr int kAhead = 3;         // groups of a lane whose codes are loaded at once
constexpr int kMostBlocks = 528;  // of a grid, which takes the rest in turns

struct Few {
  int64_t M, N, K, x_stride, y_stride;
  Blocks weight;
  const float* bias;
};

// A warp a row of W, a lane a group of 32 columns at a time, as the general kernel has them.
template <DType type, class X, class Y, int rows>
__global__ void __launch_bounds__(kThreads) few_kernel(Few p, const X* x, Y* y) {
  constexpr int kParts = code_bytes(type) / 16;
  extern __shared__ int4 shared[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t groups = p.weight.groups;
  auto* q = reinterpret_cast<int8_t*>(shared);              // (rows, K)
  auto* scales = reinterpret_cast<float*>(q + rows * p.K);  // (rows, groups)
  uint4 raw[kAhead][kParts];
  f16 scale[kAhead];
  const auto fetch = [&](int64_t n, int64_t j) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = j + i * kWarp;
      if (at >= groups) break;
      const auto* from =
          reinterpret_cast<const uint4*>(p.weight.rows + n * p.weight.row_bytes) + at * kParts;
#pragma unroll
      for (int part = 0; part < kParts; ++part) raw[i][part] = __ldcs(from + part);
      scale[i] = p.weight.scales[n * groups + at];
    }
  };
  int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (n < p.N) fetch(n, lane);
  wait_for_previous();
  for (int m = 0; m < rows; ++m) {
    if (m >= p.M) break;
    for (int64_t j = warp; j < groups; j += kWarps) {
      const RoundedValue r = round_group(load(x + m * p.x_stride + j * kColumns + lane));
      q[m * p.K + j * kColumns + lane] = static_cast<int8_t>(r.q);
      if (lane == 0) scales[m * groups + j] = r.scale;
    }
  }
  __syncthreads();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (; n < p.N; n += step) {
    float sum[rows] = {};
    for (int64_t j = lane; j < groups; j += kAhead * kWarp) {
      if (j != lane) fetch(n, j);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t at = j + i * kWarp;
        if (at >= groups) break;
        Group g;
        decode<type>(raw[i], to_float(scale[i]), g);
#pragma unroll
        for (int m = 0; m < rows; ++m) {
          if (m >= p.M) break;
          const auto* values = reinterpret_cast<const int4*>(q + m * p.K + at * kColumns);
          sum[m] = add_group(g, values[0], values[1], scales[m * groups + at], 0, sum[m]);
        }
      }
    }
    if (n + step < p.N) fetch(n + step, lane);
#pragma unroll
    for (int m = 0; m < rows; ++m) {
      const float total = warp_sum(sum[m]);
      if (lane == 0 && m < p.M) {
        store(y + m * p.y_stride + n, total + (p.bias != nullptr ? p.bias[n] : 0));
      }
    }
  }
}

template <DType type>
void launch_few(Stream& stream, const char* name, const LinearQArgs& a, const Few& p) {
  const int64_t blocks = ceil_div(a.N, kWarps);
  const dim3 grid(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  const auto run = [&]<int rows>() {
    const auto bytes = static_cast<size_t>(rows * (a.K + 4 * p.weight.groups));
    with_type(a.x.dtype, [&]<class X>() {
      with_type(a.y.dtype, [&]<class Y>() {
        launch_early(stream, name, few_kernel<type, X, Y, rows>, grid, dim3(kThreads), bytes, p,
                     a.x.as<X>(), a.y.as<Y>());
      });
    });
  };
  if (a.M == 1) return run.template operator()<1>();
  run.template operator()<kMostRows>();
}

}  // namespace

bool multiply_few_rows(Stream& stream, const char* name, const LinearQArgs& a,
                       const Blocks& weight) noexcept {
  const DType type = a.packed->dtype;
  const int64_t rows = a.M == 1 ? 1 : kMostRows;
  const bool fits = rows * (a.K + 4 * weight.groups) <= static_cast<int64_t>(kPlainShared);
  if (choose(stream, linear_q_request(a.M, a.N, a.K, type, fits)).way != Way::kFewRows)
    return false;
  const Few p = {a.M, a.N, a.K, a.x_stride, a.y_stride, weight, a.bias.as<float>()};
  if (type == DType::kQ8_0) {
    launch_few<DType::kQ8_0>(stream, name, a, p);
  } else if (type == DType::kQ4_0) {
    launch_few<DType::kQ4_0>(stream, name, a, p);
  } else {
    launch_few<DType::kIQ4_NL>(stream, name, a, p);
  }
  return true;
}

}  // namespace mamba::cuda
