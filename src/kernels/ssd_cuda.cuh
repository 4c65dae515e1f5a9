// SPDX-License-Identifier: Apache-2.0
// What ssd's CUDA kernels share: chunks of tokens (cut anew at every document), step sizes and
// decays, tiles in shared memory, and the pass that finds the state before every chunk.
//
// A head of P channels is ceil(P / 64) parts of 64, the last one padded with zeros. States and
// gradients of states between chunks are stored as (64, NP), NP = N padded to 64, 128 or 256.
#pragma once

#include "kernels/async.cuh"
#include "kernels/mma.cuh"
#include "kernels/ssd.h"

namespace mamba::cuda::ssd {

constexpr int kChunk = 64;  // tokens, at most
constexpr int kPart = 64;   // channels of a part
constexpr int kLd = kPart;  // without kPad

// A run of tokens of one document, from slot `first` of the row's tokens without padding. `slot` is
// where the state before it is stored; none where it starts a further document.
struct alignas(16) Chunk {
  int32_t first, length, slot, last;  // last: of its document
};
constexpr int kNoSlot = -1;

// How a call is laid out. With documents, chunks and their number are found on the device.
struct Plan {
  int64_t B, L, H, P, N, G;
  int32_t parts;       // of a head
  int32_t of_group;    // heads of a group
  int64_t max_chunks;  // of a row
  int64_t slots;       // of a row: chunks that continue a document, and the first
  const int32_t* ids;
  int32_t* order;         // (B, L): tokens that are no padding, or null (all, in order)
  Chunk* chunks;          // (B, max_chunks), or null
  int32_t* count;         // (B): chunks, or null
  float *d, *high, *low;  // (B, H, L) by slot of token: step size; log2 of the decay since the
                          // chunk's start, its token included, in two parts

  __device__ __forceinline__ int64_t chunk_count(int64_t b) const {
    return count != nullptr ? count[b] : max_chunks;
  }
  __device__ __forceinline__ Chunk chunk(int64_t b, int64_t i) const {
    if (chunks != nullptr) return chunks[b * max_chunks + i];
    const int64_t left = L - i * kChunk;
    return {static_cast<int32_t>(i * kChunk), static_cast<int32_t>(left < kChunk ? left : kChunk),
            static_cast<int32_t>(i), i + 1 == max_chunks};
  }
  __device__ __forceinline__ int64_t row(int64_t b, int64_t slot) const {
    return b * L + (order != nullptr ? order[b * L + slot] : slot);
  }
};

// Scratch is handed out piece by piece from one allocation: first with data null for its size.
struct Pieces {
  char* data = nullptr;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = data == nullptr ? nullptr : reinterpret_cast<T*>(data + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + 127) / 128 * 128;
    return piece;
  }
};

template <class Args>
Plan make_plan(const Args& a, Pieces& pieces) {
  Plan p{};
  p.B = a.B, p.L = a.L, p.H = a.H, p.P = a.P, p.N = a.N, p.G = a.G;
  p.parts = static_cast<int32_t>(ceil_div(a.P, kPart));
  p.of_group = static_cast<int32_t>(a.H / a.G);
  p.ids = a.doc_ids.template as<int32_t>();
  p.slots = ceil_div(a.L, kChunk) + 1;
  p.max_chunks = p.ids != nullptr ? a.L + 1 : ceil_div(a.L, kChunk);
  if (p.ids != nullptr) {
    p.order = pieces.take<int32_t>(a.B * a.L);
    p.chunks = pieces.take<Chunk>(a.B * p.max_chunks);
    p.count = pieces.take<int32_t>(a.B);
  }
  p.d = pieces.take<float>(a.B * a.H * a.L);
  p.high = pieces.take<float>(a.B * a.H * a.L);
  p.low = pieces.take<float>(a.B * a.H * a.L);
  return p;
}

struct StepInput {
  const void* dt;
  int64_t stride;
  const float *bias, *A;
  float dt_min, dt_max;
};
template <class Args>
StepInput step_input(const Args& a) {
  return {a.dt.data,
          a.dt_stride,
          a.dt_bias.template as<float>(),
          a.A.template as<float>(),
          static_cast<float>(a.dt_min),
          static_cast<float>(a.dt_max)};
}

// softplus, and its limits.
__device__ __forceinline__ float soft(float raw) { return raw > 20.0f ? raw : log1pf(expf(raw)); }
__device__ __forceinline__ float limited(float soft, float low, float high) {
  return fminf(fmaxf(soft, low), high);
}
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Finds chunks where there are documents, then steps and decays of all tokens. In ssd_cuda.cu.
void prepare(Stream& stream, const char* name, const Plan& plan, const StepInput& in, DType type);
// Rows of padding of `to` (B L rows of `width`) become zero.
void clear_padding(Stream& stream, const char* name, const Plan& plan, Buf to, int64_t stride,
                   int64_t width);

// Rows of a tensor from the first column of interest: `width` of them are there, the rest is zero.
template <class T>
struct Source {
  const T* data;
  int64_t stride;
  bool aligned;  // whether 16 bytes can be copied at a time
};

// A tile (64 rows, `columns` with row length columns + kPad) of tokens `chunk.first` ...; beyond
// its length and from `width` on zeros. Commits nothing.
template <int columns, int threads, class T>
__device__ __forceinline__ void load_tokens(T* tile, const Plan& plan, int64_t b,
                                            const Chunk& chunk, const Source<T>& from,
                                            int64_t column, int width) {
  constexpr int kPer16 = 16 / sizeof(T), kPieces = columns / kPer16;
  static_assert(threads % kPieces == 0);
  constexpr int kRows = threads / kPieces;  // at a time
  const int c = threadIdx.x % kPieces * kPer16, r0 = threadIdx.x / kPieces;
  T* to = tile + r0 * (columns + kPad<T>)+c;
  if (from.aligned && plan.order == nullptr) {
    const T* source = from.data + (b * plan.L + chunk.first + r0) * from.stride + column + c;
    const int rows = c < width ? chunk.length : 0;
#pragma unroll
    for (int i = 0; i < kChunk / kRows; ++i) {
      copy16_async(to, source, r0 + i * kRows < rows);
      to += kRows * (columns + kPad<T>);
      source += kRows * from.stride;
    }
    return;
  }
  for (int r = r0; r < kChunk; r += kRows, to += kRows * (columns + kPad<T>)) {
    const bool valid = r < chunk.length && c < width;
    const T* source =
        valid ? from.data + plan.row(b, chunk.first + r) * from.stride + column + c : from.data;
    if (from.aligned) {
      copy16_async(to, source, valid);
    } else {
#pragma unroll
      for (int i = 0; i < kPer16; ++i) to[i] = valid && c + i < width ? source[i] : T{};
    }
  }
}
// A tile (64, columns) of a dense array.
template <int columns, int threads, class T>
__device__ __forceinline__ void load_dense(T* tile, const T* from) {
  constexpr int kPer16 = 16 / sizeof(T), kPieces = columns / kPer16, kRows = threads / kPieces;
  const int c = threadIdx.x % kPieces * kPer16, r0 = threadIdx.x / kPieces;
  tile += r0 * (columns + kPad<T>)+c;
  from += r0 * columns + c;
#pragma unroll
  for (int i = 0; i < kPart / kRows; ++i) {
    copy16_async(tile + i * kRows * (columns + kPad<T>), from + i * kRows * columns);
  }
}

__device__ __forceinline__ void copy4_async(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}
// Steps and decays of a chunk in shared memory; tokens beyond its length have step 0 and the decay
// of its last token.
struct Steps {
  float d[kChunk], high[kChunk], low[kChunk];
};
template <bool with_low, int threads>
__device__ __forceinline__ void load_steps(Steps& to, const Plan& plan, int64_t b, int64_t h,
                                           const Chunk& chunk) {
  const int64_t base = (b * plan.H + h) * plan.L + chunk.first;
  for (int i = threadIdx.x; i < kChunk; i += threads) {
    const bool valid = i < chunk.length;
    const int64_t at = base + (valid ? i : chunk.length - 1);
    copy4_async(&to.d[i], plan.d + at, valid);
    copy4_async(&to.high[i], plan.high + at, true);
    if (with_low) copy4_async(&to.low[i], plan.low + at, true);
  }
}

// Step sizes of two tokens of a chunk, 2 lane and the next, and the log2 of the decay since its
// start in two parts. Sums in f64, so that differences of large sums stay exact. A token beyond the
// chunk's length has step 0.
struct TwoSteps {
  float d[2], high[2], low[2];
};
__device__ __forceinline__ void raw_steps(const Plan& p, const StepInput& in, DType type, int64_t b,
                                          int64_t h, const Chunk& chunk, float (&raw)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = 2 * static_cast<int>(threadIdx.x % kWarp) + i;
    if (at >= chunk.length) continue;
    const int64_t from = p.row(b, chunk.first + at) * in.stride + h;
    raw[i] = type == DType::kBF16  ? load(static_cast<const bf16*>(in.dt) + from)
             : type == DType::kF16 ? load(static_cast<const f16*>(in.dt) + from)
                                   : static_cast<const float*>(in.dt)[from];
  }
}
__device__ __forceinline__ TwoSteps two_steps(const StepInput& in, const Chunk& chunk,
                                              const float (&raw)[2], double rate, float bias) {
  const int lane = threadIdx.x % kWarp;
  TwoSteps to;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    to.d[i] = 2 * lane + i < chunk.length ? limited(soft(raw[i] + bias), in.dt_min, in.dt_max) : 0;
  }
  const double sum[2] = {to.d[0] * rate, to.d[0] * rate + to.d[1] * rate};
  double before = sum[1];
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const double from = __shfl_up_sync(kAllLanes, before, offset);
    if (lane >= offset) before += from;
  }
  before -= sum[1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const double total = before + sum[i];
    to.high[i] = static_cast<float>(total);
    to.low[i] = static_cast<float>(total - to.high[i]);
  }
  return to;
}
__device__ __forceinline__ double log2_rate(const StepInput& in, int64_t h) {
  return static_cast<double>(in.A[h]) * 1.4426950408889634;
}

template <class T>
constexpr bool kExactDecay = sizeof(T) == 4;

// exp(l_t - l_s) for t >= s.
template <class T>
__device__ __forceinline__ float decay_between(const Steps& s, float high_t, float low_t, int at) {
  float x = high_t - s.high[at];
  if constexpr (kExactDecay<T>) x += low_t - s.low[at];
  return exp2_approx(x);
}

// ---- The states between chunks ----

// Where the heads are too few for the card, all chunks are taken at once: what each adds, then a
// chain through them, to the bits of the pass through time. Documents are not cut so.
struct Split {
  int32_t chunks;  // 0 if there is none
  float* states;   // (B, chunks, H, parts, 64, NP)
  float* decay;    // (B, chunks, H)
};
inline Split make_split(const Plan& p, int64_t NP, Pieces& pieces) {
  constexpr int64_t kFew = 66, kFewest = 4;  // blocks, of 264 that run at once; chunks
  const bool few = p.H * p.parts * p.B * ceil_div(NP, 128) <= kFew;
  if (p.ids != nullptr || !few || p.max_chunks < kFewest || p.max_chunks > 65535) return {};
  return {static_cast<int32_t>(p.max_chunks),
          pieces.take<float>(p.B * p.max_chunks * p.H * p.parts * kPart * NP),
          pieces.take<float>(p.B * p.max_chunks * p.H)};
}

// Forward: before every chunk, S <- exp(l_Q) S + sum_s exp(l_Q - l_s) d_s x_s (outer) B_s.
// Backward: after every chunk, from the last, G <- exp(l_Q) G + sum_t exp(l_t) dy_t (outer) C_t.
template <class T>
struct StatesArgs {
  Plan plan;
  Source<T> x, bc;     // dy and C in the backward pass
  const float* first;  // S0 or dST, or null; sequence stride first_stride
  int64_t first_stride;
  const float* restart;  // S_reset or null; in the backward pass 0
  float* last;           // ST or dS0, or null
  int64_t last_stride;
  float*
      restart_gradient;  // backward: (B, H, P, N) sums of G over the starts of documents, or null
  T* states;             // (B, slots, H, parts, 64, NP), or null: only `last` is wanted
  Split split;
};
template <class T, bool reverse>
void find_states(Stream& stream, const char* name, const StatesArgs<T>& a);

// S_reset as the chunks read it.
template <class T>
static __global__ void __launch_bounds__(256)
    restart_kernel(const float* __restrict__ from, int64_t P, int64_t N, int64_t NP, int64_t parts,
                   int64_t count, T* __restrict__ to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  const int64_t n = i % NP, h = i / NP / kPart / parts;
  const int64_t p = i / NP % kPart + i / NP / kPart % parts * kPart;
  store(to + i, n < N && p < P ? from[(h * P + p) * N + n] : 0.0f);
}

template <class T>
Source<T> source(CBuf from, int64_t stride, int64_t width) {
  return {from.as<T>(), stride,
          rows_aligned(from, stride, 16) && width * dtype_size(from.dtype) % 16 == 0};
}

// NP for N states, 0 if there are too many.
inline int64_t padded_states(int64_t N) {
  return N <= 64 ? 64 : N <= 128 ? 128 : N <= 256 ? 256 : 0;
}

}  // namespace mamba::cuda::ssd
