// SPDX-License-Identifier: Apache-2.0
// The walk of scan's CUDA kernels: a warp goes through the tokens alone for its channels, with
// states in registers and a ring of tiles that arrive behind the computation; what a token needs of
// a channel alone (softplus, gate) is done a tile at a time, a lane an element. Too few channels
// for the card: time is cut into segments, a first walk finds their last states, and the second
// starts from those.
#pragma once

#include "kernels/cluster.cuh"
#include "kernels/scan_segments.cuh"

namespace mamba::cuda {

constexpr int kWarps = 4;       // of a block; they share nothing
constexpr int kCheckpoint = 8;  // tokens between states that are kept for the backward pass

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
  // kCheckpoints: the state before every 8th token of a segment (alone, if there are several; then
  // with the sum of step sizes up to there), and the gradient that the segment alone passes back.
  float *checkpoint_h, *checkpoint_d, *segment_g;
  Rows<T> dy;
  int64_t slabs;
};

// What a walk is for.
enum class Task {
  kOutput,
  kLastStates,   // of segments
  kCheckpoints,  // for the backward pass
  kCheckpointsOfSegments,
};

// Shared memory of a warp.
template <class T, int R, bool copies, Task task>
struct alignas(16) WarpMemory {
  static constexpr int kChannels = Lanes<R>::kChannels, kN = Lanes<R>::kN;
  static constexpr int kStages = copies ? 3 : 1;
  struct alignas(16) Stage {
    T u[kTile * kChannels], delta[kTile * kChannels], z[kTile * kChannels];
    T dy[task == Task::kCheckpointsOfSegments ? kTile * kChannels : 8];
    T B[copies ? kTile * kN : 8], C[copies ? kTile * kN : 8];
  };
  Stage stages[kStages];
  alignas(16) float2 step[kTile * kChannels];  // (d, d u)
  alignas(16) float B[copies ? kTile * kN : 4], C[copies ? kTile * kN : 4];
  float y[kTile * kChannels];  // or the gradient of the ungated y
};

template <class T, int R, bool copies, Task task>
struct Walker {
  using Memory = WarpMemory<T, R, copies, task>;
  using Stage = typename Memory::Stage;
  static constexpr bool kOutput = task == Task::kOutput;
  static constexpr bool kGradient = task == Task::kCheckpointsOfSegments;
  static constexpr bool kSums = task == Task::kLastStates || kGradient;  // of step sizes
  static constexpr bool kCheckpoints = task == Task::kCheckpoints || kGradient;
  static constexpr bool kNeedsC = kOutput || kGradient;
  static constexpr int kChannels = Lanes<R>::kChannels;
  [[maybe_unused]] static constexpr int kN = Lanes<R>::kN;
  static constexpr int kStates = Lanes<R>::kStates;
  // Elements that a lane prepares together.
  static constexpr int kVec = R < 4 ? 4 : R == 4 ? 2 : 1;
  static constexpr int kAcross = kChannels / kVec;  // lanes along the channels there
  static constexpr int kDown = kWarp / kAcross;     // tokens that the warp prepares together

  const Walk<T>& w;
  Memory& m;
  int lane;
  int64_t b, slab, first_channel, limit, begin, end;  // channels up to limit, tokens [begin, end)

  // Where this lane's pieces of 16 bytes of the next tile are.
  static constexpr int kPer16 = 16 / sizeof(T);
  static constexpr int kPieces = (kChannels + kPer16 - 1) / kPer16, kPiecesN = kN / kPer16;
  struct Feed {
    const T *u, *delta, *z, *dy, *B, *C;
    int left;  // tokens from this lane's first token of the tile to the end, at most 2^30
  };
  __device__ Feed first_feed() const {
    const int64_t t = begin + lane / kPieces, row = b * w.in.L + t;
    const int64_t c = first_channel + lane % kPieces * kPer16;
    const int64_t row_n = b * w.in.L + begin + lane / kPiecesN;
    const int64_t n = first_channel / w.in.group * kN + lane % kPiecesN * kPer16;
    const int64_t left = end - begin;
    return {w.in.u.data + row * w.in.u.stride + c,
            w.in.delta.data + row * w.in.delta.stride + c,
            w.in.z.data == nullptr ? nullptr : w.in.z.data + row * w.in.z.stride + c,
            kGradient ? w.dy.data + row * w.dy.stride + c : nullptr,
            w.in.Bm.data + row_n * w.in.Bm.stride + n,
            w.in.Cm.data + row_n * w.in.Cm.stride + n,
            static_cast<int>(left < (1 << 30) ? left : 1 << 30)};
  }
  template <int pieces>
  __device__ __forceinline__ void copy_rows(const T*& from, int64_t stride, int left, T* to) const {
#pragma unroll
    for (int p = 0; p < kTile * pieces; p += kWarp) {
      constexpr int kDownRows = kWarp / pieces;
      if (kTile * pieces < kWarp && lane >= kTile * pieces) break;
      copy16_async(to + (p + lane) * kPer16, from + p / pieces * stride,
                   lane / pieces + p / kWarp * kDownRows < left);
    }
    from += kTile * stride;
  }
  // Starts the copies of the next tile.
  __device__ __forceinline__ void fetch_next(Feed& feed, Stage& s) const {
    if (feed.left > 0) {
      copy_rows<kPieces>(feed.u, w.in.u.stride, feed.left, s.u);
      copy_rows<kPieces>(feed.delta, w.in.delta.stride, feed.left, s.delta);
      copy_rows<kPiecesN>(feed.B, w.in.Bm.stride, feed.left, s.B);
      if constexpr (kNeedsC) {
        copy_rows<kPiecesN>(feed.C, w.in.Cm.stride, feed.left, s.C);
        if (feed.z != nullptr) copy_rows<kPieces>(feed.z, w.in.z.stride, feed.left, s.z);
      }
      if constexpr (kGradient) copy_rows<kPieces>(feed.dy, w.dy.stride, feed.left, s.dy);
      feed.left -= kTile;
    }
    commit_copies();
  }
  // A tile without copies by 16 bytes.
  __device__ void load_tile(int64_t t0, Stage& s) const {
    const int64_t row = b * w.in.L + t0, left = end - t0;
    const auto rows = [&](const Rows<T>& from, T* to) {
      for (int p = lane; p < kTile * kChannels; p += kWarp) {
        const int t = p / kChannels, c = p % kChannels;
        const bool valid = t < left && first_channel + c < limit;
        to[p] = valid ? from.data[(row + t) * from.stride + first_channel + c] : T{};
      }
    };
    rows(w.in.u, s.u);
    rows(w.in.delta, s.delta);
    if (kNeedsC && w.in.z.data != nullptr) rows(w.in.z, s.z);
    if constexpr (kGradient) rows(w.dy, s.dy);
  }

  static constexpr int kRows = kTile > kDown ? kTile / kDown : 1;  // tokens that a lane prepares
  __device__ __forceinline__ int row(int k) const { return lane / kAcross + k * kDown; }
  static __device__ __forceinline__ bool in_tile(int t) { return kDown <= kTile || t < kTile; }

  // Step sizes of a tile; B and C as f32. All is loaded before anything is stored, and what is the
  // same for all is asked once, so that the chains of instructions run side by side.
  __device__ __forceinline__ void prepare(const Stage& s, const Marks& marks,
                                          const float (&bias)[kVec]) const {
    const int c = lane % kAcross * kVec;
    float u[kRows][kVec], d[kRows][kVec], gate[kGradient ? kRows : 1][kVec];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (!in_tile(row(k))) continue;
      load_words<kVec>(s.u + row(k) * kChannels + c, u[k]);
      load_words<kVec>(s.delta + row(k) * kChannels + c, d[k]);
#pragma unroll
      for (int i = 0; i < kVec; ++i) d[k][i] = __fadd_rn(d[k][i], bias[i]);
    }
    if (w.in.softplus) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) d[k][i] = softplus<T>(d[k][i]);
      }
    }
    if constexpr (kGradient) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        if (in_tile(row(k))) load_words<kVec>(s.dy + row(k) * kChannels + c, gate[k]);
      }
      if (w.in.z.data != nullptr) {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          float z[kVec] = {};
          if (in_tile(row(k))) load_words<kVec>(s.z + row(k) * kChannels + c, z);
#pragma unroll
          for (int i = 0; i < kVec; ++i) gate[k][i] *= z[i] * sigmoid_of<T>(z[i]);
        }
      }
    }
    const bool plain = (marks.padding | marks.reset) == 0;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int t = row(k);
      if (!in_tile(t)) continue;
      float du[kVec];
#pragma unroll
      for (int i = 0; i < kVec; ++i) du[i] = __fmul_rn(d[k][i], u[k][i]);
      if (!plain) {
        asm volatile("");  // a branch: it is rare
        const bool padding = marks.padding >> t & 1, reset = marks.reset >> t & 1;
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          du[i] = padding ? 0.0f : du[i];
          d[k][i] = padding ? 0.0f : reset ? __int_as_float(0x7f800000) : d[k][i];
          if constexpr (kGradient) gate[k][i] = padding ? 0.0f : gate[k][i];
        }
      }
      if constexpr (kVec > 1) {
#pragma unroll
        for (int i = 0; i < kVec; i += 2) {
          *reinterpret_cast<float4*>(m.step + t * kChannels + c + i) =
              make_float4(d[k][i], du[i], d[k][i + 1], du[i + 1]);
        }
      } else {
        m.step[t * kChannels + c] = make_float2(d[k][0], du[0]);
      }
      if constexpr (kGradient) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) m.y[t * kChannels + c + i] = gate[k][i];
      }
    }
    if constexpr (copies) {
      constexpr int kFours = kTile * kN / 4 / kWarp, kWhat = kNeedsC ? 2 : 1;
      float v[kWhat * kFours][4];
#pragma unroll
      for (int k = 0; k < kWhat * kFours; ++k) {
        load_words<4>((k < kFours ? s.B : s.C) + 4 * (lane + k % kFours * kWarp), v[k]);
      }
      if (marks.padding != 0) {
        asm volatile("");
#pragma unroll
        for (int k = 0; k < kWhat * kFours; ++k) {
          if (marks.padding >> (4 * (lane + k % kFours * kWarp) / kN) & 1) {
            v[k][0] = v[k][1] = v[k][2] = v[k][3] = 0;
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kWhat * kFours; ++k) {
        store_n<4>((k < kFours ? m.B : m.C) + 4 * (lane + k % kFours * kWarp), v[k]);
      }
    }
  }

  // `to` is where this lane's first channel of the tile's first token goes.
  __device__ __forceinline__ void finish(const Stage& s, const Marks& marks, int count, T* to,
                                         const float (&D)[kVec]) const {
    const int c = lane % kAcross * kVec;
    const bool has_z = w.in.z.data != nullptr;
    float y[kRows][kVec], u[kRows][kVec], z[kRows][kVec];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (!in_tile(row(k))) continue;
      load_n<kVec>(m.y + row(k) * kChannels + c, y[k]);
      load_words<kVec>(s.u + row(k) * kChannels + c, u[k]);
      if (has_z) load_words<kVec>(s.z + row(k) * kChannels + c, z[k]);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) y[k][i] = fmaf(D[i], u[k][i], y[k][i]);
    }
    if (has_z) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) y[k][i] = gate<T>(y[k][i], z[k][i]);
      }
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int t = row(k);
      if (t >= count) continue;
      if (marks.padding >> t & 1) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) y[k][i] = 0;
      }
      if constexpr (copies && kVec == 4 && sizeof(T) == 2) {
        *reinterpret_cast<uint2*>(to) =
            make_uint2(pack2<T>(y[k][0], y[k][1]), pack2<T>(y[k][2], y[k][3]));
      } else if constexpr (copies) {
#pragma unroll
        for (int i = 0; i < kVec; i += 2) {
          const float two[2] = {y[k][i], y[k][i + 1]};
          store_pair(to + i, two);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          if (first_channel + c + i < limit) store(to + i, y[k][i]);
        }
      }
      to += kDown * w.y_stride;
    }
  }

  // States from `first` of a token's B or C without shared memory.
  __device__ void load_states(const Rows<T>& from, int64_t row, int64_t channel, int64_t first,
                              bool valid, float (&v)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      v[i] = valid && first + i < w.in.N ? w.in.bc(from, row, channel, first + i) : 0.0f;
    }
  }

  __device__ void run(int64_t segment) const {
    const int64_t E = w.in.E, N = w.in.N;
    const int c = lane % kChannels, part = lane / kChannels;
    const int64_t channel = first_channel + c < limit ? first_channel + c : limit - 1;
    float h[kStates], rate[kStates], bias[kVec], D[kVec], sum_d = 0;
    float product[kGradient ? kStates : 1], g[kGradient ? kStates : 1];  // of decays; see segment_g
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = kStates * part + i;
      rate[i] = n < N ? decay_rate(w.in.A_t[n * E + channel]) : -1.0f;
      if constexpr (kGradient) product[i] = 1, g[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const int64_t at = first_channel + lane % kAcross * kVec + i;
      bias[i] = w.in.delta_bias != nullptr && at < limit ? w.in.delta_bias[at] : 0.0f;
      D[i] = w.in.D != nullptr && at < limit ? w.in.D[at] : 0.0f;
    }
    wait_for_previous();
    Feed feed{};
    if constexpr (copies) {
      feed = first_feed();
      for (int i = 0; i + 1 < Memory::kStages; ++i) fetch_next(feed, m.stages[i]);
    }
    float* segment_h = w.segment_h + (b * w.segments + segment) * N * E + channel;
    const float* from = w.segments > 1 ? segment_h : w.h0 + b * w.h_stride + channel;
    const bool has_state = kOutput ? w.segments > 1 || w.h0 != nullptr : !kSums && w.h0 != nullptr;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = kStates * part + i;
      h[i] = has_state && n < N ? from[n * E] : 0.0f;
    }
    const int32_t* ids = w.in.ids == nullptr ? nullptr : w.in.ids + b * w.in.L;
    int last_id = last_id_before(ids, begin);
    T* to_y = nullptr;
    if constexpr (kOutput) {
      to_y = w.y + (b * w.in.L + begin + lane / kAcross) * w.y_stride + first_channel +
             lane % kAcross * kVec;
    }
    int stage = 0;
    for (int64_t t0 = begin; t0 < end; t0 += kTile) {
      Stage& s = m.stages[stage];
      if constexpr (copies) {
        wait_copies<Memory::kStages - 2>();
      } else {
        load_tile(t0, s);
      }
      const int count = static_cast<int>(end - t0 < kTile ? end - t0 : kTile);
      const Marks marks = marks_of(ids == nullptr ? nullptr : ids, t0, count, last_id);
      __syncwarp();
      prepare(s, marks, bias);
      if constexpr (copies) {
        const int next = stage == 0 ? Memory::kStages - 1 : stage - 1;
        fetch_next(feed, m.stages[next]);
        stage = stage + 1 == Memory::kStages ? 0 : stage + 1;
      }
      __syncwarp();
      // Of the tokens that come next, ahead of the recurrence: their exponentials and products then
      // run beside that of those at hand.
      constexpr bool kLookAhead = copies && !kGradient && !(kSums && kCheckpoints);
      constexpr int kAhead = kLookAhead ? (R == 2 ? 2 : 4) : 4;
      [[maybe_unused]] float decay[kLookAhead ? kAhead : 1][kStates],
          input[kLookAhead ? kAhead : 1][kStates];
      const auto look_ahead = [&](int t) {
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          const float2 step = m.step[(t + k) * kChannels + c];
          float B[kStates];
          load_n<kStates>(m.B + (t + k) * kN + kStates * part, B);
          if constexpr (kSums) sum_d += step.x;
#pragma unroll
          for (int i = 0; i < kStates; ++i) {
            decay[k][i] = exp2_approx(__fmul_rn(step.x, rate[i]));
            input[k][i] = __fmul_rn(step.y, B[i]);
          }
        }
      };
      if constexpr (kLookAhead) look_ahead(0);
#pragma unroll(kLookAhead ? 4 : 2)
      for (int t = 0; t < kTile; t += 4) {
        if (kCheckpoints && t % kCheckpoint == 0 && t < count) save(t0 + t, h, sum_d, channel);
        [[maybe_unused]] float out[4];
        [[maybe_unused]] float now[kLookAhead ? kAhead : 1][kStates],
            in_now[kLookAhead ? kAhead : 1][kStates];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if constexpr (kLookAhead) {
            if (k % kAhead == 0) {
#pragma unroll
              for (int j = 0; j < kAhead; ++j) {
#pragma unroll
                for (int i = 0; i < kStates; ++i) {
                  now[j][i] = decay[j][i], in_now[j][i] = input[j][i];
                }
              }
              if (t + k + kAhead < kTile) look_ahead(t + k + kAhead);
            }
#pragma unroll
            for (int i = 0; i < kStates; ++i) {
              h[i] = fmaf(now[k % kAhead][i], h[i], in_now[k % kAhead][i]);
            }
            if constexpr (kOutput) {
              float C[kStates];
              load_n<kStates>(m.C + (t + k) * kN + kStates * part, C);
              out[k] = part_output<R>(h, C);
            }
            continue;
          }
          const float2 step = m.step[(t + k) * kChannels + c];
          float B[kStates], C[kStates];
          if constexpr (copies) {
            load_n<kStates>(m.B + (t + k) * kN + kStates * part, B);
            if constexpr (kNeedsC) load_n<kStates>(m.C + (t + k) * kN + kStates * part, C);
          } else {
            const bool valid = !(marks.padding >> (t + k) & 1);
            const int64_t row = b * w.in.L + t0 + (valid ? t + k : 0);
            load_states(w.in.Bm, row, channel, kStates * part, valid, B);
            if (kNeedsC) {
              load_states(w.in.Cm, row, channel, kStates * part, valid, C);
            }
          }
          if constexpr (kSums) sum_d += step.x;
          if constexpr (kGradient) {
            const float dy = m.y[(t + k) * kChannels + c];
#pragma unroll
            for (int i = 0; i < kStates; ++i) {
              const float a = exp2_approx(step.x * rate[i]);
              h[i] = fmaf(a, h[i], step.y * B[i]);
              product[i] *= a;
              g[i] = fmaf(product[i], dy * C[i], g[i]);
            }
          } else {
            advance(h, rate, step.x, step.y, B);
          }
          if constexpr (kOutput) out[k] = part_output<R>(h, C);
        }
        if constexpr (kOutput && R == 4) {
          // Four sums over four lanes: lane `part` ends up with token t + part.
          const bool odd = part & 1, upper = part & 2;
          float two[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float sent = odd ? out[2 * i] : out[2 * i + 1];
            const float kept = odd ? out[2 * i + 1] : out[2 * i];
            two[i] = __fadd_rn(kept, __shfl_xor_sync(kAllLanes, sent, kChannels));
          }
          const float received = __shfl_xor_sync(kAllLanes, upper ? two[0] : two[1], 2 * kChannels);
          m.y[(t + part) * kChannels + c] = __fadd_rn(upper ? two[1] : two[0], received);
        } else if constexpr (kOutput && R == 2) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {  // two sums over two lanes
            const float sent = part != 0 ? out[2 * i] : out[2 * i + 1];
            const float kept = part != 0 ? out[2 * i + 1] : out[2 * i];
            m.y[(t + 2 * i + part) * kChannels + c] =
                __fadd_rn(kept, __shfl_xor_sync(kAllLanes, sent, kChannels));
          }
        } else if constexpr (kOutput && R == 1) {
#pragma unroll
          for (int k = 0; k < 4; ++k) m.y[(t + k) * kChannels + c] = out[k];
        } else if constexpr (kOutput) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float sum = channel_sum<R>(out[k]);
            if (part == 0) m.y[(t + k) * kChannels + c] = sum;
          }
        }
      }
      __syncwarp();
      if constexpr (kOutput) {
        finish(s, marks, count, to_y, D);
        to_y += kTile * w.y_stride;
      }
      if constexpr (!copies) __syncwarp();
    }
    if (first_channel + c >= limit) return;
    if constexpr (kSums) {
      if (part == 0) w.segment_d[(b * w.segments + segment) * E + channel] = sum_d;
    }
    float* to = kSums                                          ? segment_h
                : segment + 1 == w.segments && w.hT != nullptr ? w.hT + b * w.h_stride + channel
                                                               : nullptr;
    float* to_g = kGradient ? w.segment_g + (b * w.segments + segment) * N * E + channel : nullptr;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t n = kStates * part + i;
      if (n >= N) continue;
      if (to != nullptr) to[n * E] = h[i];
      if constexpr (kGradient) to_g[n * E] = g[i];
    }
  }

  __device__ __forceinline__ void save(int64_t t, const float (&h)[kStates], float sum_d,
                                       int64_t channel) const {
    const int64_t tile = b * w.in.tiles() + t / kCheckpoint;
    if constexpr (R < 4) {  // as four lanes of a channel would, for scan_back.cuh
      constexpr int kFour = Lanes<4>::kChannels;
      const int c = lane % kChannels, part = lane / kChannels;
      const int64_t slabs = w.slabs * (4 / R);
      float* to = w.checkpoint_h +
                  (tile * slabs + slab * (4 / R) + c / kFour) * (kWarp * Lanes<4>::kStates) +
                  4 * (part * kStates / 4 * kFour + c % kFour);
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        *reinterpret_cast<float4*>(to + i * kFour) =
            make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]);
      }
    } else {
      float* to = w.checkpoint_h + (tile * w.slabs + slab) * (kWarp * kStates) + 4 * lane;
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        *reinterpret_cast<float4*>(to + i * kWarp) =
            make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]);
      }
    }
    if (kSums && lane < kChannels && first_channel + lane < limit) {
      w.checkpoint_d[tile * w.in.E + channel] = sum_d;
    }
  }
};

template <class T, int R, bool copies, Task task>
__global__ void __launch_bounds__(kWarps* kWarp, R == 2 ? 4 : 0)
    walk_kernel(const __grid_constant__ Walk<T> w) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kChannels = Lanes<R>::kChannels;
  const int64_t slabs = w.slabs;
  // From a lane: the compiler then knows that it, and with it every loop, is the same for all
  // lanes.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
  int64_t job = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (job >= slabs * w.segments * w.in.B) return;
  const int64_t slab = job % slabs;
  job /= slabs;
  const int64_t segment = job % w.segments, b = job / w.segments;
  // Nothing starts from the state after the last segment.
  if (task == Task::kLastStates && segment + 1 == w.segments) return;
  const int64_t begin = segment * w.per_segment;
  const int64_t end = begin + w.per_segment < w.in.L ? begin + w.per_segment : w.in.L;
  auto& memory = reinterpret_cast<WarpMemory<T, R, copies, task>*>(shared)[warp];
  const int64_t first = w.in.first_channel(slab, kChannels);
  const Walker<T, R, copies, task> walker{
      w,     memory, static_cast<int>(threadIdx.x % kWarp), b, slab, first, w.in.limit(first),
      begin, end};
  walker.run(segment);
}

template <class T, int R, bool copies, Task task>
void launch_walk(Stream& stream, const char* name, Walk<T> w) {
  w.slabs = w.in.slabs(Lanes<R>::kChannels);
  const int64_t jobs = w.slabs * w.segments * w.in.B;
  launch_clusters(stream, name, walk_kernel<T, R, copies, task>,
                  dim3(static_cast<unsigned>(ceil_div(jobs, kWarps))), dim3(kWarps * kWarp),
                  kWarps * sizeof(WarpMemory<T, R, copies, task>), 1, w);
}

template <class T>
void cut(Walk<T>& w, int64_t wanted) {
  w.per_segment = ceil_div(ceil_div(w.in.L, wanted), kTile) * kTile;
  w.segments = w.in.L == 0 ? 1 : ceil_div(w.in.L, w.per_segment);
}

// Calls body.operator()<R>() for N states.
template <class Body>
void with_lanes(Stream& stream, const char* name, int64_t N, Body&& body) {
  switch (lanes_of(N)) {
    case 4:
      return body.template operator()<4>();
    case 8:
      return body.template operator()<8>();
    case 32:
      return body.template operator()<32>();
    default:
      expect_success(stream, name, cudaErrorNotSupported);
  }
}

}  // namespace mamba::cuda
