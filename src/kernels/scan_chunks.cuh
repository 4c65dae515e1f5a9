// SPDX-License-Identifier: Apache-2.0
// The scan of few channels: a block takes its channels through all of time, 512 tokens at once. A
// thread has 16 tokens of a channel and goes through the states one after the other: what its
// tokens do to a state alone, then a scan over the threads of the channel, then its tokens once
// more from their first state, with the decays still in registers. So every decay is found once,
// where segments of a walk find it twice. Without documents.
#pragma once

#include "kernels/cluster.cuh"
#include "kernels/scan_cuda.cuh"

namespace mamba::cuda::chunks {

constexpr int kN = 16;         // states
constexpr int kTimeWarps = 4;  // of the same channels, a group
constexpr int kThreadsOfGroup = kTimeWarps * kWarp;
constexpr int kChunk = 512;

// How a block lies on channels and tokens: kGroups groups of kAcross channels, threads of kSpan
// tokens, which take kTogether states side by side.
template <int groups, int across, int together>
struct Shape {
  static constexpr int kGroups = groups, kAcross = across, kTogether = together;
  static constexpr int kAlong = kWarp / kAcross;      // lanes along time
  static constexpr int kSlots = kTimeWarps * kAlong;  // threads of a channel
  static constexpr int kSpan = kChunk / kSlots;
  static constexpr int kChannels = kGroups * kAcross, kThreads = kGroups * kThreadsOfGroup;
};

template <class T>
struct Scan {
  ScanInput<T> in;
  const float* h0;
  float* hT;
  int64_t h_stride;
  T* y;
  int64_t y_stride;
};

template <class T, class S>
struct alignas(16) Memory {
  static constexpr int kSpan = S::kSpan, kSlots = S::kSlots, kChannels = S::kChannels;
  static constexpr int kPer16 = 16 / sizeof(T);
  // Bytes that are copied at once; those of a token; those of a thread's tokens, apart so that the
  // threads of a warp have banks of their own.
  static constexpr int kPiece = kChannels * sizeof(T) % 16 == 0 ? 16 : 8;
  static constexpr int kRow = kChannels * sizeof(T), kRows = kSpan * kRow + kPiece;
  // B and C by state: a thread's tokens and a state's are apart for the same reason.
  static constexpr int kPitch = kSpan + 4, kState = kSlots * kPitch + 8;
  alignas(16) float B[kN][kState], C[kN][kState];  // one behind the other
  alignas(16) T raw[2][kChunk * kN];               // the halves of rows 4 ... 7 of 8 are swapped
  alignas(16) unsigned char tile[2][3][kSlots * kRows];  // u, delta and z
  float4 totals[S::kGroups][2][kTimeWarps][S::kAcross];  // decay and state of up to two states
  float carry[S::kGroups][2][kN][S::kAcross];            // state before a chunk
  float rate[S::kGroups][kN][S::kAcross];
};

__device__ __forceinline__ void copy8_async(void* shared, const void* global, bool valid) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}
// Composes what the lane `offset` before does to a state with what this one does; nothing for the
// first lanes.
__device__ __forceinline__ void compose(float& P, float& h, int offset) {
  asm("{\n"
      ".reg .f32 a, b;\n"
      ".reg .pred p;\n"
      "shfl.sync.up.b32 b|p, %1, %2, 0, 0xffffffff;\n"
      "shfl.sync.up.b32 a, %0, %2, 0, 0xffffffff;\n"
      "@p fma.rn.f32 %1, %0, b, %1;\n"
      "@p mul.rn.f32 %0, %0, a;\n"
      "}"
      : "+f"(P), "+f"(h)
      : "r"(offset));
}
__device__ __forceinline__ void sync_group(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kThreadsOfGroup) : "memory");
}

template <class T, class S>
struct Block {
  using M = Memory<T, S>;
  static constexpr int kGroups = S::kGroups, kAcross = S::kAcross, kAlong = S::kAlong;
  static constexpr int kSlots = S::kSlots, kSpan = S::kSpan, kThreads = S::kThreads;
  static constexpr int kTogether = S::kTogether;

  const Scan<T>& w;
  M& m;
  int64_t b, first;  // channel of the block
  int group, part, lane;

  // Rows of a tensor from `column` on, kPieces copies of kBytes each, to where place(t, piece)
  // says.
  template <int kPieces, int kBytes, class Place>
  __device__ __forceinline__ void copy_rows(const Rows<T>& from, int64_t t0, int64_t column,
                                            Place&& place) const {
    constexpr int kAtOnce = kThreads / kPieces, kEach = kBytes / sizeof(T);
    static_assert(kThreads % kPieces == 0);
    const int first_t = static_cast<int>(threadIdx.x) / kPieces;
    const int p = static_cast<int>(threadIdx.x) % kPieces;
    const int left = static_cast<int>(w.in.L - t0 < kChunk ? w.in.L - t0 : kChunk);
    const T* source = from.data + (b * w.in.L + t0 + first_t) * from.stride + column + p * kEach;
    const int64_t step = kAtOnce * from.stride;
#pragma unroll
    for (int k = 0; k < (kChunk + kAtOnce - 1) / kAtOnce; ++k, source += step) {
      const int t = first_t + k * kAtOnce;
      if (kChunk % kAtOnce != 0 && t >= kChunk) break;
      unsigned char* to = place(t, p);
      if constexpr (kBytes == 16) {
        copy16_async(to, source, t < left);
      } else {
        copy8_async(to, source, t < left);
      }
    }
  }
  // Starts the copies of a chunk.
  __device__ void fetch(int64_t t0, int stage) const {
    const auto tile = [&](const Rows<T>& from, int what) {
      copy_rows<M::kRow / M::kPiece, M::kPiece>(from, t0, first, [&](int t, int p) {
        return m.tile[stage][what] + t / kSpan * M::kRows + t % kSpan * M::kRow + p * M::kPiece;
      });
    };
    tile(w.in.delta, 1);
    tile(w.in.u, 0);
    const int64_t n0 = first / w.in.group * kN;
    const auto states = [&](const Rows<T>& from, int what) {
      copy_rows<kN / M::kPer16, 16>(from, t0, n0, [&](int t, int p) {
        return reinterpret_cast<unsigned char*>(m.raw[what] + t * kN + half_of(t, p) * 8);
      });
    };
    states(w.in.Bm, 0);
    states(w.in.Cm, 1);
    if (w.in.z.data != nullptr) tile(w.in.z, 2);
    commit_copies();
  }

  // y of a chunk, which lies where u was.
  __device__ void store_rows(int64_t t0, int stage) const {
    constexpr int kPieces = M::kRow / M::kPiece, kAtOnce = kThreads / kPieces;
    using Piece = Vector<uint32_t, M::kPiece / 4>;
    const int first_t = static_cast<int>(threadIdx.x) / kPieces;
    const int p = static_cast<int>(threadIdx.x) % kPieces;
    const int left = static_cast<int>(w.in.L - t0 < kChunk ? w.in.L - t0 : kChunk);
    T* to = w.y + (b * w.in.L + t0 + first_t) * w.y_stride + first + p * (M::kPiece / sizeof(T));
#pragma unroll
    for (int k = 0; k < (kChunk + kAtOnce - 1) / kAtOnce; ++k, to += kAtOnce * w.y_stride) {
      const int t = first_t + k * kAtOnce;
      if (t >= left) break;
      *reinterpret_cast<Piece*>(to) = *reinterpret_cast<const Piece*>(
          m.tile[stage][0] + t / kSpan * M::kRows + t % kSpan * M::kRow + p * M::kPiece);
    }
  }

  static __device__ __forceinline__ int half_of(int t, int half) { return half ^ (t >> 2 & 1); }
  // B and C as f32, by state.
  __device__ void widen() const {
    const int row = lane % 8 + lane / 8 % 2 * 8, warp = static_cast<int>(threadIdx.x) / kWarp;
    uint32_t from = shared_address(m.raw[0] + row * kN + half_of(row, lane / 16) * 8);
    float* to = m.B[lane / 4] + lane % 4 * 2;
    constexpr int kTokens = 16, kNear = kSpan == kTokens ? 8 : M::kPitch;
    for (int i = warp; i < kChunk / kTokens; i += kThreads / kWarp) {
#pragma unroll
      for (int what = 0; what < 2; ++what) {
        uint32_t v[4];
        load_matrices<true>(v, from + (i * kTokens + what * kChunk) * kN * sizeof(T));
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float* at = to + i * (kTokens / kSpan) * M::kPitch + (what * kN + k / 2 * 8) * M::kState +
                      k % 2 * kNear;
          *reinterpret_cast<float2*>(at) = unpack2<T>(v[k]);
        }
      }
    }
  }

  __device__ T* own(int stage, int what) const {
    const int c = lane % kAcross, slot = part * kAlong + lane / kAcross;
    return reinterpret_cast<T*>(m.tile[stage][what] + slot * M::kRows) + group * kAcross + c;
  }

  // All states; y gains their outputs.
  __device__ __forceinline__ void through_states(const float (&d)[kSpan], const float (&du)[kSpan],
                                                 float sum, float (&y)[kSpan], int stage) const {
    const int c = lane % kAcross, along = lane / kAcross, slot = part * kAlong + along;
#pragma unroll 1
    for (int n = 0; n < kN; n += kTogether) {
      float a[kTogether][kSpan], in[kTogether][kSpan], P[kTogether], h[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const float rate = m.rate[group][n + j][c];
        const float* B = m.B[n + j] + slot * M::kPitch;
        P[j] = exp2_approx(__fmul_rn(sum, rate));
#pragma unroll
        for (int i = 0; i < kSpan; i += 4) {
          float v[4];
          load_n<4>(B + i, v);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            a[j][i + e] = exp2_approx(__fmul_rn(d[i + e], rate));
            in[j][i + e] = __fmul_rn(du[i + e], v[e]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kSpan; ++i) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          h[j] = i == 0 ? in[j][0] : fmaf(a[j][i], h[j], in[j][i]);
        }
      }
      // The threads before this one in the warp, then the warps before it.
#pragma unroll
      for (int offset = kAcross; offset < kWarp; offset *= 2) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) compose(P[j], h[j], offset);
      }
      const int buffer = n / kTogether % 2;
      if (along == kAlong - 1) {
        m.totals[group][buffer][part][c] =
            make_float4(P[0], h[0], P[kTogether - 1], h[kTogether - 1]);
      }
      float before_P[kTogether], before_h[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        before_P[j] = __shfl_up_sync(kAllLanes, P[j], kAcross);
        before_h[j] = __shfl_up_sync(kAllLanes, h[j], kAcross);
      }
      sync_group(group);
      float s[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) s[j] = m.carry[group][stage][n + j][c];
#pragma unroll
      for (int p = 0; p + 1 < kTimeWarps; ++p) {
        if (p >= part) break;
        const float4 total = m.totals[group][buffer][p][c];
        s[0] = fmaf(total.x, s[0], total.y);
        if constexpr (kTogether == 2) s[1] = fmaf(total.z, s[1], total.w);
      }
      if (part == kTimeWarps - 1 && along == kAlong - 1) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          m.carry[group][stage ^ 1][n + j][c] = fmaf(P[j], s[j], h[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        h[j] = along == 0 ? s[j] : fmaf(before_P[j], s[j], before_h[j]);
      }
#pragma unroll
      for (int i = 0; i < kSpan; i += 4) {
        float v[kTogether][4];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          load_n<4>(m.C[n + j] + slot * M::kPitch + i, v[j]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
          for (int j = 0; j < kTogether; ++j) {
            h[j] = fmaf(a[j][i + e], h[j], in[j][i + e]);
            y[i + e] = fmaf(v[j][e], h[j], y[i + e]);
          }
        }
      }
    }
  }

  __device__ void run() {
    const int64_t E = w.in.E, L = w.in.L;
    const int c = lane % kAcross, slot = part * kAlong + lane / kAcross;
    const int64_t channel = first + group * kAcross + c;
    constexpr int kAt = M::kRow / sizeof(T);  // from a token to the next
    const float bias = w.in.delta_bias != nullptr ? w.in.delta_bias[channel] : 0.0f;
    const float D = w.in.D != nullptr ? w.in.D[channel] : 0.0f;
    for (int i = threadIdx.x; i < M::kChannels * kN; i += kThreads) {
      const int at = i % M::kChannels, n = i / M::kChannels;
      m.rate[at / kAcross][n][at % kAcross] = decay_rate(w.in.A_t[n * E + first + at]);
    }
    wait_for_previous();
    fetch(0, 0);
    for (int i = threadIdx.x; i < M::kChannels * kN; i += kThreads) {
      const int at = i % M::kChannels, n = i / M::kChannels;
      m.carry[at / kAcross][0][n][at % kAcross] =
          w.h0 == nullptr ? 0.0f : w.h0[b * w.h_stride + n * E + first + at];
    }
    const bool has_z = w.in.z.data != nullptr;
    int stage = 0;
    for (int64_t t0 = 0; t0 < L; t0 += kChunk, stage ^= 1) {
      const int left = static_cast<int>(L - t0 < kChunk ? L - t0 : kChunk) - slot * kSpan;
      wait_copies<0>();
      __syncthreads();
      if (t0 > 0) store_rows(t0 - kChunk, stage ^ 1);
      widen();
      float d[kSpan], du[kSpan], y[kSpan], sum = 0;
      T* own_u = own(stage, 0);
      const T *own_delta = own(stage, 1), *own_z = own(stage, 2);
#pragma unroll
      for (int i = 0; i < kSpan; ++i) d[i] = __fadd_rn(load(own_delta + i * kAt), bias);
      if (w.in.softplus) {
#pragma unroll
        for (int i = 0; i < kSpan; ++i) d[i] = softplus<T>(d[i]);
      }
      if (left < kSpan) {
        asm volatile("");
#pragma unroll
        for (int i = 0; i < kSpan; ++i) d[i] = i < left ? d[i] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kSpan; ++i) {
        du[i] = __fmul_rn(d[i], load(own_u + i * kAt));
        sum += d[i];
        y[i] = 0;
      }
      __syncthreads();
      if (t0 + kChunk < L) fetch(t0 + kChunk, stage ^ 1);
      through_states(d, du, sum, y, stage);
#pragma unroll
      for (int i = 0; i < kSpan; ++i) y[i] = fmaf(D, load(own_u + i * kAt), y[i]);
      if (has_z) {
#pragma unroll
        for (int i = 0; i < kSpan; ++i) y[i] = gate<T>(y[i], load(own_z + i * kAt));
      }
#pragma unroll
      for (int i = 0; i < kSpan; ++i) store(own_u + i * kAt, y[i]);
    }
    __syncthreads();
    store_rows(w.in.L - 1 - (w.in.L - 1) % kChunk, stage ^ 1);
    if (w.hT == nullptr) return;
    for (int i = threadIdx.x; i < M::kChannels * kN; i += kThreads) {
      const int at = i % M::kChannels, n = i / M::kChannels;
      w.hT[b * w.h_stride + n * E + first + at] = m.carry[at / kAcross][stage][n][at % kAcross];
    }
  }
};

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads) chunks_kernel(const __grid_constant__ Scan<T> w) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<Memory<T, S>*>(shared);
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
  Block<T, S> block{w,
                    memory,
                    static_cast<int64_t>(blockIdx.y),
                    static_cast<int64_t>(blockIdx.x) * S::kChannels,
                    warp / kTimeWarps,
                    warp % kTimeWarps,
                    static_cast<int>(threadIdx.x % kWarp)};
  block.run();
}

// Whether a block can have the memory.
template <class T, class S>
bool fits(const Stream& stream) {
  int device = 0, bytes = 0;
  return stream.overlaps && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         static_cast<size_t>(bytes) >= sizeof(Memory<T, S>);
}
template <class S, class T>
void launch_chunks(Stream& stream, const char* name, const Scan<T>& w) {
  launch_clusters(stream, name, chunks_kernel<T, S>,
                  dim3(static_cast<unsigned>(w.in.E / S::kChannels), static_cast<unsigned>(w.in.B)),
                  dim3(S::kThreads), sizeof(Memory<T, S>), 1, w);
}

}  // namespace mamba::cuda::chunks
