// SPDX-License-Identifier: Apache-2.0
// ssd for CUDA, the part that goes through time: chunks, step sizes and decays, and the state
// before (or its gradient after) every chunk, kept in registers from chunk to chunk, or for few
// heads by a chain through what the chunks add.
#include "kernels/cluster.cuh"
#include "kernels/ssd_cuda.cuh"

namespace mamba::cuda::ssd {
namespace {

// A warp has 16 channels and up to 64 states.
template <int NT>
constexpr int kThreads = NT == 128 ? 256 : 128;

// Finds the tokens that are no padding and cuts them into chunks. A warp a row.
__global__ void __launch_bounds__(kWarp) chunks_kernel(const __grid_constant__ Plan p) {
  const int64_t b = blockIdx.x;
  const int lane = threadIdx.x;
  const uint32_t below = (1u << lane) - 1;
  const int32_t* ids = p.ids + b * p.L;
  Chunk* chunks = p.chunks + b * p.max_chunks;
  int32_t tokens = 0, chunk = 0, slot = 0, start = 0;  // so far; slot of the document's first token
  int last = -1;
  for (int64_t t = 0; t < p.L; t += kWarp) {
    const int id = t + lane < p.L ? ids[t + lane] : -1;
    const uint32_t real = __ballot_sync(kAllLanes, id >= 0);
    const uint32_t before = real & below;
    const int previous = __shfl_sync(kAllLanes, id, before == 0 ? 0 : 31 - __clz(before));
    const bool reset = id >= 0 && (before == 0 ? last >= 0 && last != id : previous != id);
    const int32_t at = tokens + __popc(before);
    const uint32_t resets = __ballot_sync(kAllLanes, reset);
    const uint32_t reset_before = resets & (below | 1u << lane);
    const int32_t reset_at =
        __shfl_sync(kAllLanes, at, reset_before == 0 ? 0 : 31 - __clz(reset_before));
    const int32_t document = reset_before == 0 ? start : reset_at;
    const bool begins = id >= 0 && (at - document) % kChunk == 0;
    const uint32_t begin = __ballot_sync(kAllLanes, begins);
    const uint32_t continues = __ballot_sync(kAllLanes, begins && at != document);
    if (id >= 0) p.order[b * p.L + at] = static_cast<int32_t>(t) + lane;
    if (begins) {
      chunks[chunk + __popc(begin & below)] = {at, 0,
                                               at == 0 ? 0
                                               : reset ? kNoSlot
                                                       : slot + 1 + __popc(continues & below),
                                               0};
    }
    if (real != 0) last = __shfl_sync(kAllLanes, id, 31 - __clz(real));
    start = __shfl_sync(kAllLanes, document, 31);
    tokens += __popc(real), chunk += __popc(begin), slot += __popc(continues);
  }
  __syncwarp();
  for (int32_t i = lane; i < chunk; i += kWarp) {
    const bool final = i + 1 == chunk;
    chunks[i].length = (final ? tokens : chunks[i + 1].first) - chunks[i].first;
    chunks[i].last = final || chunks[i + 1].slot == kNoSlot;
  }
  if (lane == 0) p.count[b] = chunk;
}

// A warp a head: 64 tokens of a chunk.
__global__ void __launch_bounds__(256)
    steps_kernel(const __grid_constant__ Plan p, const __grid_constant__ StepInput in, DType type) {
  const int64_t b = blockIdx.z, h = static_cast<int64_t>(blockIdx.y) * 8 + threadIdx.x / kWarp;
  if (h >= p.H) return;
  const double rate = log2_rate(in, h);
  const float bias = in.bias[h];
  wait_for_previous();
  const int64_t count = p.chunk_count(b);
  for (int64_t c = blockIdx.x; c < count; c += gridDim.x) {
    const Chunk chunk = p.chunk(b, c);
    float raw[2] = {};
    raw_steps(p, in, type, b, h, chunk, raw);
    const TwoSteps steps = two_steps(in, chunk, raw, rate, bias);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = 2 * (threadIdx.x % kWarp) + i;
      if (at >= chunk.length) continue;
      const int64_t to = (b * p.H + h) * p.L + chunk.first + at;
      p.d[to] = steps.d[i];
      p.high[to] = steps.high[i];
      p.low[to] = steps.low[i];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(256) clear_kernel(const int32_t* __restrict__ ids, T* to,
                                                    int64_t rows, int64_t stride, int64_t width) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    if (ids[r] >= 0) continue;
    for (int64_t i = threadIdx.x; i < width; i += 256) to[r * stride + i] = T{};
  }
}

// Shared memory of the states' pass.
template <class T, int NT>
struct StatesMemory {
  struct Stage {
    alignas(16) T x[kChunk * (kPart + kPad<T>)];
    alignas(16) T bc[kChunk * (NT + kPad<T>)];
    Steps steps;
  };
  alignas(16) float weights[kChunk];
  Stage stages[2];  // one of which is enough for a single chunk
  alignas(16) T out[kPart * (NT + kPad<T>)];
};

// 64 channels by NT states of one head, through all chunks. Warp w has channels 16 (w % 4) ... and
// states 64 (w / 4) ...
// If `alone`, what one chunk adds, for the chain.
template <class T, int NT, bool reverse, bool alone>
struct StatesWalk {
  using Memory = StatesMemory<T, NT>;
  static constexpr int kWidth = NT < 64 ? NT : 64, kTiles = kWidth / 8;

  const StatesArgs<T>& a;
  Memory& m;
  int64_t b;
  int32_t h, part, g, n0, NP, alone_at;
  float s[kTiles][4];

  __device__ int64_t index(int64_t k, int64_t count) const { return reverse ? count - 1 - k : k; }
  // Row and column in the head's (P, N) of element e of tile j.
  __device__ int64_t channel(int e) const {
    return part * kPart + threadIdx.x / kWarp % 4 * 16 + threadIdx.x % kWarp / 4 + e / 2 * 8;
  }
  __device__ int64_t state(int j, int e) const {
    return n0 + threadIdx.x / 128 * 64 + 8 * j + threadIdx.x % 4 * 2 + e % 2;
  }
  template <class Body>
  __device__ __forceinline__ void each(Body&& body) {
    const int64_t P = a.plan.P, N = a.plan.N;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t p = channel(e), n = state(j, e);
        body(s[j][e], p < P && n < N, p * N + n);
      }
    }
  }
  __device__ void set(const float* from) {
    each([&](float& v, bool valid, int64_t at) { v = from != nullptr && valid ? from[at] : 0.0f; });
  }

  // Calls body(tile, element of the first of two neighbours, their place in the split's states).
  template <class Body>
  __device__ __forceinline__ void each_pair(Body&& body) const {
    const int64_t at = ((b * a.split.chunks + alone_at) * a.plan.H + h) * a.plan.parts + part;
    const int row = threadIdx.x / kWarp % 4 * 16 + threadIdx.x % kWarp / 4;
    float* pairs = a.split.states + (at * kPart + row) * NP;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        body(j, e, reinterpret_cast<float2*>(pairs + e / 2 * 8 * NP + state(j, 0)));
      }
    }
  }

  __device__ void fetch(int64_t i, typename Memory::Stage& stage) const {
    const Plan& p = a.plan;
    const Chunk chunk = p.chunk(b, i);
    const int64_t left = p.P - part * kPart, states = p.N - n0;
    load_tokens<kPart, kThreads<NT>>(stage.x, p, b, chunk, a.x,
                                     static_cast<int64_t>(h) * p.P + part * kPart,
                                     static_cast<int>(left < kPart ? left : kPart));
    load_tokens<NT, kThreads<NT>>(stage.bc, p, b, chunk, a.bc, g * p.N + n0,
                                  static_cast<int>(states < NT ? states : NT));
    load_steps<false, kThreads<NT>>(stage.steps, p, b, h, chunk);
  }

  // Rounds the state and stores it.
  __device__ void save(int64_t slot) {
    constexpr int kLdOut = NT + kPad<T>, kPer16 = 16 / sizeof(T), kPieces = kWidth / kPer16;
    const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp % 4 * 16;
    const int column = threadIdx.x / 128 * 64;
    T* tile = m.out + row * kLdOut + column;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float two[2] = {s[j][2 * half], s[j][2 * half + 1]};
        store_pair(tile + (lane / 4 + 8 * half) * kLdOut + 8 * j + lane % 4 * 2, two);
      }
    }
    __syncwarp();
    T* to =
        a.states + (((b * a.plan.slots + slot) * a.plan.H + h) * a.plan.parts + part) * kPart * NP;
#pragma unroll
    for (int i = lane; i < 16 * kPieces; i += kWarp) {
      const int r = i / kPieces, c = i % kPieces * kPer16;
      *reinterpret_cast<uint4*>(to + (row + r) * NP + n0 + column + c) =
          *reinterpret_cast<const uint4*>(tile + r * kLdOut + c);
    }
    __syncwarp();
  }

  __device__ void run() {
    const Plan& p = a.plan;
    const int64_t count = p.chunk_count(b), PN = p.P * p.N;
    const int64_t begin = alone ? alone_at : 0, end = alone ? alone_at + 1 : count;
    const int q = threadIdx.x % 4, row = threadIdx.x / kWarp % 4 * 16;
    const int column = threadIdx.x / 128 * 64;
    set(alone || a.first == nullptr ? nullptr : a.first + b * a.first_stride + h * PN);
    if (begin < end) fetch(index(begin, count), m.stages[0]);
    commit_copies();
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = index(k, count);
      auto& stage = m.stages[(k - begin) % 2];
      if (k + 1 < end) fetch(index(k + 1, count), m.stages[(k + 1 - begin) % 2]);
      commit_copies();
      const Chunk chunk = p.chunk(b, i);
      if (alone) {
        // Nothing is stored, and there are no documents.
      } else if (a.states != nullptr) {
        if constexpr (reverse) {
          if (i + 1 == count || !chunk.last) {
            save(i + 1 == count ? p.slots - 1 : p.chunk(b, i + 1).slot);
          }
        } else {
          if (chunk.slot == kNoSlot) set(a.restart == nullptr ? nullptr : a.restart + h * PN);
          if (chunk.slot != kNoSlot) save(chunk.slot);
        }
      } else if (!reverse && chunk.slot == kNoSlot) {
        set(a.restart == nullptr ? nullptr : a.restart + h * PN);
      }
      wait_copies<1>();
      __syncthreads();
      const Steps& steps = stage.steps;
      if (threadIdx.x < kChunk) {
        const int t = threadIdx.x;
        m.weights[t] = reverse ? t < chunk.length ? exp2_approx(steps.high[t]) : 0.0f
                               : steps.d[t] * exp2_approx(steps.high[kChunk - 1] - steps.high[t]);
      }
      __syncthreads();
      const float total = exp2_approx(steps.high[kChunk - 1]);
      FragmentA<T> x[kChunk / 16];
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        float v[8];
        load_a<true>(x[step], stage.x, kPart + kPad<T>, row, 16 * step);
        a_values<T>(x[step], v);
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] *= m.weights[16 * step + 2 * q + e % 2 + e / 4 * 8];
        set_a<T>(x[step], v);
      }
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        float added[2][4] = {};
#pragma unroll
        for (int step = 0; step < kChunk / 16; ++step) {
          FragmentB<T> y[2];
          load_b<true>(y, stage.bc, NT + kPad<T>, column + 8 * j, 16 * step);
          mma<T>(added[0], x[step], y[0]);
          mma<T>(added[1], x[step], y[1]);
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          float& v = s[j + e / 4][e % 4];
          v = fmaf(total, v, added[e / 4][e % 4]);
        }
      }
      __syncthreads();
      if (reverse && chunk.slot == kNoSlot) {
        if (a.restart_gradient != nullptr) {
          float* to = a.restart_gradient + (b * p.H + h) * PN;
          each([&](float& v, bool valid, int64_t at) {
            if (valid) to[at] += v;
          });
        }
        set(nullptr);
      }
    }
    if (alone) {
      each_pair([&](int j, int e, float2* to) { *to = make_float2(s[j][e], s[j][e + 1]); });
      if (threadIdx.x == 0 && part == 0 && n0 == 0) {
        a.split.decay[(b * a.split.chunks + alone_at) * p.H + h] =
            exp2_approx(m.stages[0].steps.high[kChunk - 1]);
      }
      return;
    }
    if (a.last == nullptr) return;
    float* to = a.last + b * a.last_stride + h * PN;
    each([&](float& v, bool valid, int64_t at) {
      if (valid) to[at] = v;
    });
  }
};

template <class T, int NT, bool reverse, bool alone>
__global__ void __launch_bounds__(kThreads<NT>)
    states_kernel(const __grid_constant__ StatesArgs<T> a, int32_t NP) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<StatesMemory<T, NT>*>(shared);
  int32_t job = static_cast<int32_t>(blockIdx.x);
  const int32_t tiles = NP / NT, n0 = job % tiles * NT;
  job /= tiles;
  const int32_t h = job / a.plan.parts, k = static_cast<int32_t>(blockIdx.z);
  StatesWalk<T, NT, reverse, alone> walk{
      a, memory, blockIdx.y, h, job % a.plan.parts, h / a.plan.of_group, n0, NP, k, {}};
  wait_for_previous();
  walk.run();
}

// The states before the chunks of a split, from what each adds. A thread has 4 neighbours.
template <class T, bool reverse>
__global__ void __launch_bounds__(256)
    chain_kernel(const __grid_constant__ StatesArgs<T> a, int64_t NP) {
  constexpr int kAhead = 8;
  const Plan& p = a.plan;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 4, b = blockIdx.y;
  const int64_t all = p.H * p.parts * kPart * NP;
  if (i >= all) return;
  const int64_t n = i % NP, head = i / NP / kPart, h = head / p.parts;
  const int64_t channel = i / NP % kPart + head % p.parts * kPart;
  const int64_t at = (h * p.P + channel) * p.N + n;  // in the heads' (P, N)
  const int32_t chunks = a.split.chunks;
  const float* adds = a.split.states + b * chunks * all + i;
  const float* decays = a.split.decay + b * chunks * p.H + h;
  wait_for_previous();
  float s[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const bool valid = a.first != nullptr && channel < p.P && n + e < p.N;
    s[e] = valid ? a.first[b * a.first_stride + at + e] : 0.0f;
  }
  for (int32_t k0 = 0; k0 < chunks; k0 += kAhead) {
    float added[kAhead][4], decay[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (k0 + k >= chunks) continue;
      load_n<4>(adds + (k0 + k) * all, added[k]);
      decay[k] = decays[(k0 + k) * p.H];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int32_t at_chunk = k0 + k;
      if (at_chunk >= chunks) break;
      if (a.states != nullptr) {
        const int64_t slot = !reverse ? at_chunk : at_chunk == 0 ? p.slots - 1 : chunks - at_chunk;
        store_n<4>(a.states + (b * p.slots + slot) * all + i, s);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) s[e] = fmaf(decay[k], s[e], added[k][e]);
    }
  }
  if (a.last == nullptr) return;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (channel < p.P && n + e < p.N) a.last[b * a.last_stride + at + e] = s[e];
  }
}

}  // namespace

void prepare(Stream& stream, const char* name, const Plan& plan, const StepInput& in, DType type) {
  if (plan.L == 0) {
    if (plan.count != nullptr && stream.failed == nullptr) {
      expect_success(stream, name, cudaMemsetAsync(plan.count, 0, plan.B * 4, cuda_stream(stream)));
    }
    return;
  }
  if (plan.ids != nullptr) {
    launch(stream, name, chunks_kernel, dim3(static_cast<unsigned>(plan.B)), dim3(kWarp), 0, plan);
  }
  const int64_t likely = 2 * ceil_div(plan.L, kChunk);
  const dim3 grid(static_cast<unsigned>(plan.max_chunks < likely ? plan.max_chunks : likely),
                  static_cast<unsigned>(ceil_div(plan.H, 8)), static_cast<unsigned>(plan.B));
  launch_early(stream, name, steps_kernel, grid, dim3(256), 0, plan, in, type);
}

void clear_padding(Stream& stream, const char* name, const Plan& plan, Buf to, int64_t stride,
                   int64_t width) {
  const int64_t rows = plan.B * plan.L;
  if (plan.ids == nullptr || !to) return;
  with_type(to.dtype, [&]<class T>() {
    launch(stream, name, clear_kernel<T>, dim3(static_cast<unsigned>(rows < 4096 ? rows : 4096)),
           dim3(256), 0, plan.ids, to.as<T>(), rows, stride, width);
  });
}

template <class T, bool reverse>
void find_states(Stream& stream, const char* name, const StatesArgs<T>& a) {
  const int64_t NP = padded_states(a.plan.N), heads = a.plan.H * a.plan.parts;
  const int32_t chunks = a.split.chunks;
  const auto run = [&]<int NT, bool alone = false>() {
    using Memory = StatesMemory<T, NT>;
    const auto kernel = states_kernel<T, NT, reverse, alone>;
    const dim3 grid(static_cast<unsigned>(heads * (NP / NT)), static_cast<unsigned>(a.plan.B),
                    alone ? static_cast<unsigned>(chunks) : 1);
    const size_t shared =
        alone ? offsetof(Memory, stages) + sizeof(typename Memory::Stage) : sizeof(Memory);
    // Few blocks that run for long are launched when the card is free, so that they lie evenly.
    if constexpr (alone) {
      launch_clusters(stream, name, kernel, grid, dim3(kThreads<NT>), shared, 1, a,
                      static_cast<int32_t>(NP));
    } else {
      launch(stream, name, kernel, grid, dim3(kThreads<NT>), shared, a, static_cast<int32_t>(NP));
    }
  };
  if (chunks > 0) {
    if (NP == 64) {
      run.template operator()<64, true>();
    } else {
      run.template operator()<128, true>();
    }
    launch_early(stream, name, chain_kernel<T, reverse>,
                 dim3(static_cast<unsigned>(ceil_div(heads * kPart * NP, 4 * 256)),
                      static_cast<unsigned>(a.plan.B)),
                 dim3(256), 0, a, NP);
    return;
  }
  if (heads * a.plan.B * (NP / 64) < 200) {
    run.template operator()<32>();
  } else if (NP == 64) {
    run.template operator()<64>();
  } else {
    run.template operator()<128>();
  }
}
template void find_states<float, false>(Stream&, const char*, const StatesArgs<float>&);
template void find_states<bf16, false>(Stream&, const char*, const StatesArgs<bf16>&);
template void find_states<f16, false>(Stream&, const char*, const StatesArgs<f16>&);
template void find_states<float, true>(Stream&, const char*, const StatesArgs<float>&);
template void find_states<bf16, true>(Stream&, const char*, const StatesArgs<bf16>&);

}  // namespace mamba::cuda::ssd
