// SPDX-License-Identifier: Apache-2.0
// The backward pass of scan for CUDA. A first walk through time keeps the state of every 8th token;
// then tiles of 8 tokens are taken from the last to the first: states and decays are computed again
// into registers, and the gradient of the state walks back through them. Sums over channels (of dB
// and dC) run on tensor cores: a product with a column of ones for the token, so that the 8 tokens of
// a tile end up in the 8 columns of the result; a block adds those of its warps, and a last kernel
// those of the blocks.
#include "kernels/scan_walk.cuh"

namespace mamba::cuda {
namespace {

constexpr const char* kName = "scan_backward";
constexpr int kSteps = kCheckpoint;  // tokens of a tile
constexpr int kBlockWarps = 8, kThreads = kBlockWarps * kWarp;
template <int R>
constexpr int kStages = R == 32 ? 2 : 3;

template <class T>
struct Back {
  Walk<T> walk;  // inputs, segments, checkpoints
  const float* dhT;
  T *du, *ddelta, *dz;
  int64_t du_stride, ddelta_stride, dz_stride;
  float* dh0;
  // Sums of blocks: (blocks of a group, B L, groups, 2, kN) of B and C; of parameters, by sequence
  // and segment: (N, E), (E), (E); with constant B and C (E, N) each.
  float *partial_bc, *partial_A, *partial_bias, *partial_D, *partial_B, *partial_C;
};

template <class T, int R>
struct BackMemory {
  static constexpr int kChannels = Lanes<R>::kChannels, kN = Lanes<R>::kN;
  static constexpr int kStates = Lanes<R>::kStates;
  // Lanes that hold a sum over channels side by side: of different channels, same states.
  static constexpr int kGroups = kChannels >= 4 ? kChannels / 4 : 1;
  // A sum's place: the states of a lane are followed by elements that are not used, a slot by 16.
  static constexpr int kGap = R == 4 ? 8 : 0, kLane = kStates * kSteps + kGap;
  static constexpr int kSlots = kBlockWarps * kGroups, kSlot = 2 * R * kLane + 16;
  struct alignas(16) Stage {
    T u[kSteps * kChannels], delta[kSteps * kChannels], z[kSteps * kChannels];
    T dy[kSteps * kChannels];
    alignas(16) float h[kWarp * kStates];
  };
  struct alignas(16) Warp {
    Stage stages[kStages<R>];
    float4 step[kSteps * kChannels];  // d (infinite at a reset), d u, gradient of the ungated y, d
    // Of a lane over its states: g B, g a h A, C h. Rows lie in different banks.
    float sums[kSteps][3 * kWarp + 8];
  };
  Warp warps[kBlockWarps];
  struct alignas(16) StageBC {
    T B[kSteps * kN], C[kSteps * kN];
  };
  StageBC bc[kStages<R>];
  alignas(16) float B[kSteps * kN], C[kSteps * kN];
  alignas(16) float sums[kSlots * kSlot];
};

// d[m][n] += sum over k of a[m][k] b[k][n], 16 x 4 by 4 x 8.
__device__ __forceinline__ void mma_16x8x4(float (&d)[4], float a0, float a1, float b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)));
}
// The same with a in f32 (exact but for 2^-21) or, for 16-bit results, in TF32.
template <class T>
__device__ __forceinline__ void add_columns(float (&d)[4], float a0, float a1, float b) {
  if constexpr (sizeof(T) == 4) {
    const float high0 = __uint_as_float(__float_as_uint(a0) & 0xffffe000u);
    const float high1 = __uint_as_float(__float_as_uint(a1) & 0xffffe000u);
    mma_16x8x4(d, a0 - high0, a1 - high1, b);
    mma_16x8x4(d, high0, high1, b);
  } else {
    mma_16x8x4(d, a0, a1, b);
  }
}

template <class T, int R, bool copies, bool constant>
struct BackWalker {
  using Memory = BackMemory<T, R>;
  static constexpr int kChannels = Memory::kChannels, kStates = Memory::kStates;
  static constexpr int kVec = R == 4 ? 2 : 1;
  static constexpr int kAcross = kChannels / kVec;
  [[maybe_unused]] static constexpr int kN = Memory::kN;
  [[maybe_unused]] static constexpr int kPer16 = 16 / sizeof(T);

  const Back<T>& a;
  Memory& m;
  typename Memory::Warp& mine;
  int lane, warp;
  int64_t b, slab, first_channel, limit, begin, end, block, group;
  bool active;  // whether the warp has channels

  __device__ const ScanInput<T>& in() const { return a.walk.in; }

  // Where this lane's pieces of 16 bytes of the next tile are; tiles come last first.
  static constexpr int kPieces = (kChannels + kPer16 - 1) / kPer16;
  static constexpr int kPiecesN = kN / kPer16;
  struct Feed {
    const T *u, *delta, *z, *dy, *bc;
    const float* h;
    int64_t bc_stride, t0;
    int row_n, at_n;  // token of the piece of B or C, and where it goes
    bool takes_n;
  };
  __device__ Feed first_feed(int64_t t0) const {
    Feed f{};
    f.t0 = t0;
    const int64_t row = b * in().L + t0 + lane / kPieces;
    const int64_t c = first_channel + lane % kPieces * kPer16;
    f.u = in().u.data + row * in().u.stride + c;
    f.delta = in().delta.data + row * in().delta.stride + c;
    f.z = in().z.data == nullptr ? nullptr : in().z.data + row * in().z.stride + c;
    f.dy = a.walk.dy.data + row * a.walk.dy.stride + c;
    // The first threads copy B, those after them C.
    constexpr int kAll = kSteps * kPiecesN;
    const int p = static_cast<int>(threadIdx.x) % kAll;
    const bool is_C = threadIdx.x >= kAll;
    const Rows<T>& rows = is_C ? in().Cm : in().Bm;
    f.takes_n = threadIdx.x < 2 * kAll;
    f.row_n = p / kPiecesN, f.at_n = p * kPer16 + (is_C ? kSteps * kN : 0);
    f.bc_stride = rows.stride * kSteps;
    f.bc = rows.data + (b * in().L + t0 + f.row_n) * rows.stride + group * in().N +
           p % kPiecesN * kPer16;
    f.h = checkpoint(t0);
    return f;
  }
  __device__ const float* checkpoint(int64_t t0) const {
    const int64_t tile = b * in().tiles() + t0 / kSteps;
    return a.walk.checkpoint_h + (tile * in().slabs(kChannels) + slab) * (kWarp * kStates) + 4 * lane;
  }
  // Starts the copies of the next tile.
  __device__ __forceinline__ void fetch_next(Feed& f, int stage) const {
    if (f.t0 >= begin) {
      const int left = static_cast<int>(end - f.t0 < kSteps ? end - f.t0 : kSteps);
      if (active) {
        auto& s = mine.stages[stage];
        if (lane < kSteps * kPieces) {
          const bool valid = lane / kPieces < left;
          copy16_async(s.u + lane * kPer16, f.u, valid);
          copy16_async(s.delta + lane * kPer16, f.delta, valid);
          if (f.z != nullptr) copy16_async(s.z + lane * kPer16, f.z, valid);
          copy16_async(s.dy + lane * kPer16, f.dy, valid);
        }
#pragma unroll
        for (int i = 0; i < kStates; i += 4) copy16_async(s.h + i * kWarp + 4 * lane, f.h + i * kWarp);
        f.u -= kSteps * in().u.stride, f.delta -= kSteps * in().delta.stride;
        f.dy -= kSteps * a.walk.dy.stride;
        if (f.z != nullptr) f.z -= kSteps * in().z.stride;
        f.h -= in().slabs(kChannels) * (kWarp * kStates);
      }
      if (f.takes_n) {
        copy16_async(m.bc[stage].B + f.at_n, f.bc, f.row_n < left);
        f.bc -= f.bc_stride;
      }
      f.t0 -= kSteps;
    }
    commit_copies();
  }
  // A tile without copies by 16 bytes, but for the states.
  __device__ void load_tile(int64_t t0, int stage) const {
    const int64_t row = b * in().L + t0, left = end - t0;
    auto& s = mine.stages[stage];
    if (active) {
      const auto rows = [&](const Rows<T>& from, T* to) {
        if (from.data == nullptr) return;
        for (int p = lane; p < kSteps * kChannels; p += kWarp) {
          const int t = p / kChannels, c = p % kChannels;
          const bool valid = t < left && first_channel + c < limit;
          to[p] = valid ? from.data[(row + t) * from.stride + first_channel + c] : T{};
        }
      };
      rows(in().u, s.u);
      rows(in().delta, s.delta);
      rows(in().z, s.z);
      rows(a.walk.dy, s.dy);
      const float* h = checkpoint(t0);
#pragma unroll
      for (int i = 0; i < kStates; i += 4) copy16_async(s.h + i * kWarp + 4 * lane, h + i * kWarp);
    }
    if constexpr (!constant) {
      const auto states = [&](const Rows<T>& from, T* to) {
        for (int p = threadIdx.x; p < kSteps * kN; p += kThreads) {
          const int t = p / kN, n = p % kN;
          const bool valid = t < left && n < in().N;
          to[p] = valid ? from.data[(row + t) * from.stride + group * in().N + n] : T{};
        }
      };
      states(in().Bm, m.bc[stage].B);
      states(in().Cm, m.bc[stage].C);
    }
    commit_copies();
  }

  // What the tokens of the tile at t0 are; `window` holds the ids from t0 - 24 on, one a lane.
  __device__ Marks marks_at(const int32_t* ids, int64_t t0, int count, int window) const {
    if (ids == nullptr) return {~0u << count, 0};
    const uint32_t real = __ballot_sync(kAllLanes, window >= 0);
    const uint32_t before = real & ((1u << lane) - 1);
    int previous = __shfl_sync(kAllLanes, window, before == 0 ? 0 : 31 - __clz(before));
    if ((real & 0xffffffu) == 0) {
      const int far = t0 > 24 ? last_id_before(ids, t0 - 24) : -1;
      if (before == 0) previous = far;
    }
    const bool reset = window >= 0 && previous >= 0 && previous != window;
    return {~(real >> 24), __ballot_sync(kAllLanes, reset) >> 24};
  }
  __device__ int window_at(const int32_t* ids, int64_t t0) const {
    const int64_t t = t0 - 24 + lane;
    return ids != nullptr && t >= 0 && t < end ? ids[t] : -1;
  }

  // Step sizes and gradients of the ungated y.
  __device__ __forceinline__ void prepare(int stage, const Marks& marks,
                                          const float (&bias)[kVec]) const {
    const auto& s = mine.stages[stage];
    const int t = lane / kAcross, c = lane % kAcross * kVec;
    if (t >= kSteps) return;
    float u[kVec], d[kVec], out[kVec];
    load_n<kVec>(s.u + t * kChannels + c, u);
    load_n<kVec>(s.delta + t * kChannels + c, d);
    load_n<kVec>(s.dy + t * kChannels + c, out);
#pragma unroll
    for (int i = 0; i < kVec; ++i) d[i] = __fadd_rn(d[i], bias[i]);
    if (in().softplus) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) d[i] = softplus<T>(d[i]);
    }
    if (in().z.data != nullptr) {
      float z[kVec];
      load_n<kVec>(s.z + t * kChannels + c, z);
#pragma unroll
      for (int i = 0; i < kVec; ++i) out[i] *= z[i] * sigmoid_of<T>(z[i]);
    }
    float4 step[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) step[i] = make_float4(d[i], __fmul_rn(d[i], u[i]), out[i], d[i]);
    if ((marks.padding | marks.reset) != 0 || !active) {
      const bool padding = marks.padding >> t & 1 || !active, reset = marks.reset >> t & 1;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (reset) step[i].x = __int_as_float(0x7f800000);
        if (padding) step[i] = make_float4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) mine.step[t * kChannels + c + i] = step[i];
  }

  // The gradients of u, delta and z of the tile's tokens; `to` are where this lane's go.
  struct Output {
    T *du, *ddelta, *dz;
  };
  __device__ __forceinline__ void finish(int stage, const Marks& marks, int count, const Output& to,
                                         int64_t at, const float (&bias)[kVec],
                                         const float (&D)[kVec], float (&dbias)[kVec],
                                         float (&dD)[kVec]) const {
    const auto& s = mine.stages[stage];
    const int t = lane / kAcross, c = lane % kAcross * kVec;
    if (t >= count) return;
    float sum[3][kVec] = {}, u[kVec], dy[kVec], raw[kVec], du[kVec], dd[kVec], dz[kVec] = {};
    float part[3][R < 8 ? R : 1][kVec];
    float4 step[kVec];
    load_n<kVec>(s.u + t * kChannels + c, u);
    load_n<kVec>(s.delta + t * kChannels + c, raw);
#pragma unroll
    for (int i = 0; i < kVec; ++i) step[i] = mine.step[t * kChannels + c + i];
    if constexpr (R < 8) {
#pragma unroll
      for (int k = 0; k < 3; ++k) {
#pragma unroll
        for (int r = 0; r < R; ++r) load_n<kVec>(mine.sums[t] + k * kWarp + r * kChannels + c, part[k][r]);
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
          for (int i = 0; i < kVec; ++i) sum[k][i] += part[k][r][i];
        }
      }
    } else {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int k = 0; k < 3; ++k) sum[k][0] += mine.sums[t][k * kWarp + r * kChannels + c];
      }
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      raw[i] = __fadd_rn(raw[i], bias[i]);
      dd[i] = fmaf(sum[0][i], u[i], sum[1][i] * 0.69314718f);
      du[i] = fmaf(step[i].w, sum[0][i], D[i] * step[i].z);
    }
    if (in().softplus) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const float slope = sigmoid_of<T>(raw[i]);
        dd[i] *= raw[i] <= 20.0f ? slope : 1.0f;
      }
    }
    if (to.dz != nullptr) {
      float z[kVec];
      load_n<kVec>(s.z + t * kChannels + c, z);
      load_n<kVec>(s.dy + t * kChannels + c, dy);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const float gate = sigmoid_of<T>(z[i]);
        dz[i] = dy[i] * fmaf(D[i], u[i], sum[2][i]) * gate * fmaf(z[i], 1.0f - gate, 1.0f);
      }
    }
    if (marks.padding >> t & 1) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) dd[i] = du[i] = dz[i] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) dbias[i] += dd[i], dD[i] = fmaf(step[i].z, u[i], dD[i]);
    }
    if constexpr (copies) {
      store_pair(to.du, du);
      store_pair(to.ddelta, dd);
      if (to.dz != nullptr) store_pair(to.dz, dz);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (at + i >= limit) continue;
        store(to.du + i, du[i]);
        store(to.ddelta + i, dd[i]);
        if (to.dz != nullptr) store(to.dz + i, dz[i]);
      }
    }
  }

  __device__ void run(int64_t segment) const {
    const int64_t E = in().E, N = in().N, part_of = b * a.walk.segments + segment;
    const int c = lane % kChannels, part = lane / kChannels;
    const int64_t channel = first_channel + c < limit ? first_channel + c : limit - 1;
    const bool owner = active && first_channel + c < limit;
    const bool several = a.walk.segments > 1;
    float rate[kStates], g[kStates], dA[kStates] = {}, first_h[kStates];
    float B[kStates], C[kStates], dB[constant ? kStates : 1] = {}, dC[constant ? kStates : 1] = {};
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = kStates * part + i;
      const bool valid = n < N && active;
      rate[i] = valid ? decay_rate(in().A_t[n * E + channel]) : -1.0f;
      g[i] = first_h[i] = 0;
      if (valid && several) {
        g[i] = a.walk.segment_g[(part_of * N + n) * E + channel];
        first_h[i] = a.walk.segment_h[(part_of * N + n) * E + channel];
      } else if (valid && a.dhT != nullptr) {
        g[i] = a.dhT[(b * N + n) * E + channel];
      }
      if constexpr (constant) {
        B[i] = valid ? in().bc(in().Bm, 0, channel, n) : 0.0f;
        C[i] = valid ? in().bc(in().Cm, 0, channel, n) : 0.0f;
      }
    }
    float bias[kVec], D[kVec], dbias[kVec] = {}, dD[kVec] = {};
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const int64_t at = first_channel + lane % kAcross * kVec + i;
      bias[i] = in().delta_bias != nullptr && at < limit ? in().delta_bias[at] : 0.0f;
      D[i] = in().D != nullptr && at < limit ? in().D[at] : 0.0f;
    }
    const int32_t* ids = in().ids == nullptr ? nullptr : in().ids + b * in().L;
    const int64_t last_tile = (end - 1) / kSteps * kSteps;
    const int64_t at = first_channel + lane % kAcross * kVec;
    const int64_t row = b * in().L + last_tile + lane / kAcross;
    Output to{a.du + row * a.du_stride + at, a.ddelta + row * a.ddelta_stride + at,
              a.dz == nullptr ? nullptr : a.dz + row * a.dz_stride + at};
    Feed feed{};
    if constexpr (copies) feed = first_feed(last_tile);
    for (int i = 0; i + 1 < kStages<R>; ++i) {
      if constexpr (copies) {
        fetch_next(feed, i);
      } else if (last_tile - i * kSteps >= begin) {
        load_tile(last_tile - i * kSteps, i);
      } else {
        commit_copies();
      }
    }
    int window = window_at(ids, last_tile), stage = 0;
    for (int64_t t0 = last_tile; t0 >= begin; t0 -= kSteps) {
      const int count = static_cast<int>(end - t0 < kSteps ? end - t0 : kSteps);
      const Marks marks = marks_at(ids, t0, count, window);
      window = window_at(ids, t0 - kSteps);
      wait_copies<kStages<R> - 2>();
      __syncthreads();  // the tile is there; the sums of the last one have been read
      if constexpr (!constant) {
        for (int p = threadIdx.x; p < kSteps * kN; p += kThreads) {
          const bool padding = marks.padding >> (p / kN) & 1;
          m.B[p] = padding ? 0.0f : load(m.bc[stage].B + p);
          m.C[p] = padding ? 0.0f : load(m.bc[stage].C + p);
        }
      }
      prepare(stage, marks, bias);
      const int before = stage == 0 ? kStages<R> - 1 : stage - 1;
      if constexpr (copies) {
        fetch_next(feed, before);
      } else if (t0 - (kStages<R> - 1) * kSteps >= begin) {
        load_tile(t0 - (kStages<R> - 1) * kSteps, before);
      } else {
        commit_copies();
      }
      __syncthreads();
      tile(stage, t0, several, channel, rate, first_h, B, C, g, dA, dB, dC);
      __syncwarp();
      if (active) finish(stage, marks, count, to, at, bias, D, dbias, dD);
      to.du -= kSteps * a.du_stride, to.ddelta -= kSteps * a.ddelta_stride;
      if (to.dz != nullptr) to.dz -= kSteps * a.dz_stride;
      stage = stage + 1 == kStages<R> ? 0 : stage + 1;
      if constexpr (!constant) {
        __syncthreads();
        add_slots(t0, count);
      }
    }
    if (owner) {
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const int64_t n = kStates * part + i;
        if (n >= N) continue;
        a.partial_A[(part_of * N + n) * E + channel] = dA[i];
        if (segment == 0 && a.dh0 != nullptr) a.dh0[(b * N + n) * E + channel] = g[i];
        if constexpr (constant) {
          a.partial_B[(part_of * E + channel) * N + n] = dB[i];
          a.partial_C[(part_of * E + channel) * N + n] = dC[i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
#pragma unroll
      for (int offset = kAcross; offset < kWarp; offset *= 2) {
        dbias[i] += __shfl_xor_sync(kAllLanes, dbias[i], offset);
        dD[i] += __shfl_xor_sync(kAllLanes, dD[i], offset);
      }
      const int64_t at = first_channel + lane * kVec + i;
      if (active && lane < kAcross && at < limit) {
        a.partial_bias[part_of * E + at] = dbias[i];
        a.partial_D[part_of * E + at] = dD[i];
      }
    }
  }

  // The states of a tile again, and the walk back through them.
  __device__ __forceinline__ void tile(int stage, int64_t t0, bool several, int64_t channel,
                                       const float (&rate)[kStates], const float (&first_h)[kStates],
                                       float (&B)[kStates], float (&C)[kStates], float (&g)[kStates],
                                       float (&dA)[kStates], float (&dB)[constant ? kStates : 1],
                                       float (&dC)[constant ? kStates : 1]) const {
    const int c = lane % kChannels, part = lane / kChannels;
    float h[kSteps + 1][kStates], decay[kSteps][kStates];
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      float four[4];
      load_n<4>(mine.stages[stage].h + i * kWarp + 4 * lane, four);
#pragma unroll
      for (int k = 0; k < 4; ++k) h[0][i + k] = active ? four[k] : 0.0f;
    }
    if (several && active) {  // the checkpoint is of the segment alone
      const float d = a.walk.checkpoint_d[(b * in().tiles() + t0 / kSteps) * in().E + channel];
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        h[0][i] = fmaf(exp2_approx(d * rate[i]), first_h[i], h[0][i]);
      }
    }
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      const float4 step = mine.step[t * kChannels + c];
      if constexpr (!constant) load_n<kStates>(m.B + t * kN + kStates * part, B);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        decay[t][i] = exp2_approx(__fmul_rn(step.x, rate[i]));
        h[t + 1][i] = fmaf(decay[t][i], h[t][i], __fmul_rn(step.y, B[i]));
      }
    }
    float columns[2][kStates / 2][4] = {};
#pragma unroll
    for (int t = kSteps - 1; t >= 0; --t) {
      const float4 step = mine.step[t * kChannels + c];
      if constexpr (!constant) {
        load_n<kStates>(m.B + t * kN + kStates * part, B);
        load_n<kStates>(m.C + t * kN + kStates * part, C);
      }
      float of_B[kStates], of_C[kStates], sum_B = 0, sum_A = 0, sum_C = 0;
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        g[i] = fmaf(C[i], step.z, g[i]);
        of_B[i] = g[i] * step.y;
        of_C[i] = step.z * h[t + 1][i];
        sum_C = fmaf(C[i], h[t + 1][i], sum_C);
        sum_B = fmaf(g[i], B[i], sum_B);
        g[i] *= decay[t][i];
        const float carried = g[i] * h[t][i];
        sum_A = fmaf(carried, rate[i], sum_A);
        dA[i] = fmaf(step.w, carried, dA[i]);
      }
      mine.sums[t][lane] = sum_B;
      mine.sums[t][kWarp + lane] = sum_A;
      mine.sums[t][2 * kWarp + lane] = sum_C;
      if constexpr (constant) {
#pragma unroll
        for (int i = 0; i < kStates; ++i) dB[i] += of_B[i], dC[i] += of_C[i];
      } else if constexpr (kChannels >= 4) {
        const float one = lane / 4 == t ? 1.0f : 0.0f;
#pragma unroll
        for (int i = 0; i < kStates; i += 2) {
          add_columns<T>(columns[0][i / 2], of_B[i], of_B[i + 1], one);
          add_columns<T>(columns[1][i / 2], of_C[i], of_C[i + 1], one);
        }
      } else {  // one channel: nothing to add
        float* to = m.sums + warp * Memory::kSlot + part * Memory::kLane + t;
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          to[i * kSteps] = of_B[i];
          to[R * Memory::kLane + i * kSteps] = of_C[i];
        }
      }
    }
    if constexpr (!constant && kChannels >= 4) {
      constexpr int kGroups = Memory::kGroups;
      const int q = lane % 4, slot = warp * kGroups + lane / 4 % kGroups;
      float* to = m.sums + slot * Memory::kSlot + part * Memory::kLane + 2 * q;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          const float* two = columns[k][i / 2] + i % 2 * 2;
          *reinterpret_cast<float2*>(to + k * R * Memory::kLane + i * kSteps) = make_float2(two[0], two[1]);
        }
      }
    }
  }

  // Adds the sums of the block's warps and stores them.
  __device__ void add_slots(int64_t t0, int count) const {
    const int64_t groups = in().E / in().group;
#pragma unroll 1
    for (int o = threadIdx.x; o < 2 * kN * kSteps; o += kThreads) {
      float sum = 0;
#pragma unroll
      for (int slot = 0; slot < Memory::kSlots; ++slot) {
        sum += m.sums[slot * Memory::kSlot + o + o / (kStates * kSteps) * Memory::kGap];
      }
      const int t = o % kSteps, n = o / kSteps;
      if (t >= count) continue;
      const int64_t row = b * in().L + t0 + t;
      a.partial_bc[((block * in().B * in().L + row) * groups + group) * 2 * kN + n] = sum;
    }
  }
};

template <class T, int R, bool copies, bool constant>
__global__ void __launch_bounds__(kThreads, R == 4 ? 2 : 1)
    back_kernel(const __grid_constant__ Back<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kChannels = Lanes<R>::kChannels;
  auto& memory = *reinterpret_cast<BackMemory<T, R>*>(shared);
  const ScanInput<T>& in = a.walk.in;
  const int warp = threadIdx.x / kWarp;
  const int64_t slabs = in.slabs_of_group(kChannels), blocks = (slabs + kBlockWarps - 1) / kBlockWarps;
  const int64_t block = blockIdx.x % blocks, group = blockIdx.x / blocks;
  const int64_t segment = blockIdx.y, b = blockIdx.z;
  const int64_t begin = segment * a.walk.per_segment;
  const int64_t end = begin + a.walk.per_segment < in.L ? begin + a.walk.per_segment : in.L;
  const int64_t slab = block * kBlockWarps + warp;
  const bool active = slab < slabs;
  const int64_t first = group * in.group + (active ? slab : 0) * kChannels;
  const BackWalker<T, R, copies, constant> walker{a,
                                                  memory,
                                                  memory.warps[warp],
                                                  static_cast<int>(threadIdx.x % kWarp),
                                                  warp,
                                                  b,
                                                  group * slabs + slab,
                                                  first,
                                                  (group + 1) * in.group,
                                                  begin,
                                                  end,
                                                  block,
                                                  group,
                                                  active};
  walker.run(segment);
}

// segment_g: from gradients that segments alone pass back to those that reach their ends.
__global__ void __launch_bounds__(256)
    chain_back_kernel(int64_t B, int64_t segments, int64_t N, int64_t E, const float* __restrict__ A_t,
                      const float* __restrict__ dhT, const float* __restrict__ segment_d,
                      float* __restrict__ segment_g) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= B * N * E) return;
  const int64_t b = i / (N * E), at = i % (N * E), c = at % E;
  const float rate = decay_rate(A_t[at]);
  float g = dhT == nullptr ? 0.0f : dhT[i];
  for (int64_t s = segments - 1; s >= 0; --s) {
    float* mine = segment_g + (b * segments + s) * N * E + at;
    const float alone = *mine;
    *mine = g;
    g = fmaf(exp2_approx(segment_d[(b * segments + s) * E + c] * rate), g, alone);
  }
}

// dB and dC: the sums of `blocks` blocks. A thread a state of a row.
template <class T>
__global__ void __launch_bounds__(256)
    add_blocks_kernel(const float* __restrict__ partial, int64_t blocks, int64_t rows, int64_t groups,
                      int64_t N, int64_t kN, T* dB, int64_t dB_stride, T* dC, int64_t dC_stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, width = groups * 2 * kN;
  if (i >= rows * width) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t k = 0; k < blocks; ++k) sum += partial[k * rows * width + i];
  const int64_t row = i / width, at = i % width, group = at / (2 * kN), n = at % kN;
  if (n >= N) return;
  if (at % (2 * kN) < kN) {
    store(dB + row * dB_stride + group * N + n, sum);
  } else {
    store(dC + row * dC_stride + group * N + n, sum);
  }
}
// out[i] += the sums of `count` parts.
template <class T>
__global__ void __launch_bounds__(256)
    add_parts_kernel(const float* __restrict__ parts, int64_t count, int64_t n, T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= n) return;
  float sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += parts[k * n + i];
  store(out + i, load(out + i) + sum);
}
template <class T>
void add_parts(Stream& stream, const float* parts, int64_t count, int64_t n, T* out) {
  if (out == nullptr) return;
  launch(stream, kName, add_parts_kernel<T>, dim3(static_cast<unsigned>(ceil_div(n, 256))),
         dim3(256), 0, parts, count, n, out);
}

template <class T, int R, bool copies, bool constant>
void backward(Stream& stream, const ScanBackwardArgs& a) {
  constexpr int kChannels = Lanes<R>::kChannels, kN = Lanes<R>::kN, kStates = Lanes<R>::kStates;
  Back<T> p{};
  Walk<T>& w = p.walk;
  w.in = scan_input<T>(a);
  w.in.L = a.L, w.in.ids = a.doc_ids.as<int32_t>();
  w.h0 = a.h0.as<float>(), w.h_stride = a.h_stride;
  w.dy = {a.dy.as<T>(), a.dy_stride};
  cut(w, kChannels);
  const int64_t groups = a.E / w.in.group;
  const int64_t blocks = ceil_div(w.in.slabs_of_group(kChannels), kBlockWarps);
  const int64_t parts = a.B * w.segments, NE = a.N * a.E, rows = a.B * a.L;
  const auto place = [&](float* memory) {  // returns how much there is
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* piece = memory == nullptr ? nullptr : memory + used;
      used += ceil_div(count, 32) * 32;
      return piece;
    };
    w.checkpoint_h = take(a.B * w.in.tiles() * w.in.slabs(kChannels) * kWarp * kStates);
    if (w.segments > 1) {
      w.checkpoint_d = take(a.B * w.in.tiles() * a.E);
      w.segment_h = take(parts * NE), w.segment_g = take(parts * NE), w.segment_d = take(parts * a.E);
    }
    p.partial_A = take(parts * NE), p.partial_bias = take(parts * a.E), p.partial_D = take(parts * a.E);
    if (constant) {
      p.partial_B = take(parts * NE), p.partial_C = take(parts * NE);
    } else {
      p.partial_bc = take(blocks * rows * groups * 2 * kN);
    }
    return used;
  };
  float* memory = stream.scratch<float>(place(nullptr));
  if (memory == nullptr) return;
  place(memory);
  if (w.segments > 1) {
    launch_walk<T, R, copies, Task::kCheckpointsOfSegments>(stream, kName, w);
    const dim3 grid(static_cast<unsigned>(ceil_div(a.B * NE, 256)));
    launch(stream, kName, chain_kernel, grid, dim3(256), 0, a.B, w.segments, a.N, a.E, w.in.A_t,
           w.h0, w.h_stride, w.segment_d, w.segment_h);
    launch(stream, kName, chain_back_kernel, grid, dim3(256), 0, a.B, w.segments, a.N, a.E, w.in.A_t,
           a.dhT.as<float>(), w.segment_d, w.segment_g);
  } else {
    launch_walk<T, R, copies, Task::kCheckpoints>(stream, kName, w);
  }
  p.dhT = a.dhT.as<float>(), p.dh0 = a.dh0.as<float>();
  p.du = a.du.as<T>(), p.ddelta = a.ddelta.as<T>(), p.dz = a.dz.as<T>();
  p.du_stride = a.du_stride, p.ddelta_stride = a.ddelta_stride, p.dz_stride = a.dz_stride;
  launch(stream, kName, back_kernel<T, R, copies, constant>,
         dim3(static_cast<unsigned>(blocks * groups), static_cast<unsigned>(w.segments),
              static_cast<unsigned>(a.B)),
         dim3(kThreads), sizeof(BackMemory<T, R>), p);
  add_parts(stream, p.partial_A, parts, NE, a.dA_t.as<float>());
  add_parts(stream, p.partial_bias, parts, a.E, a.ddelta_bias.as<float>());
  add_parts(stream, p.partial_D, parts, a.E, a.dD.as<float>());
  if (constant) {
    with_training_type(a.dBm.dtype, [&]<class G>() {
      add_parts(stream, p.partial_B, parts, NE, a.dBm.as<G>());
      add_parts(stream, p.partial_C, parts, NE, a.dCm.as<G>());
    });
  } else {
    launch(stream, kName, add_blocks_kernel<T>,
           dim3(static_cast<unsigned>(ceil_div(rows * groups * 2 * kN, 256))), dim3(256), 0,
           p.partial_bc, blocks, rows, groups, a.N, static_cast<int64_t>(kN), a.dBm.as<T>(),
           a.dB_stride, a.dCm.as<T>(), a.dC_stride);
  }
}

}  // namespace

void scan_backward(Stream& stream, const ScanBackwardArgs& a) noexcept {
  if (a.B == 0 || a.E == 0) return;
  if (a.L == 0) {
    if (!a.dh0 || stream.failed != nullptr) return;
    const size_t bytes = static_cast<size_t>(a.B * a.N * a.E) * sizeof(float);
    expect_success(stream, kName,
                   a.dhT ? cudaMemcpyAsync(a.dh0.data, a.dhT.data, bytes, cudaMemcpyDeviceToDevice,
                                           cuda_stream(stream))
                         : cudaMemsetAsync(a.dh0.data, 0, bytes, cuda_stream(stream)));
    return;
  }
  with_training_type(a.u.dtype, [&]<class T>() {
    with_lanes(stream, kName, a.N, [&]<int R>() {
      if (a.bc == ScanBC::kConstant) return backward<T, R, false, true>(stream, a);
      if constexpr (R == 4) {
        if (takes_copies(a, R) && rows_aligned(a.dy, a.dy_stride, 16) &&
            rows_aligned(a.du, a.du_stride, 16) && rows_aligned(a.ddelta, a.ddelta_stride, 16) &&
            rows_aligned(a.dz, a.dz_stride, 16)) {
          return backward<T, R, true, false>(stream, a);
        }
      }
      backward<T, R, false, false>(stream, a);
    });
  });
}

}  // namespace mamba::cuda
