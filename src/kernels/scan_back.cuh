// SPDX-License-Identifier: Apache-2.0
// The blocks of scan's CUDA backward pass: tiles of tokens are taken from the last to the first;
// states and decays are computed again from the checkpoints, 8 tokens at a time into registers, and
// the gradient of the state walks back through them. Sums over channels (of dB and dC) run on
// tensor cores: a product with a column of ones for the token, so that 8 tokens end up in the 8
// columns of the result; a block adds those of its warps.
#pragma once

#include "kernels/scan_back_memory.cuh"

namespace mamba::cuda {

template <class T, int R, bool copies, bool constant>
struct BackWalker {
  using Memory = BackMemory<T, R>;
  static constexpr int kChannels = Memory::kChannels, kStates = Memory::kStates;
  static constexpr int kTile = Memory::kTile, kHalves = Memory::kHalves, kStages = Memory::kStages;
  static constexpr int kVec = Memory::kVec;
  static constexpr int kAcross = kChannels / kVec;  // lanes along the channels there
  static constexpr int kDown = kWarp / kAcross;     // tokens that the warp prepares together
  static constexpr int kRows = kTile > kDown ? kTile / kDown : 1;
  [[maybe_unused]] static constexpr int kN = Memory::kN;
  [[maybe_unused]] static constexpr int kPer16 = 16 / sizeof(T);

  const Back<T>& a;
  Memory& m;
  typename Memory::Warp& mine;
  int lane, warp;

  __device__ const ScanInput<T>& in() const { return a.walk.in; }
  __device__ int64_t first_channel() const { return m.place.first_channel + warp * kChannels; }
  // Whether the warp has channels.
  __device__ bool active() const { return first_channel() < m.place.limit; }
  // Of segments and sequences.
  __device__ int64_t part_of() const { return m.place.b * a.walk.segments + m.place.segment; }
  __device__ int64_t channel_of(int c) const {  // one that there is
    const int64_t at = first_channel() + c;
    return at < m.place.limit ? at : m.place.limit - 1;
  }
  __device__ const int32_t* ids() const {
    return in().ids == nullptr ? nullptr : in().ids + m.place.b * in().L;
  }
  __device__ __forceinline__ int row(int k) const { return lane / kAcross + k * kDown; }
  static __device__ __forceinline__ bool in_tile(int t) { return kDown <= kTile || t < kTile; }

  // Of 16 bytes, in a row of channels and of states.
  static constexpr int kPieces = (kChannels + kPer16 - 1) / kPer16;
  static constexpr int kPiecesN = kN / kPer16;
  // The copies of the states before the tile's tokens 0 and 8, which lie as the walk left them.
  __device__ __forceinline__ void copy_states(int64_t t0, typename Memory::Stage& s) const {
    const float* from =
        a.walk.checkpoint_h +
        ((m.place.b * a.tiles + t0 / kSteps) * a.slabs + m.place.first_slab + warp) *
            (kChannels * kN) +
        4 * lane;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const bool valid = t0 + half * kSteps < m.place.end;
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        copy16_async(s.h[half] + i * kWarp + 4 * lane, from + i * kWarp, valid);
      }
      if (valid) from += a.slabs * (kChannels * kN);
    }
  }
  // Starts the copies of the tile at t0. Addresses are computed anew: that takes fewer registers.
  __device__ __forceinline__ void fetch_tile(int64_t t0, int stage) const {
    if (t0 >= m.place.begin) {
      const int left = static_cast<int>(m.place.end - t0 < kTile ? m.place.end - t0 : kTile);
      const int64_t first = m.place.b * in().L + t0;
      // Rows of all channels of the block: half of the threads copy u and z, half delta and dy.
      constexpr int kRow = kBlockWarps * kPieces, kHalf = kTile * kRow;
      static_assert(!copies || 2 * kHalf == kThreads);
      const int p = static_cast<int>(threadIdx.x) % kHalf, piece = p % kRow;
      const bool second = threadIdx.x >= kHalf;
      const int64_t row = first + p / kRow;
      const int64_t c = m.place.first_channel + piece * kPer16;
      if (c < m.place.limit) {
        auto& s = m.warps[piece / kPieces].stages[stage];
        const int at = (p / kRow * kPieces + piece % kPieces) * kPer16;
        const bool valid = p / kRow < left;
        const Rows<T>& one = second ? in().delta : in().u;
        const Rows<T>& other = second ? a.walk.dy : in().z;
        copy16_async((second ? s.delta : s.u) + at, one.data + row * one.stride + c, valid);
        if (other.data != nullptr) {
          copy16_async((second ? s.dy : s.z) + at, other.data + row * other.stride + c, valid);
        }
      }
      if (active()) copy_states(t0, mine.stages[stage]);
      // The first threads copy B, those after them C.
      constexpr int kAll = kTile * kPiecesN;
      static_assert(!copies || 2 * kAll <= kThreads);
      if (threadIdx.x < 2 * kAll) {
        const bool is_C = threadIdx.x >= kAll;
        const int p = static_cast<int>(threadIdx.x) - (is_C ? kAll : 0), t = p / kPiecesN;
        const T* data = is_C ? in().Cm.data : in().Bm.data;
        const int64_t stride = is_C ? in().Cm.stride : in().Bm.stride;
        copy16_async((is_C ? m.bc[stage].C : m.bc[stage].B) + p * kPer16,
                     data + (first + t) * stride + m.place.group * kN + p % kPiecesN * kPer16,
                     t < left);
      }
    }
    commit_copies();
  }
  // A tile without copies by 16 bytes, but for the states.
  __device__ void load_tile(int64_t t0, int stage) const {
    const int64_t first = m.place.b * in().L + t0, left = m.place.end - t0;
    auto& s = mine.stages[stage];
    if (active()) {
      const auto rows = [&](const Rows<T>& from, T* to) {
        if (from.data == nullptr) return;
        for (int p = lane; p < kTile * kChannels; p += kWarp) {
          const int t = p / kChannels, c = p % kChannels;
          const bool valid = t < left && first_channel() + c < m.place.limit;
          to[p] = valid ? from.data[(first + t) * from.stride + first_channel() + c] : T{};
        }
      };
      rows(in().u, s.u);
      rows(in().delta, s.delta);
      rows(in().z, s.z);
      rows(a.walk.dy, s.dy);
      copy_states(t0, s);
    }
    if constexpr (!constant) {
      const auto states = [&](const Rows<T>& from, T* to) {
        for (int p = threadIdx.x; p < kTile * kN; p += kThreads) {
          const int t = p / kN, n = p % kN;
          const bool valid = t < left && n < in().N;
          to[p] = valid ? from.data[(first + t) * from.stride + m.place.group * in().N + n] : T{};
        }
      };
      states(in().Bm, m.bc[stage].B);
      states(in().Cm, m.bc[stage].C);
    }
    commit_copies();
  }

  // What the tokens of the tile at t0 are; `window` holds the ids from t0 + kTile - 32 on, one a
  // lane.
  __device__ Marks marks_at(int64_t t0, int count, int window) const {
    constexpr int kBefore = kWarp - kTile;
    if (in().ids == nullptr) return {~0u << count, 0};
    const uint32_t real = __ballot_sync(kAllLanes, window >= 0);
    const uint32_t before = real & ((1u << lane) - 1);
    int previous = __shfl_sync(kAllLanes, window, before == 0 ? 0 : 31 - __clz(before));
    if ((real & ((1u << kBefore) - 1)) == 0) {
      const int far = t0 > kBefore ? last_id_before(ids(), t0 - kBefore) : -1;
      if (before == 0) previous = far;
    }
    const bool reset = window >= 0 && previous >= 0 && previous != window;
    return {~(real >> kBefore), __ballot_sync(kAllLanes, reset) >> kBefore};
  }
  __device__ int window_at(int64_t t0) const {
    const int64_t t = t0 + kTile - kWarp + lane;
    return in().ids != nullptr && t >= 0 && t < m.place.end ? ids()[t] : -1;
  }

  // Step sizes and gradients of the ungated y.
  __device__ __forceinline__ void prepare(int stage, const Marks& marks) const {
    const auto& s = mine.stages[stage];
    const int c = lane % kAcross * kVec;
    float bias[kVec];
    load_n<kVec>(mine.bias + c, bias);
    float u[kRows][kVec], d[kRows][kVec], out[kRows][kVec], z[kRows][kVec];
    const bool has_z = in().z.data != nullptr;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int at = row(k) * kChannels + c;
      if (!in_tile(row(k))) continue;
      load_n<kVec>(s.u + at, u[k]);
      load_n<kVec>(s.delta + at, d[k]);
      load_n<kVec>(s.dy + at, out[k]);
      if (has_z) load_n<kVec>(s.z + at, z[k]);
#pragma unroll
      for (int i = 0; i < kVec; ++i) d[k][i] = __fadd_rn(d[k][i], bias[i]);
    }
    if (in().softplus) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) d[k][i] = softplus<T>(d[k][i]);
      }
    }
    if (has_z) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) out[k][i] *= z[k][i] * sigmoid_of<T>(z[k][i]);
      }
    }
    const bool plain = (marks.padding | marks.reset) == 0 && active();
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int t = row(k);
      if (!in_tile(t)) continue;
      float2 step[kVec], other[kVec];
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        step[i] = make_float2(d[k][i], __fmul_rn(d[k][i], u[k][i]));
        other[i] = make_float2(out[k][i], d[k][i]);
      }
      if (!plain) {
        asm volatile("");
        const bool padding = marks.padding >> t & 1 || !active(), reset = marks.reset >> t & 1;
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          if (reset) step[i].x = __int_as_float(0x7f800000);
          if (padding) step[i] = other[i] = make_float2(0, 0);
        }
      }
      const int at = t * kChannels + c;
      if constexpr (kVec == 2) {
        *reinterpret_cast<float4*>(mine.step + at) =
            make_float4(step[0].x, step[0].y, step[1].x, step[1].y);
        *reinterpret_cast<float4*>(mine.out + at) =
            make_float4(other[0].x, other[0].y, other[1].x, other[1].y);
      } else {
        mine.step[at] = step[0];
        mine.out[at] = other[0];
      }
    }
  }

  // The gradients of u, delta and z of the tile's tokens; `to` are where this lane's first go.
  struct Output {
    T *du, *ddelta, *dz;
  };
  __device__ __forceinline__ void finish(int stage, const Marks& marks, int count, Output to,
                                         int64_t at) const {
    const auto& s = mine.stages[stage];
    const int c = lane % kAcross * kVec;
    float bias[kVec], D[kVec], dbias[kVec], dD[kVec];
    load_n<kVec>(mine.bias + c, bias);
    load_n<kVec>(mine.D + c, D);
    load_n<kVec>(mine.dbias + lane * kVec, dbias);
    load_n<kVec>(mine.dD + lane * kVec, dD);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int t = row(k);
      if (t >= count) break;
      float sum[3][kVec] = {}, u[kVec], raw[kVec], du[kVec], dd[kVec], dz[kVec] = {};
      float2 out[kVec];
      load_n<kVec>(s.u + t * kChannels + c, u);
      load_n<kVec>(s.delta + t * kChannels + c, raw);
      const Vector<float2, kVec> outs = *reinterpret_cast<const Vector<float2, kVec>*>(
                                     mine.out + t * kChannels + c),
                                 steps = *reinterpret_cast<const Vector<float2, kVec>*>(
                                     mine.step + t * kChannels + c);
      load_n<kVec>(mine.y + t * kChannels + c, sum[2]);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        out[i] = outs.at[i], sum[0][i] = steps.at[i].x, sum[1][i] = steps.at[i].y;
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        raw[i] = __fadd_rn(raw[i], bias[i]);
        dd[i] = fmaf(sum[0][i], u[i], sum[1][i] * 0.69314718f);
        du[i] = fmaf(out[i].y, sum[0][i], D[i] * out[i].x);
      }
      if (in().softplus) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const float slope = sigmoid_of<T>(raw[i]);
          dd[i] *= raw[i] <= 20.0f ? slope : 1.0f;
        }
      }
      if (to.dz != nullptr) {
        float z[kVec], dy[kVec];
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
        for (int i = 0; i < kVec; ++i) dbias[i] += dd[i], dD[i] = fmaf(out[i].x, u[i], dD[i]);
      }
      if constexpr (copies) {
        store_pair(to.du, du);
        store_pair(to.ddelta, dd);
        if (to.dz != nullptr) store_pair(to.dz, dz);
      } else {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          if (at + i >= m.place.limit) continue;
          store(to.du + i, du[i]);
          store(to.ddelta + i, dd[i]);
          if (to.dz != nullptr) store(to.dz + i, dz[i]);
        }
      }
      to.du += kDown * a.du_stride, to.ddelta += kDown * a.ddelta_stride;
      if (to.dz != nullptr) to.dz += kDown * a.dz_stride;
    }
    store_n<kVec>(mine.dbias + lane * kVec, dbias);
    store_n<kVec>(mine.dD + lane * kVec, dD);
  }

  __device__ void run() const {
    const int c = lane % kChannels, part = lane / kChannels;
    float rate[kStates], g[kStates], dA[kStates] = {};
    float B[kStates], C[kStates], dB[constant ? kStates : 1] = {}, dC[constant ? kStates : 1] = {};
    {
      const int64_t E = in().E, N = in().N;
      const int64_t channel = channel_of(c);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const int64_t n = kStates * part + i;
        const bool valid = n < N && active();
        rate[i] = valid ? decay_rate(in().A_t[n * E + channel]) : -1.0f;
        g[i] = 0;
        if (valid && a.walk.segments > 1) {
          g[i] = a.walk.segment_g[(part_of() * N + n) * E + channel];
        } else if (valid && a.dhT != nullptr) {
          g[i] = a.dhT[(m.place.b * N + n) * E + channel];
        }
        if constexpr (constant) {
          B[i] = valid ? in().bc(in().Bm, 0, channel, n) : 0.0f;
          C[i] = valid ? in().bc(in().Cm, 0, channel, n) : 0.0f;
        }
      }
      if (lane < kChannels) {
        const bool valid = first_channel() + lane < m.place.limit;
        const int64_t at = first_channel() + lane;
        mine.bias[lane] = in().delta_bias != nullptr && valid ? in().delta_bias[at] : 0.0f;
        mine.D[lane] = in().D != nullptr && valid ? in().D[at] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) mine.dbias[lane * kVec + i] = mine.dD[lane * kVec + i] = 0;
    }
    const int64_t last_tile = m.place.begin + (m.place.end - 1 - m.place.begin) / kTile * kTile;
    const auto fetch = [&](int64_t t0, int stage) {
      if constexpr (copies) {
        fetch_tile(t0, stage);
      } else if (t0 >= m.place.begin) {
        load_tile(t0, stage);
      } else {
        commit_copies();
      }
    };
    for (int i = 0; i + 1 < kStages; ++i) fetch(last_tile - i * kTile, i);
    int window = window_at(last_tile), stage = 0;
    for (int64_t t0 = last_tile; t0 >= m.place.begin; t0 -= kTile) {
      const int count = static_cast<int>(m.place.end - t0 < kTile ? m.place.end - t0 : kTile);
      const Marks marks = marks_at(t0, count, window);
      window = window_at(t0 - kTile);
      wait_copies<kStages - 2>();
      __syncthreads();  // the tile is there; the sums of the last one have been read
      if constexpr (!constant) convert(stage, marks);
      prepare(stage, marks);
      fetch(t0 - (kStages - 1) * kTile, stage == 0 ? kStages - 1 : stage - 1);
      __syncthreads();
#pragma unroll 1
      for (int half = kHalves - 1; half >= 0; --half) {
        if (half * kSteps >= count) continue;
        walk_back(stage, half, t0 + half * kSteps, rate, B, C, g, dA, dB, dC);
      }
      __syncwarp();
      if (active()) {
        const int64_t first = m.place.b * in().L + t0 + lane / kAcross;
        const int64_t at = first_channel() + lane % kAcross * kVec;
        finish(stage, marks, count,
               {a.du + first * a.du_stride + at, a.ddelta + first * a.ddelta_stride + at,
                a.dz == nullptr ? nullptr : a.dz + first * a.dz_stride + at},
               at);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if constexpr (!constant) {
        __syncthreads();
        add_slots(t0, count);
      }
    }
    const int64_t E = in().E, N = in().N, channel = channel_of(c);
    if (first_channel() + c < m.place.limit) {
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const int64_t n = kStates * part + i;
        if (n >= N) continue;
        a.partial_A[(part_of() * N + n) * E + channel] = dA[i];
        if (m.place.segment == 0 && a.dh0 != nullptr) {
          a.dh0[(m.place.b * N + n) * E + channel] = g[i];
        }
        if constexpr (constant) {
          a.partial_B[(part_of() * E + channel) * N + n] = dB[i];
          a.partial_C[(part_of() * E + channel) * N + n] = dC[i];
        }
      }
    }
    __syncwarp();
    if (lane < kChannels && first_channel() + lane < m.place.limit) {
      float dbias = 0, dD = 0;
#pragma unroll
      for (int k = 0; k < kDown; ++k) {
        dbias += mine.dbias[k * kChannels + lane], dD += mine.dD[k * kChannels + lane];
      }
      a.partial_bias[part_of() * E + first_channel() + lane] = dbias;
      a.partial_D[part_of() * E + first_channel() + lane] = dD;
    }
  }

  // B and C of the tile as f32, 0 for padding.
  __device__ __forceinline__ void convert(int stage, const Marks& marks) const {
    for (int p = threadIdx.x; p < kTile * kN; p += kThreads) {
      const bool padding = marks.padding >> (p / kN) & 1;
      const float B = load(m.bc[stage].B + p), C = load(m.bc[stage].C + p);
      m.B[p] = padding ? 0.0f : B;
      m.C[p] = padding ? 0.0f : C;
    }
  }

  // The states of 8 tokens from t0 again, and the walk back through them.
  __device__ __forceinline__ void walk_back(int stage, int half, int64_t t0,
                                            const float (&rate)[kStates], float (&B)[kStates],
                                            float (&C)[kStates], float (&g)[kStates],
                                            float (&dA)[kStates],
                                            float (&dB)[constant ? kStates : 1],
                                            float (&dC)[constant ? kStates : 1]) const {
    const int c = lane % kChannels, part = lane / kChannels;
    float2* steps = mine.step + half * kSteps * kChannels + c;
    const float2* outs = mine.out + half * kSteps * kChannels + c;
    const float* rows_B = m.B + half * kSteps * kN + kStates * part;
    const float* rows_C = m.C + half * kSteps * kN + kStates * part;
    float h[kSteps + 1][kStates], decay[kSteps][kStates];
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      float four[4];
      load_n<4>(mine.stages[stage].h[half] + i * kWarp + 4 * lane, four);
#pragma unroll
      for (int k = 0; k < 4; ++k) h[0][i + k] = active() ? four[k] : 0.0f;
    }
    if (a.walk.segments > 1 && active()) {  // the checkpoint is of the segment alone
      asm volatile("");                     // a branch: its addresses are not for the others
      const int64_t N = in().N, E = in().E, channel = channel_of(c);
      const float d = a.walk.checkpoint_d[(m.place.b * a.tiles + t0 / kSteps) * E + channel];
      const float* from = a.walk.segment_h + (part_of() * N + kStates * part) * E + channel;
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const int64_t n = kStates * part + i;
        if (n < N) h[0][i] = fmaf(exp2_approx(d * rate[i]), from[i * E], h[0][i]);
      }
    }
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      const float2 step = steps[t * kChannels];
      if constexpr (!constant) load_n<kStates>(rows_B + t * kN, B);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        decay[t][i] = exp2_approx(__fmul_rn(step.x, rate[i]));
        h[t + 1][i] = fmaf(decay[t][i], h[t][i], __fmul_rn(step.y, B[i]));
      }
    }
    float columns[2][kStates / 2][4] = {};
    [[maybe_unused]] float held[3] = {}, two[2][3] = {};
    [[maybe_unused]] const bool odd = part & 1, upper = part & 2;
    float* ys = mine.y + half * kSteps * kChannels + c;
    __syncwarp();  // what `steps` were has been read
#pragma unroll
    for (int t = kSteps - 1; t >= 0; --t) {
      const float2 out = outs[t * kChannels];
      const float du = steps[t * kChannels].y;
      if constexpr (!constant) {
        load_n<kStates>(rows_B + t * kN, B);
        load_n<kStates>(rows_C + t * kN, C);
      }
      float of_B[kStates], of_C[kStates], sums[3] = {};
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        g[i] = fmaf(C[i], out.x, g[i]);
        of_B[i] = g[i] * du;
        of_C[i] = out.x * h[t + 1][i];
        sums[2] = fmaf(C[i], h[t + 1][i], sums[2]);
        sums[0] = fmaf(g[i], B[i], sums[0]);
        g[i] *= decay[t][i];
        const float carried = g[i] * h[t][i];
        sums[1] = fmaf(carried, rate[i], sums[1]);
        dA[i] = fmaf(out.y, carried, dA[i]);
      }
      if constexpr (R == 4) {
        // Four tokens at a time: lane `part` ends up with the sums of token t + part.
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if (t % 2 != 0) {
            held[k] = sums[k];
          } else {
            const float sent = odd ? sums[k] : held[k], kept = odd ? held[k] : sums[k];
            two[t / 2 % 2][k] = kept + __shfl_xor_sync(kAllLanes, sent, kChannels);
          }
          if (t % 4 == 0) {
            const float sent = upper ? two[0][k] : two[1][k], kept = upper ? two[1][k] : two[0][k];
            sums[k] = kept + __shfl_xor_sync(kAllLanes, sent, 2 * kChannels);
          }
        }
        if (t % 4 == 0) {
          steps[(t + part) * kChannels] = make_float2(sums[0], sums[1]);
          ys[(t + part) * kChannels] = sums[2];
        }
      } else {
#pragma unroll
        for (int k = 0; k < 3; ++k) sums[k] = channel_sum<R>(sums[k]);
        if (part == 0) {
          steps[t * kChannels] = make_float2(sums[0], sums[1]);
          ys[t * kChannels] = sums[2];
        }
      }
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
        float* to = m.sums[half] + warp * Memory::kSlot + kStates * part * kSteps + t;
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          to[i * kSteps] = of_B[i];
          to[(kN + i) * kSteps] = of_C[i];
        }
      }
    }
    if constexpr (!constant && kChannels >= 4) {
      constexpr int kGroups = Memory::kGroups;
      const int q = lane % 4, slot = warp * kGroups + lane / 4 % kGroups;
      float* to = m.sums[half] + slot * Memory::kSlot + kStates * part * kSteps + 2 * q;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          const float* two = columns[k][i / 2] + i % 2 * 2;
          *reinterpret_cast<float2*>(to + (k * kN + i) * kSteps) = make_float2(two[0], two[1]);
        }
      }
    }
  }

  // Adds the sums of the block's warps and stores them.
  __device__ __forceinline__ void add_slots(int64_t t0, int count) const {
    const int64_t width = a.groups * 2 * kN;
    float* to = a.partial_bc + ((m.place.block * in().B + m.place.b) * in().L + t0) * width +
                m.place.group * 2 * kN;
#pragma unroll 1
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll 1
      for (int o = threadIdx.x; o < 2 * kN * kSteps; o += kThreads) {
        const int t = half * kSteps + o % kSteps;
        if (t >= count) continue;
        float sums[4] = {};
#pragma unroll
        for (int slot = 0; slot < Memory::kSlots; ++slot) {
          sums[slot % 4] += m.sums[half][slot * Memory::kSlot + o];
        }
        to[t * width + o / kSteps] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      }
    }
  }
};

}  // namespace mamba::cuda
