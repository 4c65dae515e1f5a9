// SPDX-License-Identifier: Apache-2.0
// sample for CUDA: one block of threads takes a row through all steps in f64. What is ranked is
// found digit by digit from histograms, with probabilities as integers of 2^-46 and finer, so that
// no sum depends on an order.
#include "kernels/cuda.cuh"
#include "kernels/sample.h"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxSteps = 64;
constexpr int kBins = 256;

struct Settings {
  const void* logits;
  int64_t vocab;
  double temperature, typical_p, top_p, min_p, repeat, presence, frequency, uniform;
  int64_t top_k, seen_count, biased_count;
  const int32_t *seen, *seen_times, *biased;
  const double* bias;
  int32_t* token;
  int step_count;
  bool greedy, check_finite;
  SampleStep steps[kMaxSteps];
};

// The kept tokens, in the order of their index, in device memory.
struct Kept {
  double* x;
  double* weight;
  uint64_t* key;
  int32_t* id;
};

struct Shared {
  double doubles[kWarps];
  uint64_t words[kWarps + 1];
  uint64_t bins[kBins];
  uint64_t prefix, left;
  int32_t index;
};

// The largest of the block; NaN is never among the values.
__device__ double block_max(double v, Shared& s) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    v = fmax(v, __shfl_xor_sync(kAllLanes, v, offset));
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) s.doubles[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = s.doubles[0];
  for (int i = 1; i < kWarps; ++i) v = fmax(v, s.doubles[i]);
  return v;
}

// The sum over the threads before this one; `total` of all.
template <class T>
__device__ T sum_before(T v, T* shared, T& total) {
  T inclusive = v;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T other = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (static_cast<int>(threadIdx.x % kWarp) >= offset) inclusive += other;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == kWarp - 1) shared[threadIdx.x / kWarp] = inclusive;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (i == static_cast<int>(threadIdx.x / kWarp)) before = total;
    total += shared[i];
  }
  return before + (inclusive - v);
}

// Adds to a bin in shared memory; integers, so that the order does not matter.
__device__ __forceinline__ void add_to_bin(uint64_t* bin, uint64_t v) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(bin));
  asm volatile("red.shared.add.u64 [%0], %1;" ::"r"(address), "l"(v) : "memory");
}

// An integer that orders as x does; -0 as 0.
__device__ __forceinline__ uint64_t ordered(double x) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(x + 0.0));
  return bits >> 63 != 0 ? ~bits : bits | uint64_t{1} << 63;
}

class Chain {
 public:
  __device__ Chain(const Settings& settings, const Kept& kept, Shared& shared)
      : a_(settings), k_(kept), s_(shared), count_(settings.vocab) {}

  // By one thread, as an id may be there more than once.
  __device__ void add_biases() {
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int64_t i = 0; i < a_.biased_count; ++i) {
        const float x = __double2float_rn(__dadd_rn(k_.x[a_.biased[i]], a_.bias[i]));
        k_.x[a_.biased[i]] = isnan(x) ? -INFINITY : static_cast<double>(x);
      }
    }
    __syncthreads();
  }
  __device__ bool any_left() { return largest() > -INFINITY; }

  __device__ void apply(SampleStep step) {
    switch (step) {
      case SampleStep::kPenalties:
        return penalise();
      case SampleStep::kTopK:
        if (a_.top_k > 0 && a_.top_k < count_) {
          rank_by_logit();
          keep_first(static_cast<uint64_t>(a_.top_k), [](int64_t) -> uint64_t { return 1; });
        }
        return;
      case SampleStep::kTypicalP:
        if (a_.typical_p < 1) {
          rank_by_nearness();
          keep_mass(a_.typical_p);
        }
        return;
      case SampleStep::kTopP:
        if (a_.top_p < 1) {
          weigh();
          rank_by_logit();
          keep_mass(a_.top_p);
        }
        return;
      case SampleStep::kMinP:
        if (a_.min_p > 0) {
          weigh();
          const double least = fmin(a_.min_p, 1.0);
          keep([&](int64_t i, bool in) { return in && k_.weight[i] >= least; });
        }
        return;
      case SampleStep::kTemperature:
        return divide();
    }
  }

  // The smallest index among the largest.
  __device__ int32_t greedy() {
    const double top = largest();
    if (threadIdx.x == 0) s_.index = INT32_MAX;
    __syncthreads();
    int32_t first = INT32_MAX;
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) {
      if (k_.x[i] == top) {
        first = k_.id[i];
        break;
      }
    }
    atomicMin(&s_.index, first);
    __syncthreads();
    return s_.index;
  }

  __device__ int32_t draw() {
    const double goal = a_.uniform * weigh();
    int32_t token = greedy();
    double reached = 0;
    for (int64_t begin = 0; begin < count_; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      const double w = i < count_ ? k_.weight[i] : 0;
      double total = 0;
      const double before = sum_before(w, s_.doubles, total);
      __syncthreads();
      if (threadIdx.x == 0) s_.index = INT32_MAX;
      __syncthreads();
      const bool beyond = w > 0 && goal < reached + (before + w);
      if (beyond) atomicMin(&s_.index, k_.id[i]);
      if (__syncthreads_or(beyond)) return s_.index;
      // The last of some probability, where rounding leaves the goal beyond all.
      if (threadIdx.x == 0) s_.index = -1;
      __syncthreads();
      if (w > 0) atomicMax(&s_.index, k_.id[i]);
      __syncthreads();
      if (s_.index >= 0) token = s_.index;
      reached += total;
    }
    return token;
  }

 private:
  __device__ double largest() {
    double most = -INFINITY;
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) most = fmax(most, k_.x[i]);
    return block_max(most, s_);
  }
  // x - largest; equal logits are equal even when infinite.
  static __device__ double below(double x, double largest) {
    return x == largest ? 0 : x - largest;
  }

  __device__ void penalise() {
    if (a_.repeat == 1 && a_.presence == 0 && a_.frequency == 0) return;
    for (int64_t s = threadIdx.x; s < a_.seen_count; s += kThreads) {
      const int32_t id = a_.seen[s];
      int64_t at = 0;
      for (int64_t end = count_; at < end;) {  // the first that is not below id
        const int64_t middle = (at + end) / 2;
        if (k_.id[middle] < id) {
          at = middle + 1;
        } else {
          end = middle;
        }
      }
      if (at == count_ || k_.id[at] != id) continue;
      double x = k_.x[at];
      x = x > 0 ? x / a_.repeat : __dmul_rn(x, a_.repeat);
      // Rounded as the CPU does, without fused operations.
      const double more = __dadd_rn(a_.presence, __dmul_rn(a_.seen_times[s], a_.frequency));
      k_.x[at] = __dadd_rn(x, -more);
    }
    __syncthreads();
  }

  // weight = p relative to the largest; returns the sum.
  __device__ double weigh() {
    const double top = largest();
    double total = 0;
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) {
      const double w = exp(below(k_.x[i], top));
      k_.weight[i] = w;
      total += w;
    }
    return block_sum<kThreads>(total, s_.doubles);
  }

  __device__ void divide() {
    const double top = largest();
    const bool overflows = isfinite(top) && !isfinite(top / a_.temperature);
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) {
      k_.x[i] = (overflows ? k_.x[i] - top : k_.x[i]) / a_.temperature;
    }
    __syncthreads();
  }

  __device__ void rank_by_logit() {
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) k_.key[i] = ordered(k_.x[i]);
    __syncthreads();
  }

  // -ln p_i = ln(total) - below_i, so |-ln p_i - H| = |below_i - mean of below|.
  __device__ void rank_by_nearness() {
    const double total = weigh(), top = largest();
    double mean = 0;
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) {
      if (k_.weight[i] > 0) mean += k_.weight[i] / total * below(k_.x[i], top);
    }
    mean = block_sum<kThreads>(mean, s_.doubles);
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) {
      k_.key[i] = ordered(-fabs(below(k_.x[i], top) - mean));
    }
    __syncthreads();
  }

  // Keeps the fewest first by key whose weights reach `share` of their sum.
  __device__ void keep_mass(double share) {
    // 2^62 over the tokens, so that no sum overflows.
    const double unit = exp2(static_cast<double>(__clzll(count_) - 2));
    const auto integer = [&](int64_t i) {
      return static_cast<uint64_t>(__double2ull_rn(k_.weight[i] * unit));
    };
    uint64_t total = 0;
    for (int64_t i = threadIdx.x; i < count_; i += kThreads) total += integer(i);
    total = block_sum<kThreads>(total, s_.words);
    const uint64_t mass = __double2ull_ru(fmax(share * static_cast<double>(total), 1.0));
    keep_first(mass < total ? mass : total, integer);
  }

  // Keeps, of the tokens by key, largest first and ties by index, those before which the integer
  // weights sum to less than `mass`, which is at most the sum of all.
  template <class Weight>
  __device__ void keep_first(uint64_t mass, Weight&& weight) {
    uint64_t prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
      if (threadIdx.x < kBins) s_.bins[threadIdx.x] = 0;
      __syncthreads();
      for (int64_t begin = 0; begin < count_; begin += kThreads) {
        const int64_t i = begin + threadIdx.x;
        // A shift by 64 is none.
        const bool in = i < count_ && (shift == 56 || k_.key[i] >> (shift + 8) == prefix);
        const int digit = in ? static_cast<int>(k_.key[i] >> shift & 255) : -1;
        const uint64_t w = in ? weight(i) : 0;
        // Leading digits are mostly equal: one addition for the warp.
        int same = 0;
        __match_all_sync(kAllLanes, digit, &same);
        if (same != 0) {
          const uint64_t sum = warp_sum(w);
          if (in && threadIdx.x % kWarp == 0) add_to_bin(s_.bins + digit, sum);
        } else if (in) {
          add_to_bin(s_.bins + digit, w);
        }
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        int digit = kBins - 1;
        uint64_t left = mass;
        // The bin in which the sum reaches the mass, which is no more than the sum of all.
        for (int d = kBins - 1; d >= 0 && left > 0; --d) {
          if (s_.bins[d] == 0) continue;
          digit = d;
          if (s_.bins[d] >= left) break;
          left -= s_.bins[d];
        }
        s_.prefix = prefix << 8 | static_cast<uint64_t>(digit);
        s_.left = left;
      }
      __syncthreads();
      prefix = s_.prefix;
      mass = s_.left;
    }
    uint64_t ties = 0;  // weight of the ties in the tiles before
    keep([&](int64_t i, bool in) {
      const bool tie = in && k_.key[i] == prefix;
      uint64_t total = 0;
      const uint64_t before = ties + sum_before(tie ? weight(i) : uint64_t{0}, s_.words, total);
      ties += total;
      return in && (k_.key[i] > prefix || (tie && before < mass));
    });
  }

  // Keeps the tokens i with keeps(i, i < count), which all threads call for each tile in order.
  template <class Keeps>
  __device__ void keep(Keeps&& keeps) {
    int64_t kept = 0;
    for (int64_t begin = 0; begin < count_; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      const bool stays = keeps(i, i < count_);
      uint64_t total = 0;
      const uint64_t before = sum_before(uint64_t{stays}, s_.words, total);
      const double x = stays ? k_.x[i] : 0;
      const int32_t id = stays ? k_.id[i] : 0;
      __syncthreads();  // everything of the tile was read; what is written lies before its end
      if (stays) {
        k_.x[kept + static_cast<int64_t>(before)] = x;
        k_.id[kept + static_cast<int64_t>(before)] = id;
      }
      kept += static_cast<int64_t>(total);
      __syncthreads();
    }
    count_ = kept;
  }

  const Settings& a_;
  const Kept k_;
  Shared& s_;
  int64_t count_;
};

// The smallest index among the largest logits as they are, without the memory of a chain; whether
// all are finite in `finite`.
template <class T>
__device__ int32_t first_largest(const T* logits, int64_t vocab, Shared& s, bool& finite) {
  float most = -INFINITY;
  int32_t at = INT32_MAX;
  bool all = true;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
    float v = load(logits + i);
    all = all && isfinite(v);
    if (isnan(v)) v = -INFINITY;
    if (v > most || at == INT32_MAX) most = v, at = static_cast<int32_t>(i);
  }
  finite = __syncthreads_and(all);
  const double top = block_max(static_cast<double>(most), s);
  if (threadIdx.x == 0) s.index = INT32_MAX;
  __syncthreads();
  if (static_cast<double>(most) == top) atomicMin(&s.index, at);
  __syncthreads();
  return s.index;
}

template <class T>
__device__ int32_t choose(const Settings& a, const Kept& kept, Shared& shared) {
  const T* logits = static_cast<const T*>(a.logits);
  if (a.greedy && a.seen_count == 0 && a.biased_count == 0) {
    bool finite = true;
    const int32_t token = first_largest(logits, a.vocab, shared, finite);
    return a.check_finite && !finite ? kNotFinite : token;
  }
  bool all = true;
  for (int64_t i = threadIdx.x; i < a.vocab; i += kThreads) {
    const float logit = load(logits + i);
    all = all && isfinite(logit);
    kept.x[i] = isnan(logit) ? -INFINITY : static_cast<double>(logit);
    kept.id[i] = static_cast<int32_t>(i);
  }
  if (!__syncthreads_and(all) && a.check_finite) return kNotFinite;
  Chain chain(a, kept, shared);
  chain.add_biases();
  if (a.biased_count > 0 && !chain.any_left()) return kNoToken;
  for (int s = 0; s < a.step_count; ++s) {
    if (!a.greedy || a.steps[s] == SampleStep::kPenalties) chain.apply(a.steps[s]);
  }
  return a.greedy ? chain.greedy() : chain.draw();
}

// The settings of all rows of a call, as a parameter: no copy that the host would wait for.
constexpr int64_t kMostRows = 64;
struct Batch {
  Settings rows[kMostRows];
};

// A block a row; `memory` is `row_bytes` a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ Batch batch, char* memory, int64_t row_bytes) {
  __shared__ Shared shared;
  const Settings& a = batch.rows[blockIdx.x];
  auto* doubles = reinterpret_cast<double*>(memory + blockIdx.x * row_bytes);
  const Kept kept = {doubles, doubles + a.vocab, reinterpret_cast<uint64_t*>(doubles + 2 * a.vocab),
                     reinterpret_cast<int32_t*>(doubles + 3 * a.vocab)};
  wait_for_previous();
  const int32_t token = a.vocab > 0 ? choose<T>(a, kept, shared) : 0;
  if (threadIdx.x == 0) *a.token = token;
}

Settings settings_of(const SampleRow& a) {
  Settings s = {a.logits.data,
                a.vocab,
                a.temperature,
                a.typical_p,
                a.top_p,
                a.min_p,
                a.repeat,
                a.presence,
                a.frequency,
                a.uniform,
                a.top_k,
                a.seen_count,
                a.biased_count,
                a.seen,
                a.seen_times,
                a.biased,
                a.bias,
                a.token,
                static_cast<int>(a.step_count),
                !(a.temperature > 0),
                a.check_finite,
                {}};
  for (int64_t i = 0; i < a.step_count; ++i) s.steps[i] = a.steps[i];
  return s;
}

void sample_some(Stream& stream, const SampleRow* rows, int64_t count) {
  Batch batch;
  int64_t row_bytes = 0;
  for (int64_t r = 0; r < count; ++r) {
    const SampleRow& row = rows[r];
    if (row.step_count > kMaxSteps || row.logits.dtype != rows[0].logits.dtype) {
      expect_success(stream, "sample", cudaErrorInvalidValue);
      return;
    }
    batch.rows[r] = settings_of(row);
    const bool plain = batch.rows[r].greedy && row.seen_count == 0 && row.biased_count == 0;
    const int64_t bytes = plain ? 0 : (row.vocab * 28 + 15) / 8 * 8;
    row_bytes = bytes > row_bytes ? bytes : row_bytes;
  }
  char* memory = stream.scratch<char>(count * row_bytes + 8);
  if (memory == nullptr) return;
  with_type(rows[0].logits.dtype, [&]<class T>() {
    launch_early(stream, "sample", sample_kernel<T>, dim3(static_cast<unsigned>(count)),
                 dim3(kThreads), 0, batch, memory, row_bytes);
  });
}

}  // namespace

void sample(Stream& stream, const SampleArgs& args) noexcept {
  for (int64_t begin = 0; begin < args.count && stream.failed == nullptr; begin += kMostRows) {
    const int64_t left = args.count - begin;
    sample_some(stream, args.rows + begin, left < kMostRows ? left : kMostRows);
  }
}

}  // namespace mamba::cuda
