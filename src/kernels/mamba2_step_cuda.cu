// SPDX-License-Identifier: Apache-2.0
// mamba2_step for CUDA in two kernels. In the first a block has some rows of the state of a head
// and computes the convolution of what it needs: its own x, whose state it moves on, and B and C of
// its group, which other blocks read too. The second moves the state of those on, and does the
// gated norm and the gated MLP, or leaves them to the product behind the step. Of many sequences a
// kernel before these convolves everything once, to the same bits.
#include "kernels/choices.h"
#include "kernels/linear_packed_cuda.cuh"
#include "kernels/linear_rows_cuda.cuh"
#include "kernels/ssd_cuda.cuh"
#include "kernels/step.cuh"
#include "kernels/step_sequence.h"

namespace mamba::cuda {
namespace {

using step::Conv;

constexpr int kThreads = 256;

// What both kernels know.
template <class T>
struct Step {
  int64_t B, H, P, N, G, M;
  Conv conv;
  const T* zx;  // z0 (M), x0 (M), z (HP), conv's input (HP + 2GN), dt (H)
  int64_t zx_stride;
  T* y;  // (B, HP) between the kernels
  T* out;
  int64_t out_stride;
  bool gated_norm, norm_before_gate;

  __host__ __device__ int64_t heads() const { return H * P; }
  __device__ const T* z(int64_t b) const { return zx + b * zx_stride + 2 * M; }
  __device__ const T* conv_input(int64_t b) const { return z(b) + heads(); }
};

// ---- Convolution and state ----

template <class T>
struct Advance {
  Step<T> s;
  const float *dt_bias, *A, *D;
  bool D_has_hdim;
  float dt_min, dt_max;
  void* S;
  int64_t s_stride;
  const float* convolved;  // (B, C) where that is done before
};

// Everything that is convolved, into `out` (B, C), and the state of it moved on.
template <class T>
__global__ void __launch_bounds__(kThreads)
    convolve_kernel(const __grid_constant__ Step<T> s, float* out) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  if (c >= s.conv.C) return;
  step::Taps taps;
  taps.load(s.conv, c);
  step::prefetch_window(s.conv, b, c);
  wait_for_previous();
  const float now = load(s.conv_input(b) + c);
  step::Window window;
  window.load(s.conv, b, c);
  out[b * s.conv.C + c] = window.output<T>(s.conv, taps, b, c, now);
  window.shift(s.conv, b, c, now);
}

// What a thread convolves: an element of B or C, or of x.
struct Item {
  int64_t at, channel;  // channel < 0: nothing
  step::Taps taps;
  step::Window window;
  float now, z, D;
};

// The state lies in rows of N: kLanes lanes have a row, kVec neighbouring states each, and kRows
// rows at once. A block has kThreads / kLanes * kRows rows of one head.
template <class T, class State, int kRows, int kLanes, int kVec, bool convolved>
__global__ void __launch_bounds__(kThreads, convolved ? 4 : 2)
    advance_kernel(const __grid_constant__ Advance<T> a) {
  constexpr int kGroups = kThreads / kLanes, kBlockRows = kGroups * kRows, kHeld = 2;
  constexpr int kSweep = kLanes * kVec;
  extern __shared__ __align__(16) float shared_B[];  // B (N, to whole sweeps), C likewise
  __shared__ float shared_x[kBlockRows], shared_skip[kBlockRows], shared_gate[kBlockRows];
  const Step<T>& s = a.s;
  const int tid = threadIdx.x, lane = tid % kLanes;
  const int64_t padded = (s.N + kSweep - 1) / kSweep * kSweep;
  float* shared_C = shared_B + padded;
  const int64_t b = blockIdx.x, h = blockIdx.y, g = h / (s.H / s.G);
  const int64_t p0 = static_cast<int64_t>(blockIdx.z) * kBlockRows;
  const int64_t rows = s.P - p0 < kBlockRows ? s.P - p0 : kBlockRows;
  const bool gates = !s.gated_norm || !s.norm_before_gate;

  const auto plan = [&](int64_t at, Item& item) {
    item.at = at;
    item.channel = -1;
    if (at < 2 * padded) {
      const int64_t n = at < padded ? at : at - padded;
      if (n < s.N) item.channel = s.heads() + (at < padded ? g : s.G + g) * s.N + n;
    } else if (at - 2 * padded < rows) {
      item.channel = h * s.P + p0 + at - 2 * padded;
      item.D = a.D == nullptr ? 0.0f : a.D[a.D_has_hdim ? item.channel : h];
    }
    if (!convolved && item.channel >= 0) item.taps.load(s.conv, item.channel);
  };
  const auto fetch = [&](Item& item) {
    if (item.channel < 0) return;
    if constexpr (convolved) {
      item.now = a.convolved[b * s.conv.C + item.channel];
    } else {
      item.now = load(s.conv_input(b) + item.channel);
      item.window.load(s.conv, b, item.channel);
    }
    if (item.at >= 2 * padded && gates) item.z = load(s.z(b) + item.channel);
  };
  const auto finish = [&](const Item& item) {
    const bool valid = item.channel >= 0;
    float v = valid ? item.now : 0.0f;
    if constexpr (!convolved) {
      if (valid) v = item.window.output<T>(s.conv, item.taps, b, item.channel, item.now);
    }
    if (item.at < 2 * padded) {
      shared_B[item.at] = v;
    } else if (valid) {
      const int64_t row = item.at - 2 * padded;
      shared_x[row] = v;
      shared_skip[row] = item.D * v;
      shared_gate[row] = gates ? item.z * sigmoid<T>(item.z) : 1.0f;
      if constexpr (!convolved) item.window.shift(s.conv, b, item.channel, item.now);
    }
  };

  Item held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) plan(tid + i * kThreads, held[i]);
  const float bias = a.dt_bias[h], A = a.A[h];

  const int first = tid / kLanes * kRows;  // row of the block
  State* S = static_cast<State*>(a.S) + b * a.s_stride + (h * s.P + p0 + first) * s.N;
  const auto load_rows = [&](int64_t n, float(&v)[kRows][kVec]) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (first + k < rows && n < s.N) load_n<kVec>(S + k * s.N + n, v[k]);
    }
  };
  for (int k = 0; k < kRows; ++k) {
    if (first + k < rows && lane * kVec < s.N) prefetch(S + k * s.N + lane * kVec);
  }
  wait_for_previous();

  float state[kRows][kVec];
  load_rows(lane * kVec, state);

  const float raw = load(s.conv_input(b) + s.conv.C + h) + bias;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) fetch(held[i]);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) finish(held[i]);
  for (int64_t i = tid + kHeld * kThreads; i < 2 * padded + rows; i += kThreads) {
    Item item;
    plan(i, item);
    fetch(item);
    finish(item);
  }
  const float d = ssd::limited(ssd::soft(raw), a.dt_min, a.dt_max), decay = expf(d * A);
  __syncthreads();

  float in[kRows], sum[kRows] = {};
#pragma unroll
  for (int k = 0; k < kRows; ++k) in[k] = first + k < rows ? d * shared_x[first + k] : 0.0f;
  for (int64_t n = lane * kVec; n < padded; n += kSweep) {
    if (n >= kSweep) load_rows(n, state);
    if (n >= s.N) break;
    float B[kVec], C[kVec];
    load_n<kVec>(shared_B + n, B);
    load_n<kVec>(shared_C + n, C);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (first + k >= rows) continue;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        state[k][i] = fmaf(decay, state[k][i], in[k] * B[i]);
        sum[k] = fmaf(state[k][i], C[i], sum[k]);
      }
      store_n<kVec>(S + k * s.N + n, state[k]);
    }
  }
  const float y = step::sum_each<kRows, kLanes>(sum);
  const int row = first + lane / (kLanes / kRows);
  if (lane % (kLanes / kRows) != 0 || row >= rows) return;
  const int64_t channel = h * s.P + p0 + row;
  const float v = (y + shared_skip[row]) * shared_gate[row];
  store(s.gated_norm ? s.y + b * s.heads() + channel : s.out + b * s.out_stride + s.M + channel, v);
}

// ---- Norm, MLP, state of B and C ----

template <class T>
struct Finish {
  Step<T> s;
  int64_t norms, width;  // groups of the norm (0 without), channels of each
  float eps;
  const float* weight;
  bool vectors;
  int64_t moved;  // elements of B and C of the convolution's state
};

constexpr int kFinishThreads = 512;

// One group of a row: the y of the first kernel, which has the gate already unless that comes after
// the norm. What a thread holds in registers covers 8192 channels.
template <class T, int kVec>
__device__ __forceinline__ void norm_group(const Finish<T>& a, int64_t b, int64_t group) {
  constexpr int kHeld = 4;
  constexpr int64_t kPanel = kFinishThreads * kVec;
  __shared__ float shared[kFinishThreads / kWarp];
  const Step<T>& s = a.s;
  const int64_t begin = group * a.width, mine = threadIdx.x * kVec;
  const T* y = s.y + b * s.heads() + begin;
  const T* z = s.z(b) + begin;
  const float* w = a.weight + begin;
  T* out = s.out + b * s.out_stride + s.M + begin;
  float weight[kHeld][kVec], v[kHeld][kVec], gate[kHeld][kVec], sum = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (mine + k * kPanel < a.width) load_n<kVec>(w + mine + k * kPanel, weight[k]);
  }
  wait_for_previous();
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t c = mine + k * kPanel;
    if (c >= a.width) continue;
    load_n<kVec>(y + c, v[k]);
    if (s.norm_before_gate) load_n<kVec>(z + c, gate[k]);
  }
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
#pragma unroll
    for (int i = 0; i < kVec && mine + k * kPanel < a.width; ++i) sum = fmaf(v[k][i], v[k][i], sum);
  }
  for (int64_t c = mine + kHeld * kPanel; c < a.width; c += kPanel) {
    float far[kVec];
    load_n<kVec>(y + c, far);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum = fmaf(far[i], far[i], sum);
  }
  sum = block_sum<kFinishThreads>(sum, shared);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(a.width) + a.eps);
  const auto write = [&](int64_t c, float(&u)[kVec], const float(&wc)[kVec],
                         const float(&zc)[kVec]) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      u[i] *= scale * wc[i];
      if (s.norm_before_gate) u[i] *= zc[i] * sigmoid<T>(zc[i]);
    }
    store_n<kVec>(out + c, u);
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t c = mine + k * kPanel;
    if (c < a.width) write(c, v[k], weight[k], gate[k]);
  }
  for (int64_t c = mine + kHeld * kPanel; c < a.width; c += kPanel) {
    float u[kVec], wc[kVec], zc[kVec] = {};
    load_n<kVec>(y + c, u);
    load_n<kVec>(w + c, wc);
    if (s.norm_before_gate) load_n<kVec>(z + c, zc);
    write(c, u, wc, zc);
  }
}

// Blocks (b, y): a group of the norm for y < norms, then elements of B and C of the convolution's
// state, then of the gated MLP.
template <class T, int kVec>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const __grid_constant__ Finish<T> a) {
  const Step<T>& s = a.s;
  const int64_t b = blockIdx.x;
  if (blockIdx.y < a.norms) {
    norm_group<T, kVec>(a, b, blockIdx.y);
    return;
  }
  wait_for_previous();
  const int64_t BC = a.moved;
  const int64_t i = (blockIdx.y - a.norms) * kFinishThreads + threadIdx.x;
  if (i < BC) {
    const int64_t c = s.heads() + i;
    step::Window window;
    window.load(s.conv, b, c);
    window.shift(s.conv, b, c, load(s.conv_input(b) + c));
  } else if (i < BC + s.M) {
    const T* row = s.zx + b * s.zx_stride;
    const float z = load(row + i - BC), x = load(row + s.M + i - BC);
    store(s.out + b * s.out_stride + i - BC, x * (z * sigmoid<T>(z)));
  }
}

// ---- Host ----

template <class T, class State, int kRows, int kLanes, int kVec, bool convolved = false>
void advance(Stream& stream, const char* name, const Advance<T>& a) {
  constexpr int64_t kSweep = kLanes * kVec, kBlockRows = kThreads / kLanes * kRows;
  const dim3 grid(static_cast<unsigned>(a.s.B), static_cast<unsigned>(a.s.H),
                  static_cast<unsigned>(ceil_div(a.s.P, kBlockRows)));
  const int64_t padded = ceil_div(a.s.N, kSweep) * kSweep;
  launch_early(stream, name, advance_kernel<T, State, kRows, kLanes, kVec, convolved>, grid,
               dim3(kThreads), static_cast<size_t>(2 * padded) * sizeof(float), a);
}

template <class T, class State>
void advance(Stream& stream, const char* name, const Advance<T>& a, bool vectors) {
  // Two rows a warp make enough blocks for few sequences; with many, four keep more on its way.
  if (!vectors) {
    advance<T, State, 2, 32, 1>(stream, name, a);
  } else if (a.s.N <= 64 && a.convolved != nullptr) {
    advance<T, State, 4, 16, 4, true>(stream, name, a);
  } else if (a.s.N <= 64) {
    advance<T, State, 2, 16, 4>(stream, name, a);
  } else if (a.convolved != nullptr) {
    advance<T, State, 4, 32, 4, true>(stream, name, a);
  } else {
    advance<T, State, 2, 32, 4>(stream, name, a);
  }
}

// Of many sequences, into scratch memory.
template <class T>
float* convolve(Stream& stream, const char* name, const Step<T>& s) {
  auto* out = stream.scratch<float>(s.B * s.conv.C);
  if (out == nullptr) return nullptr;
  launch_early(
      stream, name, convolve_kernel<T>,
      dim3(static_cast<unsigned>(ceil_div(s.conv.C, kThreads)), static_cast<unsigned>(s.B)),
      dim3(kThreads), 0, s, out);
  return out;
}

template <class T>
Step<T> step_of(const Mamba2StepArgs& a) {
  return {a.B,
          a.H,
          a.P,
          a.N,
          a.G,
          a.M,
          step::conv_of(a, a.H * a.P + 2 * a.G * a.N),
          a.zx.as<T>(),
          a.zx_stride,
          a.y.as<T>(),
          a.out.as<T>(),
          a.out_stride,
          a.gated_norm,
          a.norm_before_gate};
}

template <class T>
void finish(Stream& stream, const char* name, const Mamba2StepArgs& a, bool convolved) {
  Finish<T> f{step_of<T>(a),
              a.gated_norm ? a.norm_groups : 0,
              0,
              static_cast<float>(a.norm_eps),
              a.norm_weight.as<float>(),
              false,
              0};
  f.width = a.gated_norm ? a.H * a.P / a.norm_groups : 0;
  const int64_t bytes = 4 * static_cast<int64_t>(sizeof(T)), z_at = 2 * a.M;
  f.vectors = f.width % 4 == 0 && a.M % 4 == 0 && rows_aligned(a.y, a.H * a.P, bytes) &&
              rows_aligned(a.zx + z_at, a.zx_stride, bytes) &&
              rows_aligned(a.out, a.out_stride, bytes) && rows_aligned(a.norm_weight, 0, 16);
  f.moved = convolved ? 0 : 2 * a.G * a.N;
  const int64_t rest = ceil_div(f.moved + a.M, kFinishThreads);
  if (f.norms + rest == 0) return;
  const dim3 grid(static_cast<unsigned>(a.B), static_cast<unsigned>(f.norms + rest));
  launch_early(stream, name, f.vectors ? finish_kernel<T, 4> : finish_kernel<T, 1>, grid,
               dim3(kFinishThreads), 0, f);
}

// The product behind the step, as a matrix in rows.
struct Behind {
  CBuf weight;
  int64_t stride = 0;
};
Behind behind(const Mamba2StepArgs& a) {
  const LinearArgs& product = a.product;
  if (product.packed == nullptr) return {product.weight, product.K};
  return {CBuf(product.packed->data, product.packed->dtype), packed_stride(*product.packed)};
}

// Whether the product behind can do the norm: of one row as one group, gated before it.
bool takes_norm(const Mamba2StepArgs& a) {
  if (!a.product.y || a.B != 1) return false;
  const LinearArgs& product = a.product;
  const auto [weight, stride] = behind(a);
  const bool types = weight.dtype == DType::kBF16 &&
                     (a.zx.dtype == DType::kBF16 ||
                      (a.zx.dtype == DType::kF32 && product.product == Product::kBF16));
  return types && a.gated_norm && !a.norm_before_gate && a.norm_groups == 1 && a.M == 0 &&
         !product.accumulate && product.x.data == a.out.data && product.K == a.H * a.P &&
         product.K % 8 == 0 && rows_aligned(weight, stride, 16) && rows_aligned(a.y, 0, 16) &&
         rows_aligned(a.norm_weight, 0, 16);
}

template <class T>
void multiply(Stream& stream, const char* name, const Mamba2StepArgs& a) {
  const LinearArgs& product = a.product;
  if (product.packed != nullptr &&
      !expect_packed(stream, name, *product.packed, product.N, product.K)) {
    return;
  }
  const Step<T> s = step_of<T>(a);
  const int64_t heads = s.heads();
  const auto [weight, stride] = behind(a);
  const GatedRow row = {a.y,
                        a.norm_weight.as<float>(),
                        static_cast<float>(a.norm_eps),
                        s.conv,
                        a.zx + heads,
                        heads,
                        2 * a.G * a.N};
  multiply_gated_row(stream, name, product, row, weight, stride);
}

}  // namespace

void mamba2_step(Stream& stream, const Mamba2StepArgs& a) noexcept {
  const char* name = "mamba2_step";
  if (a.B == 0 || a.H == 0) return;
  const bool vectors =
      a.N % 4 == 0 && rows_aligned(a.ssm_state, a.state_stride, 4 * dtype_size(a.ssm_state.dtype));
  const Way way =
      choose(stream, mamba2_step_request(a.B, a.H, a.P, a.zx.dtype, vectors, takes_norm(a))).way;
  if (way == Way::kSequence) return step_in_sequence(cuda_kernels(), stream, a);
  with_type(a.zx.dtype, [&]<class T>() {
    Advance<T> v{step_of<T>(a),
                 a.dt_bias.as<float>(),
                 a.A.as<float>(),
                 a.D.as<float>(),
                 a.D_has_hdim,
                 static_cast<float>(a.dt_min),
                 static_cast<float>(a.dt_max),
                 a.ssm_state.data,
                 a.state_stride,
                 nullptr};
    if (way == Way::kFusedConvolved) {
      v.convolved = convolve(stream, name, v.s);
      if (v.convolved == nullptr) return;
    }
    if (a.ssm_state.dtype == DType::kBF16) {
      advance<T, bf16>(stream, name, v, vectors);
    } else {
      advance<T, float>(stream, name, v, vectors);
    }
    if (way == Way::kFusedProduct) return multiply<T>(stream, name, a);
    finish<T>(stream, name, a, v.convolved != nullptr);
    if (a.product.y) cuda_kernels().linear_forward(stream, a.product);
  });
}

}  // namespace mamba::cuda
