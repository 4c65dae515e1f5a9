// SPDX-License-Identifier: Apache-2.0
// The product of one row behind the state of Mamba-2, with the norm in front of it: every warp
// norms the row for itself, a warp a row of the weight, which is on its way before the kernel in
// front has ended. Large weights stream.
#include "kernels/linear_stream_cuda.cuh"

namespace mamba::cuda {
namespace {

using row::kEach, row::kSweep, row::kWarps;
constexpr int kThreads = kWarps * kWarp;

struct Product {
  int64_t N, K, weight_stride, blocks;  // blocks of warps with rows; the others move the state
  const float *bias, *norm_weight;
  float eps;
  step::Conv conv;
  int64_t from, moved;
};

template <class W>
struct Eight {
  uint4 words;
  __device__ __forceinline__ void load(const W* p) {
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
        : "l"(p));
  }
  __device__ __forceinline__ float operator[](int i) const {
    const uint32_t word = i < 2 ? words.x : i < 4 ? words.y : i < 6 ? words.z : words.w;
    return to_float(W{static_cast<uint16_t>(i % 2 == 0 ? word : word >> 16)});
  }
};

// `held` sweeps of the weight are loaded at once. `whole`: they are all, and with them the norm's
// weights.
template <class W, class T, class Y, int held, bool whole>
__global__ void __launch_bounds__(kThreads)
    gated_kernel(const __grid_constant__ Product p, const W* weight, const T* y, const T* input,
                 Y* out) {
  if (blockIdx.x >= p.blocks) {
    const int64_t i = (blockIdx.x - p.blocks) * kThreads + threadIdx.x, c = p.from + i;
    if (i >= p.moved) return;
    step::prefetch_window(p.conv, 0, c);
    wait_for_previous();
    step::Window window;
    window.load(p.conv, 0, c);
    window.shift(p.conv, 0, c, load(input + c));
    return;
  }
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= p.N) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = lane * kEach;
  const W* of_row = weight + n * p.weight_stride;
  Eight<W> w[held];
  const auto fetch = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (k + i * kSweep < p.K) w[i].load(of_row + k + i * kSweep);
    }
  };
  fetch(first);
  float scale[whole ? held : 1][kEach], v[whole ? held : 1][kEach];
  if constexpr (whole) {
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (first + i * kSweep < p.K) load_n<kEach>(p.norm_weight + first + i * kSweep, scale[i]);
    }
  } else {
    for (int64_t k = first; k < p.K; k += kSweep) prefetch(p.norm_weight + k);
  }
  wait_for_previous();

  float squares = 0;
  if constexpr (whole) {
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (first + i * kSweep < p.K) load_n<kEach>(y + first + i * kSweep, v[i]);
    }
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (first + i * kSweep >= p.K) break;
#pragma unroll
      for (int j = 0; j < kEach; ++j) squares = fmaf(v[i][j], v[i][j], squares);
    }
  } else {
#pragma unroll 4
    for (int64_t k = first; k < p.K; k += kSweep) {
      float part[kEach];
      load_n<kEach>(y + k, part);
#pragma unroll
      for (int j = 0; j < kEach; ++j) squares = fmaf(part[j], part[j], squares);
    }
  }
  const float s = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(p.K) + p.eps);

  float sum = 0;
  // What the norm writes is of type T, what the product takes of type W.
  const auto add = [&](const Eight<W>& eight, const float(&values)[kEach],
                       const float(&weights)[kEach]) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float normed = to_float(from_float<T>(values[j] * (s * weights[j])));
      sum = fmaf(eight[j], to_float(from_float<W>(normed)), sum);
    }
  };
  if constexpr (whole) {
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (first + i * kSweep < p.K) add(w[i], v[i], scale[i]);
    }
  } else {
    for (int64_t k = first; k < p.K; k += held * kSweep) {
      if (k != first) fetch(k);
#pragma unroll
      for (int i = 0; i < held; ++i) {
        if (k + i * kSweep >= p.K) break;
        float values[kEach], weights[kEach];
        load_n<kEach>(y + k + i * kSweep, values);
        load_n<kEach>(p.norm_weight + k + i * kSweep, weights);
        add(w[i], values, weights);
      }
    }
  }
  sum = warp_sum(sum);
  if (lane != 0) return;
  if (p.bias != nullptr) sum += p.bias[n];
  store(out + n, sum);
}

// The move of the convolution's state, by threads of which this is one.
template <class T>
__device__ __forceinline__ void move_state(const Product& p, const T* input, int64_t thread,
                                           int64_t threads) {
  for (int64_t i = thread; i < p.moved; i += threads) {
    const int64_t c = p.from + i;
    step::Window window;
    window.load(p.conv, 0, c);
    window.shift(p.conv, 0, c, load(input + c));
  }
}

// For streaming kernels; the last block moves the state.
template <class T, int panels>
struct GatedSource {
  static constexpr int kBlocks = panels <= 2 ? 3 : 2;
  Product p;
  const T *y, *input;

  __device__ __forceinline__ void prepare(const row::Row& r) const {
    for (int64_t k = threadIdx.x * kEach; k < r.K; k += row::kPanel) {
      asm volatile("prefetch.global.L1 [%0];" ::"l"(p.norm_weight + k));
    }
    if (blockIdx.x + 1 < gridDim.x) return;
    for (int64_t i = threadIdx.x; i < p.moved; i += row::kStreamThreads) {
      step::prefetch_window(p.conv, 0, p.from + i);
    }
  }
  template <class W>
  __device__ __forceinline__ void fill(const row::Row& r, W* to) const {
    __shared__ float shared[row::kStreamWarps];
    const int K = static_cast<int>(r.K), mine = static_cast<int>(threadIdx.x) * kEach;
    float v[panels][kEach], squares = 0;
#pragma unroll
    for (int i = 0; i < panels; ++i) {
      if (mine + i * row::kPanel < K) load_n<kEach>(y + mine + i * row::kPanel, v[i]);
    }
#pragma unroll
    for (int i = 0; i < panels; ++i) {
      if (mine + i * row::kPanel >= K) continue;
#pragma unroll
      for (int j = 0; j < kEach; ++j) squares = fmaf(v[i][j], v[i][j], squares);
    }
    squares = block_sum<row::kStreamThreads>(squares, shared);
    const float s = 1.0f / sqrtf(squares / static_cast<float>(K) + p.eps);
#pragma unroll
    for (int i = 0; i < panels; ++i) {
      const int k = mine + i * row::kPanel;
      if (k >= K) continue;
      float scale[kEach];
      load_n<kEach>(p.norm_weight + k, scale);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        v[i][j] = to_float(from_float<T>(v[i][j] * (s * scale[j])));
      }
      store_n<kEach>(to + k, v[i]);
    }
    if (blockIdx.x + 1 == gridDim.x) move_state(p, input, threadIdx.x, row::kStreamThreads);
  }
};

}  // namespace

void multiply_gated_row(Stream& stream, const char* name, const LinearArgs& a, const GatedRow& in,
                        CBuf weight, int64_t weight_stride) noexcept {
  Product p{};
  p.N = a.N, p.K = a.K, p.weight_stride = weight_stride, p.blocks = ceil_div(a.N, kWarps);
  p.bias = a.bias.as<float>(), p.norm_weight = in.norm_weight, p.eps = in.eps;
  p.conv = in.conv, p.from = in.from, p.moved = in.moved;
  const dim3 grid(static_cast<unsigned>(p.blocks + ceil_div(p.moved, kThreads)));
  with_type(a.y.dtype, [&]<class Y>() {
    with_training_type(in.y.dtype, [&]<class T>() {
      const auto run = [&](auto* kernel) {
        launch_early(stream, name, kernel, grid, dim3(kThreads), 0, p, weight.as<bf16>(),
                     in.y.as<T>(), in.conv_input.as<T>(), a.y.as<Y>());
      };
      const row::Row r = row::row_of(a, weight_stride);
      if (row::is_streamed(r) && p.K <= row::kPanels * row::kPanel) {
        const auto stream_of = [&]<int panels>() {
          const GatedSource<T, panels> source = {p, in.y.as<T>(), in.conv_input.as<T>()};
          row::launch_stream(stream, name, r, weight.as<bf16>(), source, a.y.as<Y>());
        };
        return p.K <= 2 * row::kPanel ? stream_of.template operator()<2>()
                                      : stream_of.template operator()<row::kPanels>();
      }
      if (p.K <= 4 * kSweep) return run(gated_kernel<bf16, T, Y, 4, true>);
      if (p.K <= 6 * kSweep) return run(gated_kernel<bf16, T, Y, 6, true>);
      run(gated_kernel<bf16, T, Y, 10, false>);
    });
  });
}

}  // namespace mamba::cuda
