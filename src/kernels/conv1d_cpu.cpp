// SPDX-License-Identifier: Apache-2.0
// conv1d on the CPU. Channels are lanes. Each row becomes a list of positions, K-1 inputs before
// the first token of every document and padding left out, so that a window is always K successive
// positions and nothing below knows about documents. Tiles of four positions walk over slabs of
// channels: along a channel row the hardware prefetches, and x is read four times from the
// first-level cache for four outputs.
#include "kernels/conv1d.h"
#include "kernels/rows.h"
#include "kernels/simd_bf16.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int kTile = 4;         // positions per tile
constexpr int64_t kGroups = 16;  // at most: groups of rows with their own sums of dweight
// Measured on one EPYC core with AVX-512, -O3, B 2, L 512, C 1536, K 4: the backward takes 1.46 ns
// an element with slabs of 64 and blocks of 64, 1.22 with these; wider slabs would leave fewer
// tasks. Forward slabs: 7 inputs, 4 taps and 4 outputs of 2 KB fit the first-level cache.
constexpr int64_t kBlock = 32;          // positions per block
constexpr int64_t kForwardSlab = 512;   // channels
constexpr int64_t kBackwardSlab = 128;  // channels

MAMBA_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
MAMBA_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
MAMBA_INLINE int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }

// The positions of all rows, in scratch. Row b has positions first[b] ... first[b + 1] - 1: the K-1
// slots of state_in, its tokens, K-1 zeros before each further document, and K-1 zeros at the end.
struct Positions {
  int64_t* first;     // (B + 1)
  int64_t* token;     // (first[B]) the token, or -1
  const float** in;   // (first[B]) C inputs: of the token, of state_in or zeros
  float** dpre;       // (first[B]) backward only: the token's row of dx, or zeros
  const float* taps;  // (K, C) weight transposed
  float* zeros;       // (C)
  float* partial;     // backward only: (groups, K + 1, C) sums of dweight and dbias
};

// Positions of row b.
template <class Args>
int64_t count_positions(const Args& a, int64_t b) {
  int64_t count = 2 * (a.K - 1);
  if (!a.doc_ids) return count + a.L;
  const int32_t* ids = a.doc_ids.template as<int32_t>() + b * a.L;
  int32_t document = -1;
  for (int64_t t = 0; t < a.L; ++t) {
    if (ids[t] < 0) continue;
    count += document >= 0 && ids[t] != document ? a.K : 1;
    document = ids[t];
  }
  return count;
}

template <class Args>
void list_positions(const Args& a, int64_t b, const Positions& s) {
  const int32_t* ids = a.doc_ids ? a.doc_ids.template as<int32_t>() + b * a.L : nullptr;
  const float* x = a.x.template as<float>() + b * a.L * a.x_stride;
  const float* state = a.state_in.template as<float>();
  int64_t p = s.first[b];
  const auto add = [&](const float* row, int64_t token) __attribute__((always_inline)) {
    s.in[p] = row;
    s.token[p++] = token;
  };
  for (int64_t k = 0; k < a.K - 1; ++k) {
    add(state ? state + b * a.state_stride + k * a.C : s.zeros, -1);
  }
  int32_t document = -1;
  for (int64_t t = 0; t < a.L; ++t) {
    if (ids) {
      if (ids[t] < 0) continue;
      const bool starts = document >= 0 && ids[t] != document;
      for (int64_t k = 0; starts && k < a.K - 1; ++k) add(s.zeros, -1);
      document = ids[t];
    }
    add(x + t * a.x_stride, t);
  }
  for (int64_t k = 0; k < a.K - 1; ++k) add(s.zeros, -1);
}

// taps (K, C) = weight (C, K) transposed; K = 4 in blocks of 4 x 4.
void transpose_taps(const float* weight, int64_t C, int64_t K, float* taps) {
  typedef float Four __attribute__((vector_size(16)));
  int64_t c = 0;
  for (; K == 4 && c + 4 <= C; c += 4) {
    Four r[4];
    memcpy(r, weight + c * 4, sizeof r);
    const Four a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    const Four b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    const Four d = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const Four e = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    const Four columns[4] = {
        __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
        __builtin_shufflevector(d, e, 0, 1, 4, 5), __builtin_shufflevector(d, e, 2, 3, 6, 7)};
    for (int j = 0; j < 4; ++j) memcpy(taps + j * C + c, &columns[j], sizeof(Four));
  }
  for (; c < C; ++c) {
    for (int64_t j = 0; j < K; ++j) taps[j * C + c] = weight[c * K + j];
  }
}

// Carves the scratch up and fills it; partial floats more for the backward, which passes
// `backward`.
template <class Args>
bool prepare(Stream& stream, const Args& a, bool backward, int64_t partial, Positions* s) {
  int64_t count = 0;
  for (int64_t b = 0; b < a.B; ++b) count += count_positions(a, b);
  const int64_t words = a.B + 1 + (backward ? 3 : 2) * count;  // of 8 bytes
  const int64_t head = blocks_of(words * 8, 64) * 64;
  char* data = stream.scratch<char>(head + ((a.K + 1) * a.C + partial) * 4);
  if (data == nullptr) return false;
  s->first = reinterpret_cast<int64_t*>(data);
  s->token = s->first + a.B + 1;
  s->in = reinterpret_cast<const float**>(s->token + count);
  s->dpre = reinterpret_cast<float**>(s->token + 2 * count);
  float* taps = reinterpret_cast<float*>(data + head);
  s->taps = taps;
  s->zeros = taps + a.K * a.C;
  s->partial = s->zeros + a.C;
  transpose_taps(a.weight.template as<float>(), a.C, a.K, taps);
  memset(s->zeros, 0, static_cast<size_t>(a.C + partial) * sizeof(float));
  s->first[0] = 0;
  for (int64_t b = 0; b < a.B; ++b) {
    s->first[b + 1] = s->first[b] + count_positions(a, b);
    list_positions(a, b, *s);
  }
  return true;
}

// sum[i] += sum_j taps[j] * in[i + j] for the channels at c, j in order. kTaps: K if it is fixed,
// or 0.
template <int kTaps, int kRows, class Lanes>
MAMBA_INLINE void convolve(const float* const* in, const float* taps, int64_t tap_stride, int64_t K,
                           int64_t c, Lanes lanes, F32* sum) {
  if constexpr (kTaps > 0) {
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j) {
      const F32 w = lanes.load(taps + j * tap_stride + c);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sum[i] = fma(w, lanes.load(in[i + j] + c), sum[i]);
    }
  } else {
    for (int64_t j = 0; j < K; ++j) {
      const F32 w = lanes.load(taps + j * tap_stride + c);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) sum[i] = fma(w, lanes.load(in[i + j] + c), sum[i]);
    }
  }
}

// Calls tile(p, Rows<4>) or tile(p, Rows<1>) so that every p in [begin, end) with wanted(p) is in
// one tile, in order.
template <int kRows>
struct Rows {};
template <class Wanted, class Tile>
MAMBA_INLINE void for_tiles(int64_t begin, int64_t end, Wanted&& wanted, Tile&& tile) {
  for (int64_t p = begin; p < end;) {
    int64_t run = 0;
    while (run < kTile && p + run < end && wanted(p + run)) ++run;
    if (run == kTile) {
      tile(p, Rows<kTile>{});
    } else {
      for (int64_t i = 0; i < run; ++i) tile(p + i, Rows<1>{});
    }
    p += run > 0 ? run : 1;
  }
}

// Tokens at positions p ... p + kRows - 1 of the lists, channels [c0, c1).
template <int kTaps, int kRows>
void forward_tile(const Conv1dArgs& a, const Positions& s, int64_t b, int64_t p, int64_t c0,
                  int64_t c1) {
  const float* const* in = s.in + p - (a.K - 1);
  const float* bias = a.bias.as<float>();
  float* y[kRows];
  for (int i = 0; i < kRows; ++i) {
    y[i] = a.y.as<float>() + (b * a.L + s.token[p + i]) * a.y_stride + c0;
  }
  for_lanes(
      c1 - c0, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        F32 pre[kRows];
        for (int r = 0; r < kRows; ++r) pre[r] = bias ? lanes.load(bias + c0 + i) : F32::zero();
        convolve<kTaps, kRows>(in, s.taps, a.C, a.K, c0 + i, lanes, pre);
        for (int r = 0; r < kRows; ++r) {
          lanes.store(y[r] + i, a.silu ? pre[r] * sigmoid(pre[r]) : pre[r]);
        }
      });
}

// One block of positions of row b. The first block alone reads state_in (a block is at least 2K
// long), so it writes state_out, which may be state_in: slot k takes its value from slot k or a
// later one.
template <int kTaps>
void forward_block(const Conv1dArgs& a, const Positions& s, int64_t b, int64_t block,
                   int64_t length, int64_t c0, int64_t c1) {
  const int64_t end = s.first[b + 1] - (a.K - 1);
  const int64_t begin = s.first[b] + block * length;
  for_tiles(
      begin, least(begin + length, end),
      [&](int64_t p) __attribute__((always_inline)) { return s.token[p] >= 0; },
      [&]<int kRows>(int64_t p, Rows<kRows>)
          __attribute__((always_inline)) { forward_tile<kTaps, kRows>(a, s, b, p, c0, c1); });
  if (block > 0) return;
  const size_t bytes = static_cast<size_t>(c1 - c0) * sizeof(float);
  for (int64_t k = 0; a.state_out && k < a.K - 1; ++k) {
    float* slot = a.state_out.as<float>() + b * a.state_stride + k * a.C;
    memmove(slot + c0, s.in[end - (a.K - 1) + k] + c0, bytes);
  }
  for (int64_t t = 0; a.doc_ids && t < a.L; ++t) {
    if (a.doc_ids.as<int32_t>()[b * a.L + t] >= 0) continue;
    memset(a.y.as<float>() + (b * a.L + t) * a.y_stride + c0, 0, bytes);
  }
}

// One token of row b, in the order of convolve(), so with the same bits.
template <class State>
void step_row(const Conv1dArgs& a, int64_t b) {
  const float* x = a.x.as<float>() + b * a.x_stride;
  const float* bias = a.bias.as<float>();
  const float* taps = a.taps.as<float>();
  const State* in = a.state_in ? a.state_in.as<State>() + b * a.state_stride : nullptr;
  State* out = a.state_out ? a.state_out.as<State>() + b * a.state_stride : nullptr;
  float* y = a.y.as<float>() + b * a.y_stride;
  for (int64_t c = 0; c < a.C; c += F32::kLanes) {
    const int64_t n = least(F32::kLanes, a.C - c);
    F32 sum = bias ? load_state(bias + c, n) : F32::zero();
    for (int64_t k = 0; k < a.K; ++k) {
      const F32 value = k == a.K - 1 ? load_state(x + c, n)
                        : in         ? load_state(in + k * a.C + c, n)
                                     : F32::zero();
      sum = fma(load_state(taps + k * a.C + c, n), value, sum);
      if (out && k > 0) store_state(value, out + (k - 1) * a.C + c, n);
    }
    store_state(a.silu ? sum * sigmoid(sum) : sum, y + c, n);
  }
}

// dpre = dy * act'(pre) of the tokens at p ... p + kRows - 1, written to their rows of dx; sums is
// (K + 1, C): dweight transposed, then dbias.
template <int kTaps, int kRows>
void dpre_tile(const Conv1dBackwardArgs& a, const Positions& s, int64_t b, int64_t p, int64_t c0,
               int64_t c1, float* sums) {
  const float* const* in = s.in + p - (a.K - 1);
  const float* bias = a.bias.as<float>();
  const float* dy[kRows];
  for (int i = 0; i < kRows; ++i) {
    dy[i] = a.dy.as<float>() + (b * a.L + s.token[p + i]) * a.dy_stride;
  }
  for_lanes(
      c1 - c0, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const int64_t c = c0 + i;
        F32 d[kRows];
        for (int r = 0; r < kRows; ++r) d[r] = lanes.load(dy[r] + c);
        if (a.silu) {
          const F32 one = F32::set(1.0f);
          F32 pre[kRows];
          for (int r = 0; r < kRows; ++r) pre[r] = bias ? lanes.load(bias + c) : F32::zero();
          convolve<kTaps, kRows>(in, s.taps, a.C, a.K, c, lanes, pre);
          for (int r = 0; r < kRows; ++r) {
            const F32 sig = sigmoid(pre[r]);
            d[r] = d[r] * (sig * fma(pre[r], one - sig, one));
          }
        }
        for (int64_t j = 0; j < (kTaps > 0 ? kTaps : a.K); ++j) {
          F32 sum = lanes.load(sums + j * a.C + c);
          for (int r = 0; r < kRows; ++r) sum = fma(d[r], lanes.load(in[r + j] + c), sum);
          lanes.store(sums + j * a.C + c, sum);
        }
        F32 sum = lanes.load(sums + a.K * a.C + c);
        for (int r = 0; r < kRows; ++r) sum = sum + d[r];
        lanes.store(sums + a.K * a.C + c, sum);
        for (int r = 0; r < kRows; ++r) lanes.store(s.dpre[p + r] + c, d[r]);
      });
}

// Where the gradient of position p of row b goes: dx, dstate_in or nowhere.
MAMBA_INLINE float* gradient_row(const Conv1dBackwardArgs& a, const Positions& s, int64_t b,
                                 int64_t p) {
  if (s.token[p] >= 0) return s.dpre[p];
  const int64_t slot = p - s.first[b];
  if (slot >= a.K - 1 || !a.dstate_in) return nullptr;
  return a.dstate_in.as<float>() + (b * (a.K - 1) + slot) * a.C;
}

// d in[p] = sum_j weight[K-1-j] * dpre[p + j], plus dstate_out for the last K-1 positions.
// Positions ascend, so a row of dx may replace dpre: what follows reads later rows only.
template <int kTaps, int kRows>
void input_tile(const Conv1dBackwardArgs& a, const Positions& s, int64_t b, int64_t p, int64_t c0,
                int64_t c1) {
  const float* const* dpre = s.dpre + p;
  const float* last_tap = s.taps + (a.K - 1) * a.C;
  const int64_t state = s.first[b + 1] - 2 * (a.K - 1);  // the position of slot 0 of state_out
  const float* extra[kRows];
  float* out[kRows];
  for (int i = 0; i < kRows; ++i) {
    const bool in_state = a.dstate_out && p + i >= state;
    extra[i] = s.zeros;
    if (in_state) {
      extra[i] = a.dstate_out.as<float>() + (b * (a.K - 1) + p + i - state) * a.C;
    }
    out[i] = gradient_row(a, s, b, p + i);
  }
  for_lanes(
      c1 - c0, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const int64_t c = c0 + i;
        F32 sum[kRows];
        for (int r = 0; r < kRows; ++r) sum[r] = lanes.load(extra[r] + c);
        convolve<kTaps, kRows>(dpre, last_tap, -a.C, a.K, c, lanes, sum);
        for (int r = 0; r < kRows; ++r) lanes.store(out[r] + c, sum[r]);
      });
}

// Row b, channels [c0, c1): block by block dpre, then the gradients of the inputs whose windows are
// complete, while both are in the cache.
template <int kTaps>
void backward_row(const Conv1dBackwardArgs& a, const Positions& s, int64_t b, int64_t c0,
                  int64_t c1, float* sums) {
  const int64_t length = most(kBlock, 2 * a.K);
  const int64_t end = s.first[b + 1] - (a.K - 1);
  for (int64_t t = 0; a.doc_ids && t < a.L; ++t) {
    if (a.doc_ids.as<int32_t>()[b * a.L + t] >= 0) continue;
    memset(a.dx.as<float>() + (b * a.L + t) * a.dx_stride + c0, 0,
           static_cast<size_t>(c1 - c0) * sizeof(float));
  }
  int64_t done = s.first[b];
  for (int64_t begin = done; begin < end; begin += length) {
    const int64_t stop = least(begin + length, end);
    for_tiles(
        begin, stop, [&](int64_t p) __attribute__((always_inline)) { return s.token[p] >= 0; },
        [&]<int kRows>(int64_t p, Rows<kRows>)
            __attribute__((always_inline)) { dpre_tile<kTaps, kRows>(a, s, b, p, c0, c1, sums); });
    const int64_t ready = stop == end ? end : stop - (a.K - 1);
    for_tiles(
        done, ready,
        [&](int64_t p)
            __attribute__((always_inline)) { return gradient_row(a, s, b, p) != nullptr; },
        [&]<int kRows>(int64_t p, Rows<kRows>)
            __attribute__((always_inline)) { input_tile<kTaps, kRows>(a, s, b, p, c0, c1); });
    done = ready;
  }
}

// dweight and dbias += the sums of the groups, in order.
void add_sums(const Conv1dBackwardArgs& a, float* partial, int64_t groups) {
  const int64_t size = (a.K + 1) * a.C;
  add_partials(partial + size, groups - 1, size, size, partial);
  float* dweight = a.dweight.as<float>();
  for (int64_t c = 0; c < a.C; ++c) {
    for (int64_t j = 0; j < a.K; ++j) dweight[c * a.K + j] += partial[j * a.C + c];
  }
  float* dbias = a.dbias.as<float>();
  for (int64_t c = 0; dbias && c < a.C; ++c) dbias[c] += partial[a.K * a.C + c];
}

}  // namespace

void conv1d_forward(Stream& stream, const Conv1dArgs& a) noexcept {
  if (a.L == 1 && a.taps && !a.doc_ids) {
    const bool parallel = stream.threads > 1 && a.B * a.C >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
    for (int64_t b = 0; b < a.B; ++b) {
      if ((a.state_in ? a.state_in.dtype : a.state_out.dtype) == DType::kBF16) {
        step_row<bf16>(a, b);
      } else {
        step_row<float>(a, b);
      }
    }
    return;
  }
  Positions s;
  if (a.B * a.C == 0 || !prepare(stream, a, false, 0, &s)) return;
  const int64_t length = most(kBlock, 2 * a.K);
  int64_t longest = 1;
  for (int64_t b = 0; b < a.B; ++b) longest = most(longest, s.first[b + 1] - s.first[b]);
  const int64_t blocks = blocks_of(longest, length);
  const int64_t slabs = blocks_of(a.C, kForwardSlab);
  const bool parallel = stream.threads > 1 && a.B * a.L * a.C >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t task = 0; task < a.B * blocks * slabs; ++task) {
    const int64_t c0 = task % slabs * kForwardSlab, c1 = least(c0 + kForwardSlab, a.C);
    const int64_t b = task / slabs / blocks, block = task / slabs % blocks;
    if (a.K == 4) {
      forward_block<4>(a, s, b, block, length, c0, c1);
    } else {
      forward_block<0>(a, s, b, block, length, c0, c1);
    }
  }
}

void conv1d_backward(Stream& stream, const Conv1dBackwardArgs& a) noexcept {
  if (a.B * a.C == 0) return;
  const int64_t group_rows = blocks_of(a.B, kGroups);
  const int64_t groups = blocks_of(a.B, group_rows);
  const int64_t size = (a.K + 1) * a.C;
  Positions s;
  if (!prepare(stream, a, true, groups * size, &s)) return;
  for (int64_t b = 0; b < a.B; ++b) {
    float* dx = a.dx.as<float>() + b * a.L * a.dx_stride;
    for (int64_t p = s.first[b]; p < s.first[b + 1]; ++p) {
      s.dpre[p] = s.token[p] >= 0 ? dx + s.token[p] * a.dx_stride : s.zeros;
    }
  }
  const int64_t slabs = blocks_of(a.C, kBackwardSlab);
  const bool parallel = stream.threads > 1 && a.B * a.L * a.C >= kParallelElements;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (parallel)
  for (int64_t task = 0; task < groups * slabs; ++task) {
    const int64_t c0 = task % slabs * kBackwardSlab, c1 = least(c0 + kBackwardSlab, a.C);
    const int64_t group = task / slabs;
    float* sums = s.partial + group * size;
    for (int64_t b = group * group_rows; b < least((group + 1) * group_rows, a.B); ++b) {
      if (a.K == 4) {
        backward_row<4>(a, s, b, c0, c1, sums);
      } else {
        backward_row<0>(a, s, b, c0, c1, sums);
      }
    }
  }
  add_sums(a, s.partial, groups);
}

}  // namespace mamba::MAMBA_ISA
