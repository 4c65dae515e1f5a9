// SPDX-License-Identifier: Apache-2.0
// scan for CUDA: a warp walks the tokens alone for its channels, with states in registers and a ring
// of tiles that arrive behind the computation; what a token needs of a channel alone (softplus,
// gate) is done a tile at a time, a lane an element. Too few channels for the card: time is cut into
// segments, a first pass finds their last states, and the second starts from those.
#include "kernels/scan_cuda.cuh"

namespace mamba::cuda {
namespace {

constexpr int kWarps = 4;  // of a block; they share nothing

template <class T>
struct Walk {
  ScanInput<T> in;
  const float* h0;
  float* hT;
  int64_t h_stride;
  T* y;
  int64_t y_stride;
  int64_t segments, per_segment;
  float* segment_h;  // (B, segments, N, E): last states of segments alone, then their first states
  float* segment_d;  // (B, segments, E): sums of step sizes
};

// Shared memory of a warp.
template <class T, int R, bool copies>
struct alignas(16) WarpMemory {
  static constexpr int kChannels = Lanes<R>::kChannels, kN = Lanes<R>::kN;
  static constexpr int kStages = copies ? 3 : 1;
  struct alignas(16) Stage {
    T u[kTile * kChannels], delta[kTile * kChannels], z[kTile * kChannels];
    T B[copies ? kTile * kN : 8], C[copies ? kTile * kN : 8];
  };
  Stage stages[kStages];
  alignas(16) float2 step[kTile * kChannels];  // (d, d u)
  alignas(16) float B[copies ? kTile * kN : 4], C[copies ? kTile * kN : 4];
  float y[kTile * kChannels];
};

template <class T, int R, bool copies, bool states_only>
struct Walker {
  using Memory = WarpMemory<T, R, copies>;
  using Stage = typename Memory::Stage;
  static constexpr int kChannels = Lanes<R>::kChannels, kN = Lanes<R>::kN;
  static constexpr int kVec = R <= 2 ? 2 : 1;           // elements that a lane prepares together
  static constexpr int kAcross = kChannels / kVec;      // lanes along the channels there
  static constexpr int kDown = kWarp / kAcross;         // tokens that the warp prepares together

  const Walk<T>& w;
  Memory& m;
  int lane;
  int64_t b, first_channel, begin, end;  // tokens [begin, end)

  __device__ void fetch(int64_t t0, Stage& s) const {
    const int64_t row = b * w.in.L + t0;
    const int64_t left = end - t0;
    if constexpr (copies) {
      constexpr int kPer16 = 16 / sizeof(T);
      constexpr int kPieces = kChannels / kPer16, kPiecesN = kN / kPer16;
      const auto rows = [&](const Rows<T>& from, T* to) {
#pragma unroll
        for (int p = lane; p < kTile * kPieces; p += kWarp) {
          const int t = p / kPieces, c = p % kPieces * kPer16;
          const bool valid = t < left;
          copy16_async(to + p * kPer16,
                       valid ? from.data + (row + t) * from.stride + first_channel + c : from.data,
                       valid);
        }
      };
      const int64_t group = first_channel / w.in.group * kN;
      const auto states = [&](const Rows<T>& from, T* to) {
#pragma unroll
        for (int p = lane; p < kTile * kPiecesN; p += kWarp) {
          const int t = p / kPiecesN, n = p % kPiecesN * kPer16;
          const bool valid = t < left;
          copy16_async(to + p * kPer16,
                       valid ? from.data + (row + t) * from.stride + group + n : from.data, valid);
        }
      };
      if (left > 0) {
        rows(w.in.u, s.u);
        rows(w.in.delta, s.delta);
        states(w.in.Bm, s.B);
        if constexpr (!states_only) {
          states(w.in.Cm, s.C);
          if (w.in.z.data != nullptr) rows(w.in.z, s.z);
        }
      }
      commit_copies();
    } else {
      const auto rows = [&](const Rows<T>& from, T* to) {
        for (int p = lane; p < kTile * kChannels; p += kWarp) {
          const int t = p / kChannels, c = p % kChannels;
          const bool valid = t < left && first_channel + c < w.in.E;
          to[p] = valid ? from.data[(row + t) * from.stride + first_channel + c] : T{};
        }
      };
      rows(w.in.u, s.u);
      rows(w.in.delta, s.delta);
      if (!states_only && w.in.z.data != nullptr) rows(w.in.z, s.z);
    }
  }

  // Step sizes of a tile; B and C as f32.
  __device__ void prepare(const Stage& s, const Marks& marks, const float (&bias)[kVec]) const {
    const int c = lane % kAcross * kVec;
#pragma unroll
    for (int t = lane / kAcross; t < kTile; t += kDown) {
      float u[kVec], x[kVec];
      load_n<kVec>(s.u + t * kChannels + c, u);
      load_n<kVec>(s.delta + t * kChannels + c, x);
      const bool padding = marks.padding >> t & 1, reset = marks.reset >> t & 1;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        x[i] = __fadd_rn(x[i], bias[i]);
        if (w.in.softplus) x[i] = softplus<T>(x[i]);
        const float du = padding ? 0.0f : __fmul_rn(x[i], u[i]);
        const float d = padding ? 0.0f : reset ? __int_as_float(0x7f800000) : x[i];
        m.step[t * kChannels + c + i] = make_float2(d, du);
      }
    }
    if constexpr (copies) {
      const auto states = [&](const T* from, float* to) {
#pragma unroll
        for (int p = lane; p < kTile * kN / 4; p += kWarp) {
          float v[4];
          load_n<4>(from + 4 * p, v);
          if (marks.padding >> (4 * p / kN) & 1) v[0] = v[1] = v[2] = v[3] = 0;
          store_n<4>(to + 4 * p, v);
        }
      };
      states(s.B, m.B);
      if constexpr (!states_only) states(s.C, m.C);
    }
  }

  __device__ void finish(const Stage& s, const Marks& marks, int64_t t0, const float (&D)[kVec]) const {
    const int c = lane % kAcross * kVec;
    const bool has_z = w.in.z.data != nullptr;
    T* to = w.y + (b * w.in.L + t0) * w.y_stride + first_channel + c;
#pragma unroll
    for (int t = lane / kAcross; t < kTile; t += kDown) {
      if (t0 + t >= end) continue;
      float y[kVec], u[kVec], z[kVec] = {};
      load_n<kVec>(m.y + t * kChannels + c, y);
      load_n<kVec>(s.u + t * kChannels + c, u);
      if (has_z) load_n<kVec>(s.z + t * kChannels + c, z);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        y[i] = marks.padding >> t & 1 ? 0.0f : gated<T>(y[i], D[i], u[i], has_z, z[i]);
      }
      if constexpr (copies) {
        store_n<kVec>(to + t * w.y_stride, y);
      } else {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          if (first_channel + c + i < w.in.E) store(to + t * w.y_stride + i, y[i]);
        }
      }
    }
  }

  // States 8 part ... of a row of B or C without shared memory.
  __device__ void load_states(const T* p, int64_t first, bool valid, float (&v)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i) v[i] = valid && first + i < w.in.N ? load(p + first + i) : 0.0f;
  }

  __device__ void run(int64_t segment) const {
    const int64_t E = w.in.E, N = w.in.N;
    const int c = lane % kChannels, part = lane / kChannels;
    const int64_t channel = first_channel + c < E ? first_channel + c : E - 1;
    float h[kStates], rate[kStates], bias[kVec], D[kVec], sum_d = 0;
    float* segment_h = w.segment_h + (b * w.segments + segment) * N * E + channel;
    const float* from = w.segments > 1 ? segment_h : w.h0 + b * w.h_stride + channel;
    const bool has_state = !states_only && (w.segments > 1 || w.h0 != nullptr);
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = kStates * part + i;
      rate[i] = n < N ? decay_rate(w.in.A_t[n * E + channel]) : -1.0f;
      h[i] = has_state && n < N ? from[n * E] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const int64_t at = first_channel + lane % kAcross * kVec + i;
      bias[i] = w.in.delta_bias != nullptr && at < E ? w.in.delta_bias[at] : 0.0f;
      D[i] = w.in.D != nullptr && at < E ? w.in.D[at] : 0.0f;
    }
    const int32_t* ids = w.in.ids == nullptr ? nullptr : w.in.ids + b * w.in.L;
    int last_id = last_id_before(ids, begin);
    for (int i = 0; i + 1 < Memory::kStages; ++i) fetch(begin + i * kTile, m.stages[i]);
    int stage = 0;
    for (int64_t t0 = begin; t0 < end; t0 += kTile) {
      Stage& s = m.stages[stage];
      if constexpr (copies) {
        wait_copies<Memory::kStages - 2>();
      } else {
        fetch(t0, s);
      }
      const int count = static_cast<int>(end - t0 < kTile ? end - t0 : kTile);
      const Marks marks = marks_of(ids == nullptr ? nullptr : ids, t0, count, last_id);
      __syncwarp();
      prepare(s, marks, bias);
      if constexpr (copies) {
        const int next = stage == 0 ? Memory::kStages - 1 : stage - 1;
        fetch(t0 + (Memory::kStages - 1) * kTile, m.stages[next]);
        stage = stage + 1 == Memory::kStages ? 0 : stage + 1;
      }
      __syncwarp();
#pragma unroll 2
      for (int t = 0; t < kTile; t += 2) {
        float out[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float2 step = m.step[(t + k) * kChannels + c];
          float B[kStates], C[kStates];
          if constexpr (copies) {
            load8(m.B + (t + k) * kN + kStates * part, B);
            if constexpr (!states_only) load8(m.C + (t + k) * kN + kStates * part, C);
          } else {
            const bool valid = !(marks.padding >> (t + k) & 1);
            const int64_t row = b * w.in.L + t0 + (valid ? t + k : 0);
            load_states(w.in.bc(w.in.Bm, row, channel), kStates * part, valid, B);
            if (!states_only) {
              load_states(w.in.bc(w.in.Cm, row, channel), kStates * part, valid, C);
            }
          }
          advance(h, rate, step.x, step.y, B);
          if constexpr (states_only) {
            sum_d += step.x;
          } else {
            out[k] = lane_output(h, C);
          }
        }
        if constexpr (!states_only && R == 2) {
          const float received = __shfl_xor_sync(kAllLanes, part ? out[0] : out[1], kChannels);
          m.y[(t + part) * kChannels + c] = __fadd_rn(part ? out[1] : out[0], received);
        } else if constexpr (!states_only) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const float sum = channel_sum<R>(out[k]);
            if (part == 0) m.y[(t + k) * kChannels + c] = sum;
          }
        }
      }
      __syncwarp();
      if constexpr (!states_only) finish(s, marks, t0, D);
      if constexpr (!copies) __syncwarp();
    }
    if (first_channel + c >= E) return;
    if constexpr (states_only) {
      if (part == 0) w.segment_d[(b * w.segments + segment) * E + channel] = sum_d;
    }
    float* to = states_only ? segment_h
                : segment + 1 == w.segments && w.hT != nullptr ? w.hT + b * w.h_stride + channel
                                                               : nullptr;
    if (to == nullptr) return;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = kStates * part + i;
      if (n < N) to[n * E] = h[i];
    }
  }
};

template <class T, int R, bool copies, bool states_only>
__global__ void __launch_bounds__(kWarps* kWarp) walk_kernel(const __grid_constant__ Walk<T> w) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kChannels = Lanes<R>::kChannels;
  const int64_t slabs = (w.in.E + kChannels - 1) / kChannels;
  int64_t job = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (job >= slabs * w.segments * w.in.B) return;
  const int64_t slab = job % slabs;
  job /= slabs;
  const int64_t segment = job % w.segments, b = job / w.segments;
  if (states_only && segment + 1 == w.segments) return;  // nothing starts from its last state
  const int64_t begin = segment * w.per_segment;
  const int64_t end = begin + w.per_segment < w.in.L ? begin + w.per_segment : w.in.L;
  auto& memory = reinterpret_cast<WarpMemory<T, R, copies>*>(shared)[threadIdx.x / kWarp];
  const Walker<T, R, copies, states_only> walker{
      w, memory, static_cast<int>(threadIdx.x % kWarp), b, slab * kChannels, begin, end};
  walker.run(segment);
}

// segment_h: from last states of segments alone to first states, in place.
__global__ void __launch_bounds__(256)
    chain_kernel(int64_t B, int64_t segments, int64_t N, int64_t E, const float* __restrict__ A_t,
                 const float* __restrict__ h0, int64_t h_stride, const float* __restrict__ segment_d,
                 float* __restrict__ segment_h) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= B * N * E) return;
  const int64_t b = i / (N * E), at = i % (N * E), c = at % E;
  const float rate = decay_rate(A_t[at]);
  float h = h0 == nullptr ? 0.0f : h0[b * h_stride + at];
  for (int64_t s = 0; s < segments; ++s) {
    float* last = segment_h + (b * segments + s) * N * E + at;
    const float alone = s + 1 < segments ? *last : 0.0f;
    const float d = s + 1 < segments ? segment_d[(b * segments + s) * E + c] : 0.0f;
    *last = h;
    h = fmaf(exp2_approx(d * rate), h, alone);
  }
}

template <class T, int R, bool copies, bool states_only>
void launch_walk(Stream& stream, const Walk<T>& w) {
  const int64_t jobs = ceil_div(w.in.E, Lanes<R>::kChannels) * w.segments * w.in.B;
  launch(stream, "scan_forward", walk_kernel<T, R, copies, states_only>,
         dim3(static_cast<unsigned>(ceil_div(jobs, kWarps))), dim3(kWarps * kWarp),
         kWarps * sizeof(WarpMemory<T, R, copies>), w);
}

// Segments of at least 256 tokens, as many as give the card enough warps.
int64_t segments_of(int64_t warps, int64_t L) {
  constexpr int64_t kEnough = 400, kWanted = 1536, kShortest = 256;
  if (warps >= kEnough || L < 2 * kShortest) return 1;
  const int64_t wanted = ceil_div(kWanted, warps);
  return wanted < L / kShortest ? wanted : L / kShortest;
}

template <class T, int R, bool copies>
void forward(Stream& stream, const ScanArgs& a) {
  Walk<T> w{};
  w.in = scan_input<T>(a);
  w.in.L = a.L, w.in.ids = a.doc_ids.as<int32_t>();
  w.h0 = a.h0.as<float>(), w.hT = a.hT.as<float>(), w.h_stride = a.h_stride;
  w.y = a.y.as<T>(), w.y_stride = a.y_stride;
  const int64_t wanted = segments_of(ceil_div(a.E, Lanes<R>::kChannels) * a.B, a.L);
  w.per_segment = ceil_div(ceil_div(a.L, wanted), kTile) * kTile;
  w.segments = a.L == 0 ? 1 : ceil_div(a.L, w.per_segment);
  if (w.segments > 1) {
    const int64_t rows = a.B * w.segments;
    w.segment_h = stream.scratch<float>(rows * (a.N + 1) * a.E);
    if (w.segment_h == nullptr) return;
    w.segment_d = w.segment_h + rows * a.N * a.E;
    launch_walk<T, R, copies, true>(stream, w);
    launch(stream, "scan_forward", chain_kernel,
           dim3(static_cast<unsigned>(ceil_div(a.B * a.N * a.E, 256))), dim3(256), 0, a.B,
           w.segments, a.N, a.E, w.in.A_t, w.h0, w.h_stride, w.segment_d, w.segment_h);
  }
  launch_walk<T, R, copies, false>(stream, w);
}

template <class T>
struct Step {
  ScanInput<T> in;  // L = 1
  float* h;
  int64_t h_stride;
  T* y;
  int64_t y_stride;
};

template <class T, int R>
__global__ void __launch_bounds__(128) step_kernel(const __grid_constant__ Step<T> w) {
  constexpr int kChannels = Lanes<R>::kChannels;
  const int64_t E = w.in.E, N = w.in.N, slabs = (E + kChannels - 1) / kChannels;
  const int64_t job = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / kWarp;
  if (job >= slabs * w.in.B) return;
  const int lane = threadIdx.x % kWarp, part = lane / kChannels;
  const int64_t b = job / slabs, at = job % slabs * kChannels + lane % kChannels;
  const int64_t c = at < E ? at : E - 1;
  const T* from_B = w.in.bc(w.in.Bm, b, c);
  const T* from_C = w.in.bc(w.in.Cm, b, c);
  float* state = w.h + b * w.h_stride + c;
  float h[kStates], rate[kStates], B[kStates], C[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int64_t n = kStates * part + i;
    const bool valid = n < N;
    rate[i] = valid ? decay_rate(w.in.A_t[n * E + c]) : -1.0f;
    h[i] = valid ? state[n * E] : 0.0f;
    B[i] = valid ? load(from_B + n) : 0.0f;
    C[i] = valid ? load(from_C + n) : 0.0f;
  }
  const float u = load(w.in.u.data + b * w.in.u.stride + c);
  float d = __fadd_rn(load(w.in.delta.data + b * w.in.delta.stride + c),
                      w.in.delta_bias != nullptr ? w.in.delta_bias[c] : 0.0f);
  if (w.in.softplus) d = softplus<T>(d);
  advance(h, rate, d, __fmul_rn(d, u), B);
  const float sum = channel_sum<R>(lane_output(h, C));
  if (at >= E) return;
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int64_t n = kStates * part + i;
    if (n < N) state[n * E] = h[i];
  }
  if (part != 0) return;
  const bool has_z = w.in.z.data != nullptr;
  const float z = has_z ? load(w.in.z.data + b * w.in.z.stride + c) : 0.0f;
  store(w.y + b * w.y_stride + c,
        gated<T>(sum, w.in.D != nullptr ? w.in.D[c] : 0.0f, u, has_z, z));
}

template <class T, int R>
void step(Stream& stream, const ScanStepArgs& a) {
  Step<T> w{scan_input<T>(a), a.h.as<float>(), a.h_stride, a.y.as<T>(), a.y_stride};
  w.in.L = 1;
  const int64_t jobs = ceil_div(a.E, Lanes<R>::kChannels) * a.B;
  launch(stream, "scan_step", step_kernel<T, R>, dim3(static_cast<unsigned>(ceil_div(jobs, 4))),
         dim3(128), 0, w);
}

// Calls body.operator()<R>() for N states.
template <class Body>
void with_lanes(Stream& stream, const char* name, int64_t N, Body&& body) {
  switch (lanes_of(N)) {
    case 1: return body.template operator()<1>();
    case 2: return body.template operator()<2>();
    case 8: return body.template operator()<8>();
    case 32: return body.template operator()<32>();
    default: expect_success(stream, name, cudaErrorNotSupported);
  }
}

}  // namespace

void scan_forward(Stream& stream, const ScanArgs& a) noexcept {
  if (a.B == 0 || a.E == 0) return;
  with_type(a.u.dtype, [&]<class T>() {
    with_lanes(stream, "scan_forward", a.N, [&]<int R>() {
      if constexpr (R <= 2) {
        if (takes_copies(a, R) && rows_aligned(a.y, a.y_stride, 16)) {
          return forward<T, R, true>(stream, a);
        }
      }
      forward<T, R, false>(stream, a);
    });
  });
}

void scan_step(Stream& stream, const ScanStepArgs& a) noexcept {
  if (a.B == 0 || a.E == 0) return;
  with_type(a.u.dtype, [&]<class T>() {
    with_lanes(stream, "scan_step", a.N, [&]<int R>() { step<T, R>(stream, a); });
  });
}

}  // namespace mamba::cuda
