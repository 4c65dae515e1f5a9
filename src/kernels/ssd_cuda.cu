// SPDX-License-Identifier: Apache-2.0
// ssd for CUDA, forward and step. One pass through time finds the state before every chunk
// (ssd_states_cuda.cu); then all chunks are computed at once, a block a chunk and some heads of a
// group, which share C B^T: y = (decays * C B^T) X + exp(l) C S^T + D X.
#include "kernels/ssd_cluster.cuh"
#include "kernels/step.cuh"

namespace mamba::cuda {
namespace {

using namespace ssd;

constexpr int kThreads = 128;

template <class T>
struct Forward {
  Plan plan;
  Source<T> x, B, C;
  const float* D;
  bool D_has_hdim, has_first;
  const T *states, *restart;  // restart (H, parts, 64, NP) or null
  T* y;
  int64_t y_stride;
  bool y_aligned;
  int32_t per_block, splits;  // parts of heads of a block, blocks of a group
};

// A part of a head, and the next one.
struct Part {
  int32_t head, part;
  __device__ void next(int32_t parts) {
    if (++part == parts) part = 0, ++head;
  }
};

template <class T, int NP>
struct alignas(16) ForwardMemory {
  T state[2][kPart * (NP + kPad<T>)];  // C and B at first
  T x[2][kChunk * (kPart + kPad<T>)];
  T y[kChunk * (kPart + kPad<T>)];
  Steps steps[2];
};

template <class T, int NP>
struct ForwardBlock {
  static constexpr int kLdN = NP + kPad<T>, kLdP = kPart + kPad<T>;
  const Forward<T>& a;
  ForwardMemory<T, NP>& m;
  int64_t b;
  int32_t g, first, end;  // parts of heads of the group

  // Where the state before the chunk is, or null if it is zero.
  __device__ const T* state(const Part& v, const Chunk& chunk) const {
    const Plan& p = a.plan;
    const int64_t at = static_cast<int64_t>(v.head) * p.parts + v.part;
    if (chunk.slot == kNoSlot) return a.restart == nullptr ? nullptr : a.restart + at * kPart * NP;
    if (chunk.slot == 0 && !a.has_first) return nullptr;
    return a.states + ((b * p.slots + chunk.slot) * p.H * p.parts + at) * kPart * NP;
  }
  __device__ void fetch(const Part& v, const Chunk& chunk, int stage) const {
    const Plan& p = a.plan;
    const int64_t left = p.P - v.part * kPart;
    load_tokens<kPart, kThreads>(m.x[stage], p, b, chunk, a.x, v.head * p.P + v.part * kPart,
                                 static_cast<int>(left < kPart ? left : kPart));
    if (const T* from = state(v, chunk)) load_dense<NP, kThreads>(m.state[stage], from);
    load_steps<kExactDecay<T>, kThreads>(m.steps[stage], p, b, v.head, chunk);
  }

  __device__ void run(const Chunk& chunk) const {
    const Plan& p = a.plan;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, q = lane % 4;
    const int row = 16 * warp;  // tokens row ... row + 15
    load_tokens<NP, kThreads>(m.state[0], p, b, chunk, a.C, g * p.N, static_cast<int>(p.N));
    load_tokens<NP, kThreads>(m.state[1], p, b, chunk, a.B, g * p.N, static_cast<int>(p.N));
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    FragmentA<T> c[NP / 16];
    float products[kChunk / 8][4] = {};  // C B^T
#pragma unroll
    for (int k = 0; k < NP / 16; ++k) {
      load_a<false>(c[k], m.state[0], kLdN, row, 16 * k);
#pragma unroll
      for (int j = 0; j < kChunk / 16; ++j) {
        if (j > warp) continue;  // later than all rows
        FragmentB<T> from[2];
        load_b<false>(from, m.state[1], kLdN, 16 * j, 16 * k);
        mma<T>(products[2 * j], c[k], from[0]);
        mma<T>(products[2 * j + 1], c[k], from[1]);
      }
    }
    __syncthreads();
    Part v{g * p.of_group + first / p.parts, first % p.parts}, ahead = v;
    fetch(v, chunk, 0);
    commit_copies();
    for (int32_t i = first; i < end; ++i, v = ahead) {
      const int stage = (i - first) % 2;
      ahead.next(p.parts);
      if (i + 1 < end) fetch(ahead, chunk, 1 - stage);
      commit_copies();
      wait_copies<1>();
      __syncthreads();
      const Steps& steps = m.steps[stage];
      const float high[2] = {steps.high[row + lane / 4], steps.high[row + lane / 4 + 8]};
      const float low[2] = {kExactDecay<T> ? steps.low[row + lane / 4] : 0.0f,
                            kExactDecay<T> ? steps.low[row + lane / 4 + 8] : 0.0f};
      float y[kPart / 8][4] = {};
      if (state(v, chunk) != nullptr) {
#pragma unroll
        for (int k = 0; k < NP / 16; ++k) {
#pragma unroll
          for (int j = 0; j < kPart / 16; ++j) {
            FragmentB<T> s[2];
            load_b<false>(s, m.state[stage], kLdN, 16 * j, 16 * k);
            mma<T>(y[2 * j], c[k], s[0]);
            mma<T>(y[2 * j + 1], c[k], s[1]);
          }
        }
        const float decay[2] = {exp2_approx(high[0]), exp2_approx(high[1])};
#pragma unroll
        for (int j = 0; j < kPart / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) y[j][e] *= decay[e / 2];
        }
      }
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k) {
        if (k > warp) continue;
        float weights[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int s = 16 * k + 8 * i + 2 * q + e % 2, t = row + lane / 4 + e / 2 * 8;
            const float w = decay_between<T>(steps, high[e / 2], low[e / 2], s) * steps.d[s];
            weights[i][e] = k < warp || s <= t ? w * products[2 * k + i][e] : 0.0f;
          }
        }
        FragmentA<T> w;
        to_a<T>(w, weights[0], weights[1]);
#pragma unroll
        for (int j = 0; j < kPart / 16; ++j) {
          FragmentB<T> x[2];
          load_b<true>(x, m.x[stage], kLdP, 16 * j, 16 * k);
          mma<T>(y[2 * j], w, x[0]);
          mma<T>(y[2 * j + 1], w, x[1]);
        }
      }
      store_tokens(v, chunk, stage, y);
      __syncthreads();
    }
  }

  // y + D x of the warp's tokens.
  __device__ __forceinline__ void store_tokens(const Part& v, const Chunk& chunk, int stage,
                                               const float (&y)[kPart / 8][4]) const {
    constexpr int kPer16 = 16 / sizeof(T), kPieces = kPart / kPer16;
    const Plan& p = a.plan;
    const int lane = threadIdx.x % kWarp, q = lane % 4, row = threadIdx.x / kWarp * 16;
    const int64_t h = v.head, column = v.part * kPart, left = p.P - column;
    const int width = static_cast<int>(left < kPart ? left : kPart);
    const float per_head = a.D != nullptr && !a.D_has_hdim ? a.D[h] : 0.0f;
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
      float D[2] = {per_head, per_head};
      if (a.D != nullptr && a.D_has_hdim) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 8 * j + 2 * q + i;
          D[i] = at < width ? a.D[h * p.P + column + at] : 0.0f;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = (row + lane / 4 + 8 * half) * kLdP + 8 * j + 2 * q;
        float x[2];
        load_n<2>(m.x[stage] + at, x);
        const float two[2] = {fmaf(D[0], x[0], y[j][2 * half]),
                              fmaf(D[1], x[1], y[j][2 * half + 1])};
        store_pair(m.y + at, two);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * kPieces; i += kWarp) {
      const int r = row + i / kPieces, c = i % kPieces * kPer16;
      if (r >= chunk.length || c >= width) continue;
      T* to = a.y + p.row(b, chunk.first + r) * a.y_stride + h * p.P + column + c;
      const T* from = m.y + r * kLdP + c;
      if (a.y_aligned) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        for (int k = 0; k < kPer16 && c + k < width; ++k) to[k] = from[k];
      }
    }
  }
};

template <class T, int NP>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Forward<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<ForwardMemory<T, NP>*>(shared);
  const Plan& p = a.plan;
  const int32_t of_group = p.of_group * p.parts, split = static_cast<int32_t>(blockIdx.y);
  const int32_t first = split % a.splits * a.per_block;
  const int32_t end = first + a.per_block < of_group ? first + a.per_block : of_group;
  const int64_t b = blockIdx.z;
  const ForwardBlock<T, NP> block{a, memory, b, split / a.splits, first, end};
  wait_for_previous();
  const int64_t count = p.chunk_count(b);
  for (int64_t c = blockIdx.x; c < count; c += gridDim.x) {
    block.run(p.chunk(b, c));
  }
}

// Parts of heads of a block: such that the last round of blocks on a card's 132 multiprocessors, 3
// on each, is full; what a block does once (C B^T) takes 0.7 of what it does for a part.
int64_t heads_of_block(int64_t of_group, int64_t groups) {
  constexpr int64_t kTogether = 3 * 132;
  int64_t best = 1;
  double least = 0;
  for (int64_t n = 1; n <= of_group && n <= 64; ++n) {
    const double rounds = static_cast<double>(ceil_div(groups * ceil_div(of_group, n), kTogether));
    const double cost = rounds * (static_cast<double>(n) + 0.7);
    if (n > 1 && cost >= least) continue;
    best = n, least = cost;
  }
  return best;
}

// One kernel where the heads are too few for a card; false where it cannot be.
template <class T>
bool forward_cluster(Stream& stream, const SsdArgs& a) {
  constexpr int64_t kFew = 66;
  const int64_t parts = ceil_div(a.P, kPart);
  if (!stream.overlaps || a.doc_ids || a.L == 0 || padded_states(a.N) != kClusterStates ||
      a.B * a.H * parts > kFew) {
    return false;
  }
  ClusterArgs<T> c{};
  c.x = source<T>(a.x, a.x_stride, a.P);
  c.B = source<T>(a.Bm, a.B_stride, a.N), c.C = source<T>(a.Cm, a.C_stride, a.N);
  if (!c.x.aligned || !c.B.aligned || !c.C.aligned) return false;
  Plan& p = c.plan;
  p.B = a.B, p.L = a.L, p.H = a.H, p.P = a.P, p.N = a.N, p.G = a.G;
  p.parts = static_cast<int32_t>(parts);
  p.of_group = static_cast<int32_t>(a.H / a.G);
  p.max_chunks = ceil_div(a.L, kChunk);
  c.in = step_input(a), c.in_type = a.dt.dtype;
  c.D = a.D.as<float>(), c.D_has_hdim = a.D_has_hdim;
  c.first = a.S0.as<float>(), c.last = a.ST.as<float>(), c.state_stride = a.s_stride;
  c.y = a.y.as<T>(), c.y_stride = a.y_stride;
  c.y_aligned = rows_aligned(a.y, a.y_stride, 16) && a.P * dtype_size(a.y.dtype) % 16 == 0;
  launch_cluster(stream, "ssd_forward", c);
  return true;
}

template <class T>
void forward(Stream& stream, const SsdArgs& a) {
  constexpr const char* kName = "ssd_forward";
  if constexpr (sizeof(T) == 2) {
    if (forward_cluster<T>(stream, a)) return;
  }
  const int64_t NP = padded_states(a.N);
  Forward<T> f{};
  StatesArgs<T> s{};
  T *states, *restart;
  for (Pieces pieces;;) {
    f.plan = make_plan(a, pieces);
    const int64_t of_row = a.H * f.plan.parts * kPart * NP;
    states = pieces.take<T>(a.B * f.plan.slots * of_row);
    restart = a.doc_ids && a.S_reset ? pieces.take<T>(of_row) : nullptr;
    s.split = make_split(f.plan, NP, pieces);
    if (pieces.data != nullptr) break;
    char* memory = stream.scratch<char>(pieces.used);
    if (memory == nullptr) return;
    pieces = {memory, 0};
  }
  prepare(stream, kName, f.plan, step_input(a), a.dt.dtype);
  f.x = source<T>(a.x, a.x_stride, a.P);
  f.B = source<T>(a.Bm, a.B_stride, a.N), f.C = source<T>(a.Cm, a.C_stride, a.N);
  s.plan = f.plan, s.x = f.x, s.bc = f.B;
  s.first = a.S0.as<float>(), s.first_stride = a.s_stride, s.restart = a.S_reset.as<float>();
  s.last = a.ST.as<float>(), s.last_stride = a.s_stride, s.states = states;
  find_states<T, false>(stream, kName, s);
  if (a.L == 0) return;
  clear_padding(stream, kName, f.plan, a.y, a.y_stride, a.H * a.P);
  if (restart != nullptr) {
    const int64_t count = a.H * f.plan.parts * kPart * NP;
    launch(stream, kName, restart_kernel<T>, dim3(static_cast<unsigned>(ceil_div(count, 256))),
           dim3(256), 0, a.S_reset.as<float>(), a.P, a.N, NP, f.plan.parts, count, restart);
  }
  f.D = a.D.as<float>(), f.D_has_hdim = a.D_has_hdim, f.has_first = static_cast<bool>(a.S0);
  f.states = states, f.restart = restart;
  f.y = a.y.as<T>(), f.y_stride = a.y_stride;
  f.y_aligned = rows_aligned(a.y, a.y_stride, 16) && a.P * dtype_size(a.y.dtype) % 16 == 0;
  // Chunks beyond these are taken by the same blocks.
  const int64_t likely = 2 * ceil_div(a.L, kChunk);
  const int64_t chunks = f.plan.max_chunks < likely ? f.plan.max_chunks : likely;
  const int64_t of_group = a.H / a.G * f.plan.parts;
  f.per_block = static_cast<int32_t>(heads_of_block(of_group, chunks * a.B * a.G));
  f.splits = static_cast<int32_t>(ceil_div(of_group, f.per_block));
  const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(a.G * f.splits),
                  static_cast<unsigned>(a.B));
  const auto run = [&]<int kNP>() {
    launch(stream, kName, forward_kernel<T, kNP>, grid, dim3(kThreads),
           sizeof(ForwardMemory<T, kNP>), f);
  };
  if (NP == 64) {
    run.template operator()<64>();
  } else if (NP == 128) {
    run.template operator()<128>();
  } else {
    run.template operator()<256>();
  }
}

// ---- One token ----

template <class T>
struct Step {
  int64_t H, P, N, group;
  StepInput in;
  Source<T> x, B, C;
  const float* D;
  bool D_has_hdim;
  step::StateBuf S;
  T* y;
  int64_t y_stride;
};

// 16 channels of a head a block, 4 a warp; a lane has every 32nd state.
constexpr int kStepRows = 16, kLaneStates = 8;

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(const __grid_constant__ Step<T> a) {
  const int64_t b = blockIdx.z, h = blockIdx.y, g = h / a.group;
  const int lane = threadIdx.x % kWarp;
  const T* x = a.x.data + b * a.x.stride + h * a.P;
  const T* from_B = a.B.data + b * a.B.stride + g * a.N;
  const T* from_C = a.C.data + b * a.C.stride + g * a.N;
  const float d =
      limited(soft(load(static_cast<const T*>(a.in.dt) + b * a.in.stride + h) + a.in.bias[h]),
              a.in.dt_min, a.in.dt_max);
  const float decay = expf(d * a.in.A[h]);
  for (int i = threadIdx.x / kWarp; i < kStepRows; i += kThreads / kWarp) {
    const int64_t p = static_cast<int64_t>(blockIdx.x) * kStepRows + i;
    if (p >= a.P) return;
    const int64_t S = b * a.S.stride + (h * a.P + p) * a.N;
    const float xp = load(x + p), dx = d * xp;
    float sum = 0;
    for (int64_t n0 = 0; n0 < a.N; n0 += kLaneStates * kWarp) {
      float s[kLaneStates];
#pragma unroll
      for (int k = 0; k < kLaneStates; ++k) {
        const int64_t n = n0 + k * kWarp + lane;
        s[k] = n < a.N ? a.S.load(S + n) : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < kLaneStates; ++k) {
        const int64_t n = n0 + k * kWarp + lane;
        if (n >= a.N) continue;
        s[k] = fmaf(decay, s[k], dx * load(from_B + n));
        sum = fmaf(s[k], load(from_C + n), sum);
        a.S.store(S + n, s[k]);
      }
    }
    sum = warp_sum(sum);
    if (lane != 0) continue;
    const float D = a.D == nullptr ? 0.0f : a.D[a.D_has_hdim ? h * a.P + p : h];
    store(a.y + b * a.y_stride + h * a.P + p, fmaf(D, xp, sum));
  }
}

}  // namespace

void ssd_forward(Stream& stream, const SsdArgs& a) noexcept {
  if (a.B == 0 || a.H == 0 || a.P == 0) return;
  if (padded_states(a.N) == 0) {
    expect_success(stream, "ssd_forward", cudaErrorNotSupported);
    return;
  }
  with_type(a.x.dtype, [&]<class T>() { forward<T>(stream, a); });
}

void ssd_step(Stream& stream, const SsdStepArgs& a) noexcept {
  if (a.B == 0 || a.H == 0) return;
  with_type(a.x.dtype, [&]<class T>() {
    const Step<T> s{a.H,
                    a.P,
                    a.N,
                    a.H / a.G,
                    step_input(a),
                    {a.x.as<T>(), a.x_stride, false},
                    {a.Bm.as<T>(), a.B_stride, false},
                    {a.Cm.as<T>(), a.C_stride, false},
                    a.D.as<float>(),
                    a.D_has_hdim,
                    step::state_buf(a.S, a.s_stride),
                    a.y.as<T>(),
                    a.y_stride};
    launch(stream, "ssd_step", step_kernel<T>,
           dim3(static_cast<unsigned>(ceil_div(a.P, kStepRows)), static_cast<unsigned>(a.H),
                static_cast<unsigned>(a.B)),
           dim3(kThreads), 0, s);
  });
}

}  // namespace mamba::cuda
