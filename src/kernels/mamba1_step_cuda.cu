// SPDX-License-Identifier: Apache-2.0
// mamba1_step for CUDA as one kernel: a cluster of blocks a row, each of which has some of the
// channels from the convolution to the gate. They meet once, to add up x_proj. Cards without
// clusters, many rows and weights in blocks take the sequence of kernels.
#include <stdlib.h>

#include "kernels/cluster.cuh"
#include "kernels/linear_packed_cuda.cuh"
#include "kernels/scan_cuda.cuh"
#include "kernels/step.cuh"
#include "kernels/step_sequence.h"

namespace mamba::cuda {
namespace {

using step::Conv;
using step::StateBuf;

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kEach = 8;               // columns of a weight that a lane takes at once
constexpr int kSlice = kWarp * kEach;  // channels of x_proj that a warp takes at once
constexpr int kOutputs = 4;            // of x_proj that a warp adds up together
constexpr int kStates = 16;            // of a channel in registers
static const int64_t kMostRows = getenv("MAMBA_X_ROWS") ? atoi(getenv("MAMBA_X_ROWS")) : 128;
constexpr int64_t kWide = 2560;  // channels from which a row gets 16 blocks

// A matrix in rows.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t stride;
  bool aligned;  // all rows to 16 bytes
};

template <class T>
struct Args {
  int64_t B, E, N, R, channels;  // of a block, a multiple of kEach
  Conv conv;
  const T* xz;
  int64_t xz_stride;
  Matrix x_weight, dt_weight;  // (R + 2N, E), (E, R)
  bool norms, round;
  float norm_eps;
  const float *dt_bias, *A_t, *D;
  StateBuf h;
  T* y;
  int64_t y_stride;
};

__device__ __forceinline__ float to_bf16_and_back(float v) { return to_float(from_float<bf16>(v)); }

// Eight columns of a row, as they lie in memory.
template <class W>
struct Columns {
  static constexpr int kWords = kEach * sizeof(W) / 4;
  uint32_t words[kWords];

  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(W) == 4) {
      return __uint_as_float(words[i]);
    } else {
      return to_float(W{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))});
    }
  }
};

// Columns c ... c + 7 of row `row`, zero from `cols` on.
template <class W>
__device__ __forceinline__ Columns<W> load_columns(const Matrix& m, int64_t row, int64_t c,
                                                   int64_t cols) {
  const W* from = static_cast<const W*>(m.data) + row * m.stride + c;
  Columns<W> v;
  if (m.aligned && c + kEach <= cols) {
#pragma unroll
    for (int i = 0; i < Columns<W>::kWords; i += 4) {
      const uint4 raw = reinterpret_cast<const uint4*>(from)[i / 4];
      v.words[i] = raw.x, v.words[i + 1] = raw.y, v.words[i + 2] = raw.z, v.words[i + 3] = raw.w;
    }
    return v;
  }
#pragma unroll
  for (int i = 0; i < Columns<W>::kWords; ++i) {
    if constexpr (sizeof(W) == 4) {
      v.words[i] = c + i < cols ? __float_as_uint(from[i]) : 0;
    } else {
      const uint32_t low = c + 2 * i < cols ? from[2 * i].bits : 0;
      const uint32_t high = c + 2 * i + 1 < cols ? from[2 * i + 1].bits : 0;
      v.words[i] = high << 16 | low;
    }
  }
  return v;
}
// As the product takes it.
template <class W>
__device__ __forceinline__ float weight_of(const Columns<W>& v, int i, bool round) {
  return sizeof(W) == 4 && round ? to_bf16_and_back(v[i]) : v[i];
}

// v (n) over the root of its mean square, by one warp.
__device__ __forceinline__ void norm_by_warp(float* v, int64_t n, float eps) {
  const int lane = threadIdx.x % kWarp;
  float sum = 0;
  for (int64_t i = lane; i < n; i += kWarp) sum = fmaf(v[i], v[i], sum);
  const float s = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(n) + eps);
  for (int64_t i = lane; i < n; i += kWarp) v[i] *= s;
}

// Blocks (rank, row). Shared memory: u (channels), the parts of x_proj and their sums (R + 2N).
template <class T, class W>
__global__ void __launch_bounds__(kThreads, 2) step_kernel(const __grid_constant__ Args<T> a) {
  // Columns that a thread holds before the kernel in front has ended: of x_proj, and of dt_proj.
  constexpr int kGroups = sizeof(W) == 4 ? 1 : 2, kDt = sizeof(W) == 4 ? 2 : 6;
  extern __shared__ __align__(16) float shared[];
  const int64_t width = a.R + 2 * a.N;
  float *u = shared, *part = u + a.channels, *dbl = part + width;
  const int tid = threadIdx.x, lane = tid % kWarp, warp = tid / kWarp;
  const int64_t first = blockIdx.x * a.channels;
  const int64_t end = first + a.channels < a.E ? first + a.channels : a.E;
  const int64_t groups = (width + kWarps * kOutputs - 1) / (kWarps * kOutputs);
  const auto output_of = [&](int64_t group, int i) {
    return (group * kWarps + warp) * kOutputs + i;
  };
  const auto x_columns = [&](int64_t group, int i, int64_t c) {
    const int64_t o = output_of(group, i);
    return load_columns<W>(a.x_weight, o < width ? o : 0, c, o < width ? end : 0);
  };

  Columns<W> x_held[kGroups][kOutputs];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      x_held[group][i] = x_columns(group, i, first + kEach * lane);
    }
  }
  const int64_t mine = first + tid < end ? first + tid : first < a.E ? first : a.E - 1;
  const auto* x_weight = static_cast<const W*>(a.x_weight.data);
  for (int64_t o = warp; o < width; o += kWarps) {
    const int64_t c = first + lane * (128 / static_cast<int64_t>(sizeof(W)));
    if (c < end) prefetch(x_weight + o * a.x_weight.stride + c);
  }
  // The rest comes nearer, and into registers on the way to the other blocks.
  const W* dt_row = static_cast<const W*>(a.dt_weight.data) + mine * a.dt_weight.stride;
  for (int64_t r = 0; r < a.R; r += 128 / static_cast<int64_t>(sizeof(W))) prefetch(dt_row + r);
  for (int64_t n = 0; n < a.N; ++n) prefetch(a.A_t + n * a.E + mine);
  step::Taps taps;
  taps.load(a.conv, mine);
  const auto prefetch_states = [&](int64_t b) {
    for (int64_t j = 0; j + 1 < a.conv.K; ++j) {
      a.conv.state.prefetch_at(b * a.conv.state.stride + j * a.conv.C + mine);
    }
    for (int64_t n = 0; n < a.N; ++n) a.h.prefetch_at(b * a.h.stride + n * a.E + mine);
  };
  prefetch_states(blockIdx.y);
  wait_for_previous();

  for (int64_t b = blockIdx.y; b < a.B; b += gridDim.y) {
    const T* x = a.xz + b * a.xz_stride;
    float h[kStates];
    const auto load_states = [&](int64_t c, int64_t n0) {
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        h[n] = n0 + n < a.N ? a.h.load(b * a.h.stride + (n0 + n) * a.E + c) : 0.0f;
      }
    };
    for (int64_t c = first + tid; c < first + a.channels; c += kThreads) {
      float v = 0;
      if (c < end) {
        const float now = load(x + c);
        step::Window window;
        window.load(a.conv, b, c);
        if (c != mine) taps.load(a.conv, c);
        v = window.output<T>(a.conv, taps, b, c, now);
        window.shift(a.conv, b, c, now);
      }
      u[c - first] = v;
    }
    if (a.channels > kThreads) taps.load(a.conv, mine);
    __syncthreads();

    const auto add_group = [&](int64_t group, auto&& columns) {
      float sum[kOutputs] = {};
      for (int64_t c = kEach * lane; c < a.channels; c += kSlice) {
        float v[kEach];
        load_n<kEach>(u + c, v);
#pragma unroll
        for (int j = 0; j < kEach; ++j) v[j] = a.round ? to_bf16_and_back(v[j]) : v[j];
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) {
          const Columns<W> w = columns(i, c);
#pragma unroll
          for (int j = 0; j < kEach; ++j) sum[i] = fmaf(weight_of<W>(w, j, a.round), v[j], sum[i]);
        }
      }
      const float total = step::sum_each<kOutputs, kWarp>(sum);
      const int64_t o = output_of(group, lane / (kWarp / kOutputs));
      if (lane % (kWarp / kOutputs) == 0 && o < width) part[o] = total;
    };
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (group < groups) {
        add_group(group, [&](int i, int64_t c) {
          return c < kSlice ? x_held[group][i] : x_columns(group, i, first + c);
        });
      }
    }
    for (int64_t group = kGroups; group < groups; ++group) {
      add_group(group, [&](int i, int64_t c) { return x_columns(group, i, first + c); });
    }
    cluster_arrive();
    Columns<W> dt_held[kDt];
#pragma unroll
    for (int i = 0; i < kDt; ++i) {
      dt_held[i] = load_columns<W>(a.dt_weight, mine, kEach * i, a.R);
    }
    load_states(mine, 0);
    cluster_wait();
    for (int64_t i = tid; i < width; i += kThreads) {
      float sum = 0;
#pragma unroll 8
      for (unsigned rank = 0; rank < gridDim.x; ++rank) sum += load_of_block(part + i, rank);
      dbl[i] = sum;
    }
    cluster_arrive();  // part has been read
    __syncthreads();
    if (a.norms) {
      if (warp == 0) norm_by_warp(dbl, a.R, a.norm_eps);
      if (warp == 1) norm_by_warp(dbl + a.R, a.N, a.norm_eps);
      if (warp == 2) norm_by_warp(dbl + a.R + a.N, a.N, a.norm_eps);
      __syncthreads();
    }

    for (int64_t c = first + tid; c < end; c += kThreads) {
      const float z = load(x + a.E + c);
      float delta = 0;
      const auto add = [&](const Columns<W>& w, int64_t r) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const float dt = r + i < a.R ? dbl[r + i] : 0.0f;
          delta = fmaf(weight_of<W>(w, i, a.round), a.round ? to_bf16_and_back(dt) : dt, delta);
        }
      };
#pragma unroll
      for (int i = 0; i < kDt; ++i) {
        if (kEach * i >= a.R) break;
        add(c == mine ? dt_held[i] : load_columns<W>(a.dt_weight, c, kEach * i, a.R), kEach * i);
      }
      for (int64_t r = kEach * kDt; r < a.R; r += kEach) {
        add(load_columns<W>(a.dt_weight, c, r, a.R), r);
      }
      const float d = softplus<T>(__fadd_rn(delta, a.dt_bias[c])), du = d * u[c - first];
      float sum = 0;
      for (int64_t n0 = 0; n0 < a.N; n0 += kStates) {
        if (c != mine || n0 > 0) load_states(c, n0);
#pragma unroll
        for (int n = 0; n < kStates; ++n) {
          if (n0 + n >= a.N) break;
          const float rate = decay_rate(a.A_t[(n0 + n) * a.E + c]);
          const float next = fmaf(exp2_approx(d * rate), h[n], du * dbl[a.R + n0 + n]);
          sum = fmaf(dbl[a.R + a.N + n0 + n], next, sum);
          a.h.store(b * a.h.stride + (n0 + n) * a.E + c, next);
        }
      }
      const float D = a.D != nullptr ? a.D[c] : 0.0f;
      store(a.y + b * a.y_stride + c, gate<T>(fmaf(D, u[c - first], sum), z));
    }
    cluster_wait();  // before part is written again, or given up
  }
}

// ---- Host ----

Matrix matrix_of(CBuf weight, const PackedLinear* packed, int64_t K) {
  if (packed != nullptr) return {packed->data, packed->dtype, packed_stride(*packed), true};
  return {weight.data, weight.dtype, K, rows_aligned(weight, K, 16)};
}

template <class T, class W>
void launch_step(Stream& stream, const char* name, Args<T> v) {
  const int64_t width = v.R + 2 * v.N;
  const auto shared_of = [&](unsigned blocks) {
    v.channels = ceil_div(ceil_div(v.E, blocks), kEach) * kEach;
    return static_cast<size_t>(v.channels + 2 * width) * sizeof(float);
  };
  unsigned blocks = 8;
  if (v.E >= kWide && fits_clusters_of_16(step_kernel<T, W>, dim3(kThreads), shared_of(16))) {
    blocks = 16;
  }
  const size_t bytes = shared_of(blocks);
  launch_clusters(stream, name, step_kernel<T, W>, dim3(blocks, static_cast<unsigned>(v.B)),
                  dim3(kThreads), bytes, blocks, v);
}

template <class T>
void fused(Stream& stream, const char* name, const Mamba1StepArgs& a, const Matrix& x_weight,
           const Matrix& dt_weight) {
  Args<T> v{};
  v.B = a.B, v.E = a.E, v.N = a.N, v.R = a.R;
  v.conv = step::conv_of(a, a.E);
  v.xz = a.xz.as<T>(), v.xz_stride = a.xz_stride;
  v.x_weight = x_weight, v.dt_weight = dt_weight;
  v.norms = a.norms, v.round = a.product == Product::kBF16;
  v.norm_eps = static_cast<float>(a.norm_eps);
  v.dt_bias = a.dt_bias.as<float>(), v.A_t = a.A_t.as<float>(), v.D = a.D.as<float>();
  v.h = step::state_buf(a.ssm_state, a.state_stride);
  v.y = a.y.as<T>(), v.y_stride = a.y_stride;
  with_type(x_weight.dtype, [&]<class W>() { launch_step<T, W>(stream, name, v); });
}

// Whether a block's share fits what it may use of shared memory.
bool fits(const Mamba1StepArgs& a) {
  const int64_t floats = ceil_div(a.E, 8) + kEach + 2 * (a.R + 2 * a.N);
  return floats * static_cast<int64_t>(sizeof(float)) <= static_cast<int64_t>(kPlainShared);
}

}  // namespace

void mamba1_step(Stream& stream, const Mamba1StepArgs& a) noexcept {
  const char* name = "mamba1_step";
  if (a.B == 0 || a.E == 0) return;
  const auto type_of = [](CBuf weight, const PackedLinear* packed) {
    return packed != nullptr ? packed->dtype : weight.dtype;
  };
  const DType type = type_of(a.x_weight, a.x_packed);
  if (!has_clusters(stream) || a.B > kMostRows || !fits(a) || is_quantized(type) ||
      type_of(a.dt_weight, a.dt_packed) != type) {
    step_in_sequence(cuda_kernels(), stream, a);
    return;
  }
  const int64_t width = a.R + 2 * a.N;
  if (a.x_packed != nullptr && !expect_packed(stream, name, *a.x_packed, width, a.E)) return;
  if (a.dt_packed != nullptr && !expect_packed(stream, name, *a.dt_packed, a.E, a.R)) return;
  with_type(a.xz.dtype, [&]<class T>() {
    fused<T>(stream, name, a, matrix_of(a.x_weight, a.x_packed, a.E),
             matrix_of(a.dt_weight, a.dt_packed, a.R));
  });
}

}  // namespace mamba::cuda
