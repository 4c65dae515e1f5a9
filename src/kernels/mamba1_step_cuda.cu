// SPDX-License-Identifier: Apache-2.0
// mamba1_step for CUDA in two kernels. The first computes the convolution of 256 channels and their
// part of x_proj, for some of its outputs; the second adds up the parts, and does dt_proj, the
// scan, the gate and the move of the convolution's state for 32 channels. What is convolved is
// computed again wherever it is needed, which is cheaper than a kernel more. Weights in blocks take
// the sequence of kernels.
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
constexpr int kSlice = kWarp * kEach;  // channels of a part of x_proj
constexpr int kChannels = kWarp;       // of a block of the second kernel
constexpr int64_t kBlocks = 4 * 132;   // that rows are split up to fill
constexpr int64_t kMaxGridZ = 65535;

static_assert(kSlice == kThreads && kChannels * 8 == kThreads);

// A matrix in rows.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t stride;
  bool aligned;  // all rows to 16 bytes
};

// Columns c ... c + 7 of row `row`, zero from `cols` on.
template <class W>
__device__ __forceinline__ void load_columns(const Matrix& m, int64_t row, int64_t c, int64_t cols,
                                             float (&v)[kEach]) {
  const W* from = static_cast<const W*>(m.data) + row * m.stride + c;
  if (m.aligned && c + kEach <= cols) {
    load_n<kEach>(from, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) v[i] = c + i < cols ? load(from + i) : 0.0f;
}
__device__ __forceinline__ float to_bf16_and_back(float v) { return to_float(from_float<bf16>(v)); }
// Operands of a product in bf16.
template <class W>
__device__ __forceinline__ void round_weights(bool round, float (&v)[kEach]) {
  if constexpr (sizeof(W) == 4) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) v[i] = round ? to_bf16_and_back(v[i]) : v[i];
  }
}

// ---- x_proj ----

template <class T>
struct Project {
  int64_t B, E, outputs;
  Conv conv;
  const T* x;
  int64_t x_stride;
  Matrix weight;  // (outputs, E)
  bool round;
  float* partial;  // (B, slices, outputs)
};

// A warp has kOutputs outputs, and a block the slices blockIdx.x of every gridDim.z-th row.
template <class T, class W, int kOutputs>
__global__ void __launch_bounds__(kThreads) project_kernel(const __grid_constant__ Project<T> a) {
  __shared__ __align__(16) float shared[2][kSlice];
  const int tid = threadIdx.x, lane = tid % kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSlice;
  const int64_t output = (static_cast<int64_t>(blockIdx.y) * kWarps + tid / kWarp) * kOutputs;
  const bool inside = first + tid < a.E;
  const int64_t c = inside ? first + tid : a.E - 1;
  float weight[kOutputs][kEach];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const bool valid = output + o < a.outputs;
    load_columns<W>(a.weight, valid ? output + o : 0, first + kEach * lane, valid ? a.E : 0,
                    weight[o]);
    round_weights<W>(a.round, weight[o]);
  }
  step::Taps taps;
  taps.load(a.conv, c);
  wait_for_previous();

  int64_t b = blockIdx.z;
  float now = load(a.x + b * a.x_stride + c);
  step::Window window;
  window.load(a.conv, b, c);
  for (int stage = 0; b < a.B; stage ^= 1) {
    float v = window.output<T>(a.conv, taps, b, c, now);
    if (a.round) v = to_bf16_and_back(v);
    shared[stage][tid] = inside ? v : 0.0f;
    __syncthreads();
    const int64_t row = b;
    b += gridDim.z;
    if (b < a.B) {
      now = load(a.x + b * a.x_stride + c);
      window.load(a.conv, b, c);
    }
    float x[kEach], sum[kOutputs];
    load_n<kEach>(shared[stage] + kEach * lane, x);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      sum[o] = __fmul_rn(weight[o][0], x[0]);
#pragma unroll
      for (int i = 1; i < kEach; ++i) sum[o] = fmaf(weight[o][i], x[i], sum[o]);
    }
    const float total = step::sum_each<kOutputs, kWarp>(sum);
    const int64_t mine = output + lane / (kWarp / kOutputs);
    if (lane % (kWarp / kOutputs) == 0 && mine < a.outputs) {
      a.partial[(row * gridDim.x + blockIdx.x) * a.outputs + mine] = total;
    }
  }
}

// ---- dt_proj, scan, gate ----

template <class T>
struct Advance {
  int64_t B, E, N, R, slices;
  Conv conv;
  const T* xz;
  int64_t xz_stride;
  const float* partial;  // (B, slices, R + 2N)
  bool norms, round;
  float norm_eps;
  Matrix weight;  // (E, R)
  const float *dt_bias, *A_t, *D;
  StateBuf h;
  T* y;
  int64_t y_stride;
};

// v (n) over the root of its mean square, by one warp.
__device__ __forceinline__ void norm_by_warp(float* v, int64_t n, float eps) {
  const int lane = threadIdx.x % kWarp;
  float sum = 0;
  for (int64_t i = lane; i < n; i += kWarp) sum = fmaf(v[i], v[i], sum);
  const float s = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(n) + eps);
  for (int64_t i = lane; i < n; i += kWarp) v[i] *= s;
}

// What a block reads of a row, by the thread that uses it: early, so that a row's memory is on its
// way while the row before it is computed.
constexpr int kStates = 2;  // of a thread in registers: N to 16
struct Row {
  float h[kStates], dbl, now, z;
  step::Window window;

  // Output i of x_proj.
  template <class T>
  static __device__ __forceinline__ float add_parts(const Advance<T>& a, int64_t b, int64_t i) {
    const int64_t width = a.R + 2 * a.N;
    const float* from = a.partial + b * a.slices * width + i;
    float sum = 0;
#pragma unroll 8
    for (int64_t s = 0; s < a.slices; ++s) sum = __fadd_rn(sum, from[s * width]);
    return sum;
  }
  template <class T>
  static __device__ __forceinline__ void prefetch_state(const Advance<T>& a, int64_t b, int64_t c) {
    const int warp = threadIdx.x / kWarp;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = warp + kWarps * i;
      if (n < a.N) a.h.prefetch_at(b * a.h.stride + n * a.E + c);
    }
  }
  template <class T>
  __device__ __forceinline__ void load_state(const Advance<T>& a, int64_t b, int64_t c) {
    const int warp = threadIdx.x / kWarp;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = warp + kWarps * i;
      h[i] = n < a.N ? a.h.load(b * a.h.stride + n * a.E + c) : 0.0f;
    }
  }
  template <class T>
  __device__ __forceinline__ void load_inputs(const Advance<T>& a, int64_t b, int64_t c) {
    const int tid = threadIdx.x, warp = tid / kWarp;
    if (warp == 0) {
      now = cuda::load(a.xz + b * a.xz_stride + c);
      z = cuda::load(a.xz + b * a.xz_stride + a.E + c);
      window.load(a.conv, b, c);
    }
    if (tid < a.R + 2 * a.N) dbl = add_parts(a, b, tid);
  }
};

// A block has 32 channels of every gridDim.y-th row. For dt_proj eight lanes share a channel; for
// the scan a warp has all channels, and every eighth state of each.
template <class T, class W>
__global__ void __launch_bounds__(kThreads) advance_kernel(const __grid_constant__ Advance<T> a) {
  constexpr int kHeld = 3;        // vectors of weights in registers: R to 192
  extern __shared__ float dbl[];  // dt (R), B (N), C (N)
  __shared__ float shared_u[kChannels], shared_d[kChannels], shared_y[kWarps][kChannels];
  const int tid = threadIdx.x, lane = tid % kWarp, warp = tid / kWarp, part = tid % 8;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChannels;
  const int64_t width = a.R + 2 * a.N;
  const bool inside = first + lane < a.E;
  const int64_t c = inside ? first + lane : a.E - 1;                    // of the scan
  const int64_t p = first + tid / 8 < a.E ? first + tid / 8 : a.E - 1;  // of dt_proj

  float weight[kHeld][kEach], rate[kStates], D = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    load_columns<W>(a.weight, p, kEach * (part + 8 * i), a.R, weight[i]);
    round_weights<W>(a.round, weight[i]);
  }
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int64_t n = warp + kWarps * i;
    rate[i] = n < a.N ? decay_rate(a.A_t[n * a.E + c]) : -1.0f;
  }
  const float dt_bias = a.dt_bias[p];
  step::Taps taps;
  if (warp == 0) {
    taps.load(a.conv, c);
    D = a.D != nullptr ? a.D[c] : 0.0f;
  }
  int64_t b = blockIdx.y;
  Row row, next;
  Row::prefetch_state(a, b, c);
  wait_for_previous();

  row.load_state(a, b, c);
  row.load_inputs(a, b, c);
  for (; b < a.B; b += gridDim.y, row = next) {
    if (tid < width) dbl[tid] = row.dbl;
    for (int64_t i = tid + kThreads; i < width; i += kThreads) dbl[i] = Row::add_parts(a, b, i);
    if (warp == 0) shared_u[lane] = row.window.output<T>(a.conv, taps, b, c, row.now);
    __syncthreads();
    if (b + gridDim.y < a.B) {
      next.load_state(a, b + gridDim.y, c);
      next.load_inputs(a, b + gridDim.y, c);
    }
    if (a.norms) {
      if (warp == 0) norm_by_warp(dbl, a.R, a.norm_eps);
      if (warp == 1) norm_by_warp(dbl + a.R, a.N, a.norm_eps);
      if (warp == 2) norm_by_warp(dbl + a.R + a.N, a.N, a.norm_eps);
      __syncthreads();
    }

    float delta = 0;
    const auto add = [&](const float(&w)[kEach], int64_t r) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const float dt = r + i < a.R ? dbl[r + i] : 0.0f;
        delta = fmaf(w[i], a.round ? to_bf16_and_back(dt) : dt, delta);
      }
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (kEach * (part + 8 * i) < a.R) add(weight[i], kEach * (part + 8 * i));
    }
    for (int64_t r = kEach * (part + 8 * kHeld); r < a.R; r += kEach * 8) {
      float w[kEach];
      load_columns<W>(a.weight, p, r, a.R, w);
      round_weights<W>(a.round, w);
      add(w, r);
    }
    delta = warp_sum<8>(delta);
    if (part == 0) shared_d[tid / 8] = softplus<T>(__fadd_rn(delta, dt_bias));
    __syncthreads();

    const float d = shared_d[lane], u = shared_u[lane], du = __fmul_rn(d, u);
    const int64_t state = b * a.h.stride + c;
    float sum = 0;
    const auto advance_one = [&](int64_t n, float rate_n, float h_n) {
      const float h = fmaf(exp2_approx(__fmul_rn(d, rate_n)), h_n, __fmul_rn(du, dbl[a.R + n]));
      sum = fmaf(dbl[a.R + a.N + n], h, sum);
      if (inside) a.h.store(state + n * a.E, h);
    };
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = warp + kWarps * i;
      if (n < a.N) advance_one(n, rate[i], row.h[i]);
    }
#pragma unroll 4
    for (int64_t n = warp + kWarps * kStates; n < a.N; n += kWarps) {
      advance_one(n, decay_rate(a.A_t[n * a.E + c]), a.h.load(state + n * a.E));
    }
    shared_y[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || !inside) continue;
    sum = shared_y[0][lane];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) sum = __fadd_rn(sum, shared_y[i][lane]);
    store(a.y + b * a.y_stride + c, gate<T>(fmaf(D, u, sum), row.z));
    row.window.shift(a.conv, b, c, row.now);
  }
}

// ---- Host ----

Matrix matrix_of(CBuf weight, const PackedLinear* packed, int64_t K) {
  if (packed != nullptr) return {packed->data, packed->dtype, packed_stride(*packed), true};
  return {weight.data, weight.dtype, K, rows_aligned(weight, K, 16)};
}

// How many groups of rows make enough blocks of `blocks` a row.
unsigned row_groups(int64_t B, int64_t blocks) {
  const int64_t groups = ceil_div(kBlocks, blocks);
  const int64_t most = B < kMaxGridZ ? B : kMaxGridZ;
  return static_cast<unsigned>(groups < most ? groups : most);
}

template <class T>
void project(Stream& stream, const char* name, const Project<T>& p) {
  const int64_t slices = ceil_div(p.E, kSlice);
  const auto run = [&]<int kOutputs>() {
    const int64_t parts = ceil_div(p.outputs, kWarps * kOutputs);
    const dim3 grid(static_cast<unsigned>(slices), static_cast<unsigned>(parts),
                    row_groups(p.B, slices * parts));
    with_type(p.weight.dtype, [&]<class W>() {
      launch_early(stream, name, project_kernel<T, W, kOutputs>, grid, dim3(kThreads), 0, p);
    });
  };
  // More outputs a warp compute the convolution less often, fewer make more blocks.
  if (p.B <= 2) {
    run.template operator()<1>();
  } else if (p.B <= 16) {
    run.template operator()<4>();
  } else {
    run.template operator()<8>();
  }
}

template <class T>
void fused(Stream& stream, const char* name, const Mamba1StepArgs& a, const Matrix& x_weight,
           const Matrix& dt_weight) {
  const int64_t width = a.R + 2 * a.N, slices = ceil_div(a.E, kSlice);
  float* partial = stream.scratch<float>(a.B * slices * width);
  if (partial == nullptr) return;
  const Conv conv = step::conv_of(a, a.E);
  const bool round = a.product == Product::kBF16;
  project(stream, name,
          Project<T>{a.B, a.E, width, conv, a.xz.as<T>(), a.xz_stride, x_weight, round, partial});
  Advance<T> v{};
  v.B = a.B, v.E = a.E, v.N = a.N, v.R = a.R, v.slices = slices;
  v.conv = conv;
  v.xz = a.xz.as<T>(), v.xz_stride = a.xz_stride;
  v.partial = partial;
  v.norms = a.norms, v.round = round, v.norm_eps = static_cast<float>(a.norm_eps);
  v.weight = dt_weight;
  v.dt_bias = a.dt_bias.as<float>(), v.A_t = a.A_t.as<float>(), v.D = a.D.as<float>();
  v.h = step::state_buf(a.ssm_state, a.state_stride);
  v.y = a.y.as<T>(), v.y_stride = a.y_stride;
  const int64_t blocks = ceil_div(a.E, kChannels);
  const dim3 grid(static_cast<unsigned>(blocks), row_groups(a.B, blocks));
  with_type(dt_weight.dtype, [&]<class W>() {
    launch_early(stream, name, advance_kernel<T, W>, grid, dim3(kThreads),
                 static_cast<size_t>(width) * sizeof(float), v);
  });
}

bool in_blocks(const PackedLinear* packed) {
  return packed != nullptr && is_quantized(packed->dtype);
}

}  // namespace

void mamba1_step(Stream& stream, const Mamba1StepArgs& a) noexcept {
  const char* name = "mamba1_step";
  if (a.B == 0 || a.E == 0) return;
  // Of many rows the products are better done together.
  static const int64_t kMostRows = getenv("MAMBA_X_ROWS") ? atoi(getenv("MAMBA_X_ROWS")) : 16;
  if (a.B > kMostRows || in_blocks(a.x_packed) || in_blocks(a.dt_packed)) {
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
