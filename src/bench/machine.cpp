// SPDX-License-Identifier: Apache-2.0
// Loops that do nothing but read, or nothing but multiply and add.
#include "bench/machine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <fstream>

#include "bench/measure.h"
#include "device/arena.h"

namespace mamba {
namespace {

constexpr int64_t kRounds = 20'000;  // a few ms: the fastest run is one without interruption
constexpr int kChains = 12;          // independent sums: enough for 2 units of latency 4 or 5
constexpr int64_t kMinRead = int64_t{8} << 20;  // bytes of a timed run: well above a barrier's time

// Each loop reads `count` words (a multiple of 64) and returns something that needs all of them.
uint64_t read_base(const uint64_t* words, int64_t count) {
  typedef uint64_t Vec __attribute__((vector_size(16)));
  Vec sums[8] = {};
  for (int64_t i = 0; i < count; i += 16) {
    for (int k = 0; k < 8; ++k) sums[k] += *reinterpret_cast<const Vec*>(words + i + 2 * k);
  }
  for (int k = 1; k < 8; ++k) sums[0] += sums[k];
  return sums[0][0] + sums[0][1];
}

float f32_base(float a, float b) {  // 4 lanes; a multiplication and an addition
  typedef float Vec __attribute__((vector_size(16)));
  const Vec va = {a, a, a, a}, vb = {b, b, b, b};
  Vec acc[kChains];
  for (Vec& v : acc) v = vb;
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = acc[k] * va + vb;
  }
  for (int k = 1; k < kChains; ++k) acc[0] += acc[k];
  return acc[0][0];
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t read_avx2(const uint64_t* words, int64_t count) {
  __m256i sums[8];
  for (__m256i& s : sums) s = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 32) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      const auto* at = reinterpret_cast<const __m256i*>(words + i + 4 * k);
      sums[k] = _mm256_add_epi64(sums[k], _mm256_load_si256(at));
    }
  }
  for (int k = 1; k < 8; ++k) sums[0] = _mm256_add_epi64(sums[0], sums[k]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sums[0], 0) ^ _mm256_extract_epi64(sums[0], 2));
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const uint64_t* words, int64_t count) {
  __m512i sums[8];
  for (__m512i& s : sums) s = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 64) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      sums[k] = _mm512_add_epi64(sums[k], _mm512_load_si512(words + i + 8 * k));
    }
  }
  for (int k = 1; k < 8; ++k) sums[0] = _mm512_add_epi64(sums[0], sums[k]);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, sums[0]);
  return lanes[0] ^ lanes[7];
}

__attribute__((target("avx2,fma"))) float f32_avx2(float a, float b) {
  const __m256 va = _mm256_set1_ps(a), vb = _mm256_set1_ps(b);
  __m256 acc[kChains];
  for (__m256& v : acc) v = vb;
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = _mm256_fmadd_ps(acc[k], va, vb);
  }
  for (int k = 1; k < kChains; ++k) acc[0] = _mm256_add_ps(acc[0], acc[k]);
  return _mm256_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f"))) float f32_avx512(float a, float b) {
  const __m512 va = _mm512_set1_ps(a), vb = _mm512_set1_ps(b);
  __m512 acc[kChains];
  for (__m512& v : acc) v = vb;
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = _mm512_fmadd_ps(acc[k], va, vb);
  }
  for (int k = 1; k < kChains; ++k) acc[0] = _mm512_add_ps(acc[0], acc[k]);
  return _mm512_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) float bf16_avx512(float a,
                                                                                  float b) {
  const __m512 va = _mm512_set1_ps(a), vb = _mm512_set1_ps(b);
  const __m512bh x = _mm512_cvtne2ps_pbh(va, vb), y = _mm512_cvtne2ps_pbh(vb, va);
  __m512 acc[kChains];
  for (__m512& v : acc) v = vb;
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = _mm512_dpbf16_ps(acc[k], x, y);
  }
  for (int k = 1; k < kChains; ++k) acc[0] = _mm512_add_ps(acc[0], acc[k]);
  return _mm512_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) float int8_avx512(float a, float) {
  const __m512i x = _mm512_set1_epi8(static_cast<char>(a * 3)), y = _mm512_set1_epi8(2);
  __m512i acc[kChains];
  for (__m512i& v : acc) v = x;
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) acc[k] = _mm512_dpbusd_epi32(acc[k], x, y);
  }
  for (int k = 1; k < kChains; ++k) acc[0] = _mm512_add_epi32(acc[0], acc[k]);
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, acc[0]);
  return static_cast<float>(lanes[0]);
}

// Two instructions of AVX2 for what vpdpbusd does, and the addition behind them.
__attribute__((target("avx2"))) float int8_avx2(float a, float) {
  const __m256i x = _mm256_set1_epi8(static_cast<char>(a * 3)), y = _mm256_set1_epi8(2);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[kChains];
  for (__m256i& v : acc) v = x;
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_xor_si256(x, acc[k]), y);
      acc[k] = _mm256_add_epi32(acc[k], _mm256_madd_epi16(pairs, ones));
    }
  }
  for (int k = 1; k < kChains; ++k) acc[0] = _mm256_add_epi32(acc[0], acc[k]);
  return static_cast<float>(_mm_cvtsi128_si32(_mm256_castsi256_si128(acc[0])));
}
#endif

struct ComputeLoop {
  float (*run)(float a, float b) = nullptr;
  const char* instruction = "";
  int operations = 0;  // of one instruction
};

ComputeLoop compute_loop(const std::string& kernels, const std::string& type) {
#if defined(__x86_64__)
  const bool bf16 = kernels == "avx512_bf16", wide = kernels == "avx512" || bf16;
  if (type == "bf16" && bf16) return {bf16_avx512, "vdpbf16ps zmm", 64};
  if (type == "int8" && bf16) return {int8_avx512, "vpdpbusd zmm", 128};
  if (type == "int8" && (wide || kernels == "avx2")) {
    return {int8_avx2, "vpmaddubsw, vpmaddwd, vpaddd ymm", 64};
  }
  if (type == "f32" && wide) return {f32_avx512, "vfmadd zmm", 32};
  if (type == "f32" && kernels == "avx2") return {f32_avx2, "vfmadd ymm", 16};
#endif
  if (type == "f32") return {f32_base, "multiply, add of 4 lanes", 8};
  return {};
}

uint64_t (*read_loop(const std::string& kernels))(const uint64_t*, int64_t) {
#if defined(__x86_64__)
  if (kernels == "avx512" || kernels == "avx512_bf16") return read_avx512;
  if (kernels == "avx2") return read_avx2;
#endif
  return read_base;
}

// Bytes of the cache of a level that the first CPU uses; the C library counts some CPUs' wrongly.
int64_t cache_bytes(int level, int64_t otherwise) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::ifstream level_file(folder + "level"), size_file(folder + "size");
    int found = 0;
    int64_t kib = 0;  // "1024K"
    if (level_file >> found && found == level && size_file >> kib && kib > 0) return kib << 10;
  }
  return otherwise;
}

MeasureOptions timing_of(double seconds) {
  MeasureOptions timing;
  timing.seconds = seconds;
  timing.min_runs = 3;
  return timing;
}

}  // namespace

double MachineLimits::read(const std::string& level) const {
  double best = 0;
  for (const ReadRate& r : reads) {
    if (r.level == level) best = std::max(best, r.gb_per_s);
  }
  return best;
}

double MachineLimits::compute(const std::string& type) const {
  double best = 0;
  for (const ComputeRate& c : computes) {
    if (c.type == type) best = std::max(best, c.gop_per_s);
  }
  return best;
}

MachineLimits best_of(MachineLimits a, const MachineLimits& b) {
  for (size_t i = 0; i < a.reads.size() && i < b.reads.size(); ++i) {
    a.reads[i].gb_per_s = std::max(a.reads[i].gb_per_s, b.reads[i].gb_per_s);
  }
  for (size_t i = 0; i < a.computes.size() && i < b.computes.size(); ++i) {
    a.computes[i].gop_per_s = std::max(a.computes[i].gop_per_s, b.computes[i].gop_per_s);
  }
  return a;
}

double read_rate(const std::string& kernels, int64_t bytes, int threads, double seconds) {
  const int64_t part = bytes / 8 / threads / 64 * 64;  // words of a thread
  const AlignedBlock block(part * 8 * threads, "the bandwidth measurement");
  uint64_t* words = static_cast<uint64_t*>(block.data());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; ++t) {  // each page where its reader runs, and not the zero page
    std::fill_n(words + t * part, part, uint64_t{1});
  }
  const auto loop = read_loop(kernels);
  const int64_t times = std::max<int64_t>(1, kMinRead / (part * 8));
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 16);  // 128 bytes apart
  const Measurement m = measure(timing_of(seconds), [&] {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
      for (int64_t i = 0; i < times; ++i) {
        sums[static_cast<size_t>(t) * 16] += loop(words + t * part, part);
      }
    }
  });
  volatile uint64_t keep = sums[0];
  (void)keep;
  return static_cast<double>(part * threads * 8 * times) / m.min * 1e-9;
}

ComputeRate compute_rate(const std::string& kernels, const std::string& type, int threads,
                         double seconds) {
  const ComputeLoop loop = compute_loop(kernels, type);
  ComputeRate rate{type, loop.instruction, threads, 0};
  if (loop.run == nullptr) return rate;
  std::vector<float> results(static_cast<size_t>(threads) * 32);  // 128 bytes apart
  const Measurement m = measure(timing_of(seconds), [&] {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
      results[static_cast<size_t>(t) * 32] += loop.run(0.999f, 1e-3f);
    }
  });
  volatile float keep = results[0];
  (void)keep;
  const double count = static_cast<double>(kChains) * static_cast<double>(kRounds) * threads;
  rate.gop_per_s = count * loop.operations / m.min * 1e-9;
  return rate;
}

MachineLimits measure_machine(const std::string& kernels, const std::vector<int>& threads,
                              double seconds) {
  MachineLimits limits;
  limits.l2_bytes = cache_bytes(2, int64_t{1} << 20);
  limits.l3_bytes = cache_bytes(3, int64_t{32} << 20);
  // In the shared cache and not in those of the cores; and far more than all of them.
  const int64_t memory = std::clamp(4 * limits.l3_bytes, int64_t{256} << 20, int64_t{1} << 30);
  for (const int t : threads) {
    const int64_t in_l3 = std::max(limits.l3_bytes / 2, 2 * t * limits.l2_bytes);
    for (const auto& [level, bytes] :
         {std::pair<const char*, int64_t>{"L2", t * limits.l2_bytes / 2},
          {"L3", in_l3},
          {"memory", memory}}) {
      limits.reads.push_back({level, t, bytes, read_rate(kernels, bytes, t, seconds)});
    }
    for (const char* type : {"f32", "bf16", "int8"}) {
      const ComputeRate rate = compute_rate(kernels, type, t, seconds);
      if (rate.gop_per_s > 0) limits.computes.push_back(rate);
    }
  }
  return limits;
}

}  // namespace mamba
