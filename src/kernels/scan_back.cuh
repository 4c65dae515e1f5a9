// SPDX-License-Identifier: Apache-2.0
// The blocks of scan's CUDA backward pass: tiles of tokens are taken from the last to the first;
// states and decays are computed again from the checkpoints, 8 tokens at a time into registers, and
// the gradient of the state walks back through them. Sums over channels (of dB and dC) run on
// tensor cores: a product with a column of ones for the token, so that 8 tokens end up in the 8
// columns of the result; a block adds those of its warps.
#pragma once

#include "kernels/scan_back_sums.cuh"

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
  __device__ bool active() const { return warp * kChannels < m.place.width; }
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
  // The address of row t of a tensor at the block's channel c.
  template <class V = T>
  __device__ __forceinline__ V* address(int tensor, int t, int c) const {
    const auto from = m.tensors[tensor];
    V* to = reinterpret_cast<V*>(from.at + static_cast<uint32_t>(t) * from.row) + c;
    __builtin_assume(__isGlobal(to));
    return to;
  }
  // The first threads find where tensors begin in the tile at t0.
  __device__ void place_tensors(int64_t t0) const {
    const int i = threadIdx.x;
    if (i >= Memory::kTensors) return;
    const int64_t row = m.place.b * in().L + t0, size = sizeof(T);
    const auto set = [&](const T* data, int64_t stride, int64_t first) {
      T* at = const_cast<T*>(data);
      m.tensors[i] = {reinterpret_cast<char*>(at == nullptr ? at : at + row * stride + first),
                      at == nullptr ? 0 : stride * size};
    };
    const int64_t c = m.place.first_channel, n = m.place.group * kN;
    if (i == Memory::kU) set(in().u.data, in().u.stride, c);
    if (i == Memory::kZ) set(in().z.data, in().z.stride, c);
    if (i == Memory::kDelta) set(in().delta.data, in().delta.stride, c);
    if (i == Memory::kDy) set(a.walk.dy.data, a.walk.dy.stride, c);
    if (i == Memory::kB) set(in().Bm.data, in().Bm.stride, n);
    if (i == Memory::kC) set(in().Cm.data, in().Cm.stride, n);
    if (i == Memory::kDu) set(a.du, a.du_stride, c);
    if (i == Memory::kDdelta) set(a.ddelta, a.ddelta_stride, c);
    if (i == Memory::kDz) set(a.dz, a.dz_stride, c);
    if (i == Memory::kStatesBefore) {
      const int64_t tile = m.place.b * a.tiles + t0 / kSteps;
      m.tensors[i] = {
          reinterpret_cast<char*>(a.walk.checkpoint_h +
                                  (tile * a.slabs + m.place.first_slab) * (kChannels * kN)),
          a.slabs * (kChannels * kN) * 4};
    }
  }
  // Moves them to the tile before; the outputs are one tile behind the inputs.
  __device__ __forceinline__ void move_tensors(bool outputs) const {
    const int i = threadIdx.x;
    if (i >= (outputs ? Memory::kTensors : Memory::kDu)) return;
    m.tensors[i].at -= m.tensors[i].row * (i == Memory::kStatesBefore ? kHalves : kTile);
  }

  // Starts the copy of the states before the tokens of a half tile: each lane its own 16 bytes.
  __device__ __forceinline__ void copy_states(int half) const {
    const float* from =
        address<float>(Memory::kStatesBefore, half, warp * (kChannels * kN) + 4 * lane);
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      copy16_async(mine.h[half] + i * kWarp + 4 * lane, from + i * kWarp);
    }
  }
  // Starts the copies of a tile of `left` tokens, but for the states.
  __device__ __forceinline__ void fetch_tile(int left, int stage) const {
    // Rows of all channels of the block: half of the threads copy u and z, half delta and dy.
    constexpr int kRow = kBlockWarps * kPieces, kHalf = kTile * kRow;
    static_assert(!copies || 2 * kHalf == kThreads);
    const int p = static_cast<int>(threadIdx.x) % kHalf, piece = p % kRow, t = p / kRow;
    const bool second = threadIdx.x >= kHalf;
    if (piece * kPer16 < m.place.width) {
      auto& s = m.warps[piece / kPieces].stages[stage];
      const int at = (t * kPieces + piece % kPieces) * kPer16;
      copy16_async((second ? s.delta : s.u) + at,
                   address(second ? Memory::kDelta : Memory::kU, t, piece * kPer16), t < left);
      const int other = second ? Memory::kDy : Memory::kZ;
      if (m.tensors[other].at != nullptr) {
        copy16_async((second ? s.dy : s.z) + at, address(other, t, piece * kPer16), t < left);
      }
    }
    // The first threads copy B, those after them C.
    constexpr int kAll = kTile * kPiecesN;
    static_assert(!copies || 2 * kAll <= kThreads);
    if (threadIdx.x < 2 * kAll) {
      const bool is_C = threadIdx.x >= kAll;
      const int q = static_cast<int>(threadIdx.x) % kAll, row = q / kPiecesN;
      copy16_async((is_C ? m.bc[stage].C : m.bc[stage].B) + q * kPer16,
                   address(is_C ? Memory::kC : Memory::kB, row, q % kPiecesN * kPer16), row < left);
    }
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
      load_words<kVec>(s.u + at, u[k]);
      load_words<kVec>(s.delta + at, d[k]);
      load_words<kVec>(s.dy + at, out[k]);
      if (has_z) load_words<kVec>(s.z + at, z[k]);
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

  // The gradients of u, delta and z of 8 tokens.
  __device__ __forceinline__ void finish(int stage, int half, const Marks& marks, int count) const {
    const auto& s = mine.stages[stage];
    const int c = lane % kAcross * kVec, row = lane / kAcross, t = half * kSteps + row;
    if (row >= kSteps || t >= count) return;
    float bias[kVec], D[kVec], dbias[kVec], dD[kVec];
    load_n<kVec>(mine.bias + c, bias);
    load_n<kVec>(mine.D + c, D);
    load_n<kVec>(mine.dbias + lane * kVec, dbias);
    load_n<kVec>(mine.dD + lane * kVec, dD);
    float u[kVec], raw[kVec], z[kVec] = {}, dy[kVec] = {}, du[kVec], dd[kVec], dz[kVec] = {};
    float of_B[kVec] = {}, of_A[kVec] = {}, of_C[kVec] = {};
    const bool has_z = m.tensors[Memory::kDz].at != nullptr;
    load_words<kVec>(s.u + t * kChannels + c, u);
    load_words<kVec>(s.delta + t * kChannels + c, raw);
    if (has_z) {
      load_words<kVec>(s.z + t * kChannels + c, z);
      load_words<kVec>(s.dy + t * kChannels + c, dy);
    }
    using Pair = Vector<float2, kVec>;
    const Pair out = *reinterpret_cast<const Pair*>(mine.out + t * kChannels + c);
#pragma unroll
    for (int part = 0; part < Memory::kParts; ++part) {
      const int at = row * Memory::kRow + part * kChannels + c;
      const Pair pair = *reinterpret_cast<const Pair*>(mine.pairs + at);
      float y[kVec];
      load_n<kVec>(mine.y + at, y);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        of_B[i] += pair.at[i].x, of_A[i] += pair.at[i].y, of_C[i] += y[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      raw[i] = __fadd_rn(raw[i], bias[i]);
      dd[i] = fmaf(of_B[i], u[i], of_A[i] * 0.69314718f);
      du[i] = fmaf(out.at[i].y, of_B[i], D[i] * out.at[i].x);
    }
    if (in().softplus) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const float slope = sigmoid_of<T>(raw[i]);
        dd[i] *= raw[i] <= 20.0f ? slope : 1.0f;
      }
    }
    if (has_z) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const float gate = sigmoid_of<T>(z[i]);
        dz[i] = dy[i] * fmaf(D[i], u[i], of_C[i]) * gate * fmaf(z[i], 1.0f - gate, 1.0f);
      }
    }
    if (marks.padding >> t & 1) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) dd[i] = du[i] = dz[i] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) dbias[i] += dd[i], dD[i] = fmaf(out.at[i].x, u[i], dD[i]);
    }
    const int at = warp * kChannels + c;
    if constexpr (copies) {
      store_pair(address(Memory::kDu, t, at), du);
      store_pair(address(Memory::kDdelta, t, at), dd);
      if (has_z) store_pair(address(Memory::kDz, t, at), dz);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (at + i >= m.place.width) continue;
        store(address(Memory::kDu, t, at + i), du[i]);
        store(address(Memory::kDdelta, t, at + i), dd[i]);
        if (has_z) store(address(Memory::kDz, t, at + i), dz[i]);
      }
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
    const auto fetch = [&](int64_t t0, int left, int stage) {
      if constexpr (copies) {
        fetch_tile(left, stage);
      } else {
        load_tile(t0, stage);
      }
    };
    int count = static_cast<int>(m.place.end - last_tile), stage = 0;
    place_tensors(last_tile);
    __syncthreads();
    fetch(last_tile, count, 0);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      if (active() && half * kSteps < count) {
        copy_states(half);
      } else {
#pragma unroll
        for (int i = 0; i < kStates; ++i) mine.h[half][i * kWarp + lane] = 0;
      }
    }
    __syncthreads();
    move_tensors(false);
    int window = window_at(last_tile);
    for (int64_t t0 = last_tile; t0 >= m.place.begin; t0 -= kTile, count = kTile) {
      const Marks marks = marks_at(t0, count, window);
      window = window_at(t0 - kTile);
      commit_copies();
      wait_copies<0>();
      __syncthreads();  // the tile is there; the sums of the last one have been read
      if constexpr (!constant) convert(stage, marks);
      prepare(stage, marks);
      const bool more = t0 > m.place.begin;
      if (more) fetch(t0 - kTile, kTile, stage ^ 1);
      __syncthreads();
#pragma unroll 1
      for (int half = kHalves - 1; half >= 0; --half) {
        if (half * kSteps >= count) {
          if (more && active()) copy_states(half);
          continue;
        }
        walk_back(more, half, t0 + half * kSteps, rate, B, C, g, dA, dB, dC);
        __syncwarp();
        if (active()) finish(stage, half, marks, count);
        __syncwarp();
      }
      stage ^= 1;
      __syncthreads();
      move_tensors(true);
      if constexpr (!constant) add_slots(t0, count);
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
#pragma unroll
    for (int k = 0; k < kTile * kN; k += kThreads) {
      const int p = k + static_cast<int>(threadIdx.x);
      if (kTile * kN % kThreads != 0 && p >= kTile * kN) break;
      const bool padding = marks.padding >> (p / kN) & 1;
      const float B = load(m.bc[stage].B + p), C = load(m.bc[stage].C + p);
      m.B[p] = padding ? 0.0f : B;
      m.C[p] = padding ? 0.0f : C;
    }
  }

  // The states of 8 tokens from t0 again, and the walk back through them.
  __device__ __forceinline__ void walk_back(bool more, int half, int64_t t0,
                                            const float (&rate)[kStates], float (&B)[kStates],
                                            float (&C)[kStates], float (&g)[kStates],
                                            float (&dA)[kStates],
                                            float (&dB)[constant ? kStates : 1],
                                            float (&dC)[constant ? kStates : 1]) const {
    const int c = lane % kChannels, part = lane / kChannels;
    const float2* steps = mine.step + half * kSteps * kChannels + c;
    const float2* outs = mine.out + half * kSteps * kChannels + c;
    const float* rows_B = m.B + half * kSteps * kN + kStates * part;
    const float* rows_C = m.C + half * kSteps * kN + kStates * part;
    float h[kSteps + 1][kStates], decay[kSteps][kStates];
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      float four[4];
      load_n<4>(mine.h[half] + i * kWarp + 4 * lane, four);
#pragma unroll
      for (int k = 0; k < 4; ++k) h[0][i + k] = four[k];
    }
    if (more && active()) copy_states(half);  // of the next tile
    if (a.walk.segments > 1 && active()) {    // the checkpoint is of the segment alone
      asm volatile("");                       // a branch: its addresses are not for the others
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
    [[maybe_unused]] ChannelSums<T, R> channels{};
#pragma unroll
    for (int t = kSteps - 1; t >= 0; --t) {
      const float2 out = outs[t * kChannels];
      const float du = steps[t * kChannels].y;
      if constexpr (!constant) {
        load_n<kStates>(rows_B + t * kN, B);
        load_n<kStates>(rows_C + t * kN, C);
      }
      float full[kStates], of_B = 0, of_A = 0, of_C = 0;
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        full[i] = fmaf(C[i], out.x, g[i]);
        of_C = fmaf(C[i], h[t + 1][i], of_C);
        of_B = fmaf(full[i], B[i], of_B);
        g[i] = full[i] * decay[t][i];
        const float carried = g[i] * h[t][i];
        of_A = fmaf(carried, rate[i], of_A);
        dA[i] = fmaf(out.y, carried, dA[i]);
      }
      if constexpr (R != 4) {
        of_B = channel_sum<R>(of_B), of_A = channel_sum<R>(of_A), of_C = channel_sum<R>(of_C);
      }
      if (R == 4 || part == 0) {
        const int at = t * Memory::kRow + (R == 4 ? lane : c);
        mine.pairs[at] = make_float2(of_B, of_A);
        mine.y[at] = of_C;
      }
      if constexpr (constant) {
#pragma unroll
        for (int i = 0; i < kStates; ++i) dB[i] += full[i] * du, dC[i] += out.x * h[t + 1][i];
      } else {
        channels.add(m.sums[half], warp, lane, t, full, du, h[t + 1], out.x);
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
        const int t = half * kSteps + ChannelSums<T, R>::token_of(o);
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
