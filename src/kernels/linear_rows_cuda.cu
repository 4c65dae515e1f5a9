// SPDX-License-Identifier: Apache-2.0
// Products of few rows: 16-bit weights on tensor cores, f32 results of f32 operands by fused
// multiply-adds. Weights are on their way before the kernel in front has ended.
#include "kernels/linear_rows_cuda.cuh"
#include "kernels/mma.cuh"

namespace mamba::cuda {
namespace {

constexpr int kMostWarps = 8;
constexpr int kMostRows = kMostTensorRows;  // of x; beyond, x is read more often than W
constexpr int kRowsOfWeight = 8;            // of a block at a time on tensor cores
constexpr int kStep = 32;                   // columns that a warp takes at a time, 8 a lane
constexpr int kAhead = 4;                   // steps whose weights are loaded at once
constexpr int kMostBlocks = 396;            // of a grid, which takes the rest in turns
constexpr int kMostOnce = 528;              // that fit on a card beside the kernel behind them
constexpr int kPlainWarps = 4;              // rows of the weight of a block by multiply-adds

struct Few {
  int64_t M, N, K, weight_stride, x_stride, y_stride;
  const float* bias;
  bool accumulate;
};

template <class Y>
__device__ __forceinline__ void put(const Few& p, Y* y, int64_t m, int64_t n, float v) {
  if (p.bias != nullptr) v += p.bias[n];
  Y* at = y + m * p.y_stride + n;
  if (p.accumulate) v += load(at);
  store(at, v);
}

// 8 values of T as four registers of neighbours, from 8 of X.
template <class T, class X>
__device__ __forceinline__ void load_eight(const X* p, uint32_t (&v)[4]) {
  if constexpr (sizeof(X) == 2) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    v[0] = raw.x, v[1] = raw.y, v[2] = raw.z, v[3] = raw.w;
  } else {
    float f[8];
    load_n<8>(p, f);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = pack2<T>(f[2 * i], f[2 * i + 1]);
  }
}
__device__ __forceinline__ void load_weights(const void* p, uint32_t (&v)[4]) {
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
      : "l"(p));
}

template <class T>
__device__ __forceinline__ void multiply_tile(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// A block takes 8 rows of the weight at a time with all of x; its warps take steps of columns in
// turn, and their sums are added in order. Within a step a lane has 8 neighbouring columns of a
// row, for x and the weight alike, so which column the tensor cores take them for does not matter.
// With `once` a block takes 8 rows alone, and a warp all its columns at once: fewer registers, so
// that the next kernel finds room to start.
template <class W, class X, class Y, bool once>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    tensor_kernel(Few p, const W* weight, const X* x, Y* y) {
  __shared__ float sums[kMostWarps][kMostRows][kRowsOfWeight + 1];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int g = lane / 4, q = lane % 4;
  const int64_t first = static_cast<int64_t>(warp) * kStep;
  const int64_t stride = static_cast<int64_t>(warps) * kStep;
  uint32_t b[kAhead][4], ahead[kAhead][4];
  const auto fetch = [&](int64_t n0, int64_t k, uint32_t(&to)[kAhead][4]) {
    const int64_t row = n0 + g < p.N ? n0 + g : p.N - 1;
    const W* from = weight + row * p.weight_stride + k + 8 * q;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      to[i][0] = to[i][1] = to[i][2] = to[i][3] = 0;
      if (k + 8 * q + i * stride < p.K) load_weights(from + i * stride, to[i]);
    }
  };
  int64_t n0 = static_cast<int64_t>(blockIdx.x) * kRowsOfWeight;
  fetch(n0, first, b);
  wait_for_previous();
  for (; n0 < p.N; n0 += static_cast<int64_t>(gridDim.x) * kRowsOfWeight) {
    const int64_t next = n0 + static_cast<int64_t>(gridDim.x) * kRowsOfWeight;
    float c[4] = {};
    for (int64_t k = first; k < p.K; k += kAhead * stride) {
      if constexpr (!once) {
        if (k + kAhead * stride < p.K) {
          fetch(n0, k + kAhead * stride, ahead);
        } else if (next < p.N) {
          fetch(next, first, ahead);
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t at = k + i * stride + 8 * q;
        if (at - 8 * q >= p.K) break;  // the same for the whole warp
        uint32_t low[4] = {}, high[4] = {};
        if (g < p.M && at < p.K) load_eight<W>(x + g * p.x_stride + at, low);
        if (g + 8 < p.M && at < p.K) load_eight<W>(x + (g + 8) * p.x_stride + at, high);
        multiply_tile<W>(c, low[0], high[0], low[1], high[1], b[i][0], b[i][1]);
        multiply_tile<W>(c, low[2], high[2], low[3], high[3], b[i][2], b[i][3]);
      }
      if constexpr (!once) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) b[i][j] = ahead[i][j];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][g + i / 2 * 8][2 * q + i % 2] = c[i];
    __syncthreads();
    for (int e = threadIdx.x; e < p.M * kRowsOfWeight; e += blockDim.x) {
      const int m = e / kRowsOfWeight, j = e % kRowsOfWeight;
      if (n0 + j >= p.N) continue;
      float v = 0;
      for (int w = 0; w < warps; ++w) v += sums[w][m][j];
      put(p, y, m, n0 + j, v);
    }
    if (next < p.N) __syncthreads();
  }
}

// A warp a row of the weight, `rows` rows of x; 8 columns a lane at a time whatever W is, so that
// the same numbers in another type have the same sums.
template <class W, class Y, int rows>
__global__ void __launch_bounds__(kPlainWarps* kWarp)
    plain_kernel(Few p, const W* weight, const float* x, Y* y) {
  constexpr int kEach = 8, kParts = kEach * sizeof(W) / 16;
  const int lane = threadIdx.x % kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kPlainWarps + threadIdx.x / kWarp;
  if (n >= p.N) return;
  const W* from = weight + n * p.weight_stride;
  float sum[rows] = {};
  uint32_t w[kAhead][kParts][4];
  const auto fetch = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = k + i * kWarp * kEach;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        w[i][part][0] = w[i][part][1] = w[i][part][2] = w[i][part][3] = 0;
        if (at < p.K) load_weights(from + at + part * (kEach / kParts), w[i][part]);
      }
    }
  };
  fetch(lane * kEach);
  wait_for_previous();
  for (int64_t k = lane * kEach; k < p.K; k += kAhead * kWarp * kEach) {
    if (k != lane * kEach) fetch(k);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = k + i * kWarp * kEach;
      if (at >= p.K) break;
      const auto* values = reinterpret_cast<const Vector<W, kEach>*>(w[i]);
#pragma unroll
      for (int m = 0; m < rows; ++m) {
        if (m >= p.M) break;
        float v[kEach];
        load_n<kEach>(x + m * p.x_stride + at, v);
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum[m] = fmaf(to_float(values->at[j]), v[j], sum[m]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < rows; ++m) {
    const float total = warp_sum(sum[m]);
    if (lane == 0 && m < p.M) put(p, y, m, n, total);
  }
}

template <class W, class X, class Y>
void launch_tensor(Stream& stream, const char* name, const Few& p, const W* weight, const X* x,
                   Y* y) {
  const int64_t steps = ceil_div(p.K, kStep), blocks = ceil_div(p.N, kRowsOfWeight);
  const bool once = steps <= kAhead * kMostWarps && blocks <= kMostOnce;
  const dim3 grid(static_cast<unsigned>(once || blocks < kMostBlocks ? blocks : kMostBlocks));
  const dim3 block(static_cast<unsigned>(kWarp * (steps < kMostWarps ? steps : kMostWarps)));
  launch_early(stream, name, once ? tensor_kernel<W, X, Y, true> : tensor_kernel<W, X, Y, false>,
               grid, block, 0, p, weight, x, y);
}

template <class W, class Y>
void launch_plain(Stream& stream, const char* name, const Few& p, const W* weight, const float* x,
                  Y* y) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.N, kPlainWarps)));
  const auto run = [&]<int rows>() {
    launch_early(stream, name, plain_kernel<W, Y, rows>, grid, dim3(kPlainWarps * kWarp), 0, p,
                 weight, x, y);
  };
  if (p.M == 1) return run.template operator()<1>();
  if (p.M <= 4) return run.template operator()<4>();
  run.template operator()<kMostPlainRows>();
}

}  // namespace

void multiply_few_rows(Stream& stream, const char* name, const LinearArgs& a, CBuf weight,
                       int64_t weight_stride, Way way) noexcept {
  const DType w = weight.dtype, x = a.x.dtype;
  const Few p = {a.M,         a.N, a.K, weight_stride, a.x_stride, a.y_stride, a.bias.as<float>(),
                 a.accumulate};
  with_type(a.y.dtype, [&]<class Y>() {
    if (way == Way::kPlain) {
      with_type(w, [&]<class W>() {
        launch_plain(stream, name, p, weight.as<W>(), a.x.as<float>(), a.y.as<Y>());
      });
    } else if (w == DType::kF16) {
      launch_tensor(stream, name, p, weight.as<f16>(), a.x.as<f16>(), a.y.as<Y>());
    } else if (x == DType::kBF16) {
      launch_tensor(stream, name, p, weight.as<bf16>(), a.x.as<bf16>(), a.y.as<Y>());
    } else {
      launch_tensor(stream, name, p, weight.as<bf16>(), a.x.as<float>(), a.y.as<Y>());
    }
  });
}

}  // namespace mamba::cuda
