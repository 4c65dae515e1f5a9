// SPDX-License-Identifier: Apache-2.0
// Measured limits of the machine.
#include "bench/roofline.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bench/measure.h"
#include "device/arena.h"

namespace mamba {
namespace {

constexpr int64_t kReadBytes = int64_t{256} << 20;  // 8 times the last cache of a large server core
constexpr int64_t kFmaRounds = 20'000;  // a few ms: the fastest run is one without interruption
constexpr int kChains = 12;             // independent sums: enough for 2 units of latency 4 or 5

// Sums one part of the buffer as integers, which the compiler vectorises without reordering floats.
uint64_t sum_words(const uint64_t* words, int64_t count) {
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; ++k) sums[k] += words[i + k];
  }
  uint64_t sum = 0;
  for (const uint64_t s : sums) sum += s;
  return sum;
}

double read_bandwidth(int threads) {
  const AlignedBlock block(kReadBytes, "the bandwidth measurement");
  const uint64_t* words = static_cast<const uint64_t*>(block.data());
  const int64_t part = kReadBytes / 8 / threads;
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 16);  // 128 bytes apart
  MeasureOptions options;
  options.seconds = 0.2;
  const Measurement m = measure(options, [&] {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
      sums[static_cast<size_t>(t) * 16] += sum_words(words + t * part, part);
    }
  });
  volatile uint64_t keep = sums[0];
  (void)keep;
  return static_cast<double>(part * threads * 8) / m.min * 1e-9;
}

// One loop a width: acc = acc * a + b over kChains vectors; returns something that needs all of
// them.
struct FmaLoop {
  float (*run)(float a, float b);
  int lanes;
};

float run_base(float a, float b) {  // 4 lanes; a multiplication and an addition
  typedef float Vec __attribute__((vector_size(16)));
  const Vec va = {a, a, a, a}, vb = {b, b, b, b};
  Vec acc[kChains];
  for (Vec& v : acc) v = vb;
  for (int64_t r = 0; r < kFmaRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = acc[k] * va + vb;
  }
  for (int k = 1; k < kChains; ++k) acc[0] += acc[k];
  return acc[0][0];
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) float run_avx2(float a, float b) {
  const __m256 va = _mm256_set1_ps(a), vb = _mm256_set1_ps(b);
  __m256 acc[kChains];
  for (__m256& v : acc) v = vb;
  for (int64_t r = 0; r < kFmaRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = _mm256_fmadd_ps(acc[k], va, vb);
  }
  for (int k = 1; k < kChains; ++k) acc[0] = _mm256_add_ps(acc[0], acc[k]);
  return _mm256_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f"))) float run_avx512(float a, float b) {
  const __m512 va = _mm512_set1_ps(a), vb = _mm512_set1_ps(b);
  __m512 acc[kChains];
  for (__m512& v : acc) v = vb;
  for (int64_t r = 0; r < kFmaRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = _mm512_fmadd_ps(acc[k], va, vb);
  }
  for (int k = 1; k < kChains; ++k) acc[0] = _mm512_add_ps(acc[0], acc[k]);
  return _mm512_cvtss_f32(acc[0]);
}
#endif

FmaLoop fma_loop(const std::string& kernels) {
#if defined(__x86_64__)
  if (kernels == "avx2") return {run_avx2, 8};
  if (kernels == "avx512" || kernels == "avx512_bf16") return {run_avx512, 16};
#endif
  (void)kernels;
  return {run_base, 4};
}

double fma_rate(const std::string& kernels, int threads) {
  const FmaLoop loop = fma_loop(kernels);
  std::vector<float> results(static_cast<size_t>(threads) * 32);  // 128 bytes apart
  MeasureOptions options;
  options.seconds = 0.1;
  const Measurement m = measure(options, [&] {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
      results[static_cast<size_t>(t) * 32] += loop.run(0.999f, 1e-3f);
    }
  });
  volatile float keep = results[0];
  (void)keep;
  const double flops = 2.0 * kChains * loop.lanes * static_cast<double>(kFmaRounds) * threads;
  return flops / m.min * 1e-9;
}

}  // namespace

Limits measure_limits(const std::string& kernels, int threads) {
  const int used = std::max(1, threads);
  return {read_bandwidth(used), fma_rate(kernels, used)};
}

}  // namespace mamba
