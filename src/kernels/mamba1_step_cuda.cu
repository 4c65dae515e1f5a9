// SPDX-License-Identifier: Apache-2.0
// mamba1_step for CUDA in two kernels. The first computes the convolution of 256 channels and their
// part of x_proj, for some of its outputs, or of fewer inside the product in front; the second adds
// up the parts, and does dt_proj, the scan, the gate and the move of the convolution's state. What
// is convolved is computed again wherever it is needed, which is cheaper than a kernel more. A trip
// to memory takes longer than all arithmetic, so either kernel makes one behind the kernel in
// front. Weights in blocks take the sequence of kernels.
#include "kernels/choices.h"
#include "kernels/linear_packed_cuda.cuh"
#include "kernels/linear_rows_cuda.cuh"
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
constexpr int kStates = 16;            // of a channel in registers, of all its threads
constexpr int kHeld = 48;              // inputs of dt_proj likewise
constexpr int kFewSlices = 8;          // parts of x_proj that one thread adds up
constexpr int64_t kBlocks = 4 * 132;   // that rows are split up to fill
constexpr int64_t kMaxGridZ = 65535;

static_assert(kSlice == kThreads);

// A matrix in rows.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t stride;
  bool aligned;  // all rows to 16 bytes
};

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
__device__ __forceinline__ float to_bf16_and_back(float v) { return to_float(from_float<bf16>(v)); }
// As the product takes it.
template <class W>
__device__ __forceinline__ float weight_of(const Columns<W>& v, int i, bool round) {
  return sizeof(W) == 4 && round ? to_bf16_and_back(v[i]) : v[i];
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
  Columns<W> weight[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const bool valid = output + o < a.outputs;
    weight[o] =
        load_columns<W>(a.weight, valid ? output + o : 0, first + kEach * lane, valid ? a.E : 0);
  }
  step::Taps taps;
  taps.load(a.conv, c);
  int64_t b = blockIdx.z;
  step::prefetch_window(a.conv, b, c);
  wait_for_previous();

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
      sum[o] = __fmul_rn(weight_of<W>(weight[o], 0, a.round), x[0]);
#pragma unroll
      for (int i = 1; i < kEach; ++i) {
        sum[o] = fmaf(weight_of<W>(weight[o], i, a.round), x[i], sum[o]);
      }
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

// Output i of x_proj.
template <class T>
__device__ __forceinline__ float add_parts(const Advance<T>& a, int64_t b, int64_t i) {
  const int64_t width = a.R + 2 * a.N;
  const float* from = a.partial + b * a.slices * width + i;
  float sum = 0;
#pragma unroll 8
  for (int64_t s = 0; s < a.slices; ++s) sum = __fadd_rn(sum, from[s * width]);
  return sum;
}

// All outputs of many parts to dbl, by four: groups of threads take slices by turns. room: as many
// values again for each group.
template <class T>
__device__ __forceinline__ void add_many_parts(const Advance<T>& a, int64_t b, float* dbl,
                                               float* room) {
  const int tid = threadIdx.x, width = static_cast<int>(a.R + 2 * a.N), fours = width / 4;
  const int groups = kThreads / fours, group = tid / fours;
  const float* from = a.partial + b * a.slices * width + tid % fours * 4;
  if (group < groups) {
    float sum[4] = {};
#pragma unroll 8
    for (int64_t s = group; s < a.slices; s += groups) {
      float v[4];
      load_n<4>(from + s * width, v);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = __fadd_rn(sum[i], v[i]);
    }
    store_n<4>(room + group * width + tid % fours * 4, sum);
  }
  __syncthreads();
  for (int i = tid; i < width; i += kThreads) {
    float sum = 0;
    for (int g = 0; g < groups; ++g) sum = __fadd_rn(sum, room[g * width + i]);
    dbl[i] = sum;
  }
}

// kParts threads share a channel: the inputs of dt_proj, eight at a time, and the states, each by
// turns. A block has 256 / kParts channels of every gridDim.y-th row.
template <class T, class W, int kParts>
__global__ void __launch_bounds__(kThreads, 3)
    advance_kernel(const __grid_constant__ Advance<T> a) {
  constexpr int kChannels = kThreads / kParts, kMyStates = kStates / kParts,
                kMyInputs = (kHeld / kEach + kParts - 1) / kParts;
  extern __shared__ __align__(16) float dbl[];  // dt (R), B (N), C (N), room of add_many_parts
  __shared__ float parts[kParts][kChannels];
  const int tid = threadIdx.x, mine = tid % kChannels, part = tid / kChannels;
  const int64_t width = a.R + 2 * a.N;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kChannels + mine;
  const bool inside = at < a.E;
  const int64_t c = inside ? at : a.E - 1;
  // The sum of what the parts of a channel have.
  const auto total = [&](float v) {
    parts[part][mine] = v;
    __syncthreads();
    v = parts[0][mine];
#pragma unroll
    for (int i = 1; i < kParts; ++i) v = __fadd_rn(v, parts[i][mine]);
    __syncthreads();
    return v;
  };

  Columns<W> weight[kMyInputs];
  float rate[kMyStates];
#pragma unroll
  for (int i = 0; i < kMyInputs; ++i) {
    weight[i] = load_columns<W>(a.weight, c, kEach * (part + kParts * i), a.R);
  }
#pragma unroll
  for (int i = 0; i < kMyStates; ++i) {
    const int64_t n = part + kParts * i;
    rate[i] = n < a.N ? decay_rate(a.A_t[n * a.E + c]) : -1.0f;
  }
  const float dt_bias = a.dt_bias[c], D = a.D != nullptr ? a.D[c] : 0.0f;
  step::Taps taps;
  taps.load(a.conv, c);
  wait_for_previous();

  for (int64_t b = blockIdx.y; b < a.B; b += gridDim.y) {
    const int64_t state = b * a.h.stride + c;
    float h[kMyStates];
#pragma unroll
    for (int i = 0; i < kMyStates; ++i) {
      const int64_t n = part + kParts * i;
      h[i] = n < a.N ? a.h.load(state + n * a.E) : 0.0f;
    }
    const float now = load(a.xz + b * a.xz_stride + c);
    const float z = load(a.xz + b * a.xz_stride + a.E + c);
    step::Window window;
    window.load(a.conv, b, c);
    if (a.slices <= kFewSlices || width % 4 != 0 || width > 4 * kThreads) {
      for (int64_t i = tid; i < width; i += kThreads) dbl[i] = add_parts(a, b, i);
    } else {
      add_many_parts(a, b, dbl, dbl + width);
    }
    __syncthreads();
    if (a.norms) {
      const int warp = tid / kWarp;
      if (warp == 0) norm_by_warp(dbl, a.R, a.norm_eps);
      if (warp == 1) norm_by_warp(dbl + a.R, a.N, a.norm_eps);
      if (warp == 2) norm_by_warp(dbl + a.R + a.N, a.N, a.norm_eps);
      __syncthreads();
    }
    const float u = window.output<T>(a.conv, taps, b, c, now);

    float delta = 0;
    const auto add = [&](const Columns<W>& w, int64_t r) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const float dt = r + i < a.R ? dbl[r + i] : 0.0f;
        delta = fmaf(weight_of<W>(w, i, a.round), a.round ? to_bf16_and_back(dt) : dt, delta);
      }
    };
#pragma unroll
    for (int i = 0; i < kMyInputs; ++i) {
      if (kEach * (part + kParts * i) < a.R) add(weight[i], kEach * (part + kParts * i));
    }
#pragma unroll 2
    for (int64_t r = kEach * (part + kParts * kMyInputs); r < a.R; r += kEach * kParts) {
      add(load_columns<W>(a.weight, c, r, a.R), r);
    }
    const float d = softplus<T>(__fadd_rn(total(delta), dt_bias)), du = __fmul_rn(d, u);

    float sum = 0;
    const auto advance_one = [&](int64_t n, float rate_n, float h_n) {
      const float next = fmaf(exp2_approx(__fmul_rn(d, rate_n)), h_n, __fmul_rn(du, dbl[a.R + n]));
      sum = fmaf(dbl[a.R + a.N + n], next, sum);
      if (inside) a.h.store(state + n * a.E, next);
    };
#pragma unroll
    for (int i = 0; i < kMyStates; ++i) {
      const int64_t n = part + kParts * i;
      if (n < a.N) advance_one(n, rate[i], h[i]);
    }
#pragma unroll 1
    for (int64_t n = part + kStates; n < a.N; n += kParts) {
      advance_one(n, decay_rate(a.A_t[n * a.E + c]), a.h.load(state + n * a.E));
    }
    sum = total(sum);
    if (part == 0 && inside) {
      store(a.y + b * a.y_stride + c, gate<T>(fmaf(D, u, sum), z));
      window.shift(a.conv, b, c, now);
    }
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

// The weight of the product in front, as a matrix in rows.
Matrix matrix_in_front(const Mamba1StepArgs& a) {
  return matrix_of(a.input.product.weight, a.input.product.packed, a.input.product.K);
}

// Whether the product in front can convolve.
bool takes_input(const Mamba1StepArgs& a, const Matrix& x_weight) {
  const LinearArgs& product = a.input.product;
  const RmsNormArgs& norm = a.input.norm;
  if (!product.y || a.B != 1) return false;
  const Matrix weight = matrix_in_front(a);
  const int64_t width = a.R + 2 * a.N, channels = convolved_channels(product.K);
  const bool types = weight.dtype == DType::kBF16 && x_weight.dtype == DType::kBF16 &&
                     norm.y.dtype == DType::kBF16 &&
                     (norm.x.dtype == DType::kBF16 || norm.x.dtype == DType::kF32);
  const bool sizes = channels != 0 && a.E % channels == 0 && width % 4 == 0 &&
                     width <= kMostConvolvedOutputs && product.N == 2 * a.E && product.K >= 8 &&
                     product.K % 8 == 0;
  const bool aligned = weight.aligned && x_weight.aligned && rows_aligned(norm.x, 0, 16) &&
                       rows_aligned(norm.residual, 0, 16) &&
                       rows_aligned(norm.residual_out, 0, 16) && rows_aligned(norm.weight, 0, 16);
  return types && sizes && aligned && !product.accumulate && product.y.data == a.xz.data &&
         product.y.dtype == a.xz.dtype;
}

template <class T>
void advance(Stream& stream, const char* name, const Mamba1StepArgs& a, const Matrix& dt_weight,
             const float* partial, int64_t slices, Way way) {
  const int64_t width = a.R + 2 * a.N;
  Advance<T> v{};
  v.B = a.B, v.E = a.E, v.N = a.N, v.R = a.R, v.slices = slices;
  v.conv = step::conv_of(a, a.E);
  v.xz = a.xz.as<T>(), v.xz_stride = a.xz_stride;
  v.partial = partial;
  v.norms = a.norms, v.round = a.product == Product::kBF16;
  v.norm_eps = static_cast<float>(a.norm_eps);
  v.weight = dt_weight;
  v.dt_bias = a.dt_bias.as<float>(), v.A_t = a.A_t.as<float>(), v.D = a.D.as<float>();
  v.h = step::state_buf(a.ssm_state, a.state_stride);
  v.y = a.y.as<T>(), v.y_stride = a.y_stride;
  const size_t room = slices <= kFewSlices ? 0 : 4 * kThreads;
  const auto run = [&]<int kParts>() {
    const dim3 grid(static_cast<unsigned>(ceil_div(a.E, kThreads / kParts)),
                    static_cast<unsigned>(a.B < kMaxGridZ ? a.B : kMaxGridZ));
    with_type(dt_weight.dtype, [&]<class W>() {
      launch_early(stream, name, advance_kernel<T, W, kParts>, grid, dim3(kThreads),
                   (static_cast<size_t>(width) + room) * sizeof(float), v);
    });
  };
  if (way == Way::kFused2) {
    run.template operator()<2>();
  } else {
    run.template operator()<8>();
  }
}

template <class T>
void fused(Stream& stream, const char* name, const Mamba1StepArgs& a, const Matrix& x_weight,
           const Matrix& dt_weight, Way way) {
  const int64_t width = a.R + 2 * a.N;
  const int64_t channels = way == Way::kFusedInput ? convolved_channels(a.input.product.K) : kSlice;
  const int64_t slices = ceil_div(a.E, channels);
  float* partial = stream.scratch<float>(a.B * slices * width);
  if (partial == nullptr) return;
  const Conv conv = step::conv_of(a, a.E);
  const bool round = a.product == Product::kBF16;
  if (way == Way::kFusedInput) {
    const Matrix weight = matrix_in_front(a);
    const ConvolvedRow row = {
        conv, round, static_cast<const bf16*>(x_weight.data), x_weight.stride, width, partial};
    multiply_convolved_row(stream, name, a.input, row, CBuf(weight.data, weight.dtype),
                           weight.stride);
  } else {
    project(stream, name,
            Project<T>{a.B, a.E, width, conv, a.xz.as<T>(), a.xz_stride, x_weight, round, partial});
  }
  advance<T>(stream, name, a, dt_weight, partial, slices, way);
}

bool in_blocks(const PackedLinear* packed) {
  return packed != nullptr && is_quantized(packed->dtype);
}

}  // namespace

void mamba1_step(Stream& stream, const Mamba1StepArgs& a) noexcept {
  const char* name = "mamba1_step";
  if (a.B == 0 || a.E == 0) return;
  const bool blocks = in_blocks(a.x_packed) || in_blocks(a.dt_packed);
  const Matrix x_weight = blocks ? Matrix{} : matrix_of(a.x_weight, a.x_packed, a.E);
  const bool input = !blocks && takes_input(a, x_weight);
  const Way way = choose(stream, mamba1_step_request(a.B, a.E, a.xz.dtype, blocks, input)).way;
  if (way == Way::kSequence) return step_in_sequence(cuda_kernels(), stream, a);
  const int64_t width = a.R + 2 * a.N;
  if (a.x_packed != nullptr && !expect_packed(stream, name, *a.x_packed, width, a.E)) return;
  if (a.dt_packed != nullptr && !expect_packed(stream, name, *a.dt_packed, a.E, a.R)) return;
  if (way != Way::kFusedInput) {
    if (a.input.product.y) cuda_kernels().norm_linear(stream, a.input);
  } else if (const LinearArgs& p = a.input.product;
             p.packed != nullptr && !expect_packed(stream, name, *p.packed, p.N, p.K)) {
    return;
  }
  with_type(a.xz.dtype, [&]<class T>() {
    fused<T>(stream, name, a, x_weight, matrix_of(a.dt_weight, a.dt_packed, a.R), way);
  });
}

}  // namespace mamba::cuda
