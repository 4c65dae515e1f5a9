// SPDX-License-Identifier: Apache-2.0
// Blocks of 32 weights, and the choice of a type. Blocks of 256 are in quantize_k.cpp.
#include "quant/quantize.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/quantize_k.h"

namespace mamba {
namespace {

using quant::Whole;

constexpr int kSmall = 32;

// The value of IQ4_NL's table nearest to v, by halves: every border between two values is a
// multiple of 1/2.
class NearestOfTable {
 public:
  NearestOfTable() {
    int code = 0;
    for (int half = 0; half < kHalves; ++half) {
      const double middle = (half + 0.5) / 2 - kLimit;
      while (code < 15 && 2 * middle > kIQ4_NLValues[code] + kIQ4_NLValues[code + 1]) ++code;
      code_[static_cast<size_t>(half)] = static_cast<uint8_t>(code);
      value_[static_cast<size_t>(half)] = kIQ4_NLValues[code];
    }
  }
  uint8_t code(float v) const { return code_[index(v)]; }
  float operator()(float v) const { return value_[index(v)]; }

 private:
  static constexpr int kLimit = 128, kHalves = 4 * kLimit;
  static size_t index(float v) {
    return static_cast<size_t>(quant::clamp(2 * (v + kLimit), 0, kHalves - 1));
  }
  std::array<uint8_t, kHalves> code_;
  std::array<float, kHalves> value_;
};

const NearestOfTable& nearest_of_table() {
  static const NearestOfTable table;
  return table;
}

uint8_t to_u8(float v) { return static_cast<uint8_t>(static_cast<int>(v)); }

void pack_low_and_high(const uint8_t* codes, uint8_t qs[16]) {
  for (int i = 0; i < 16; ++i) {
    qs[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
}

void pack_fifth_bits(const uint8_t* codes, uint8_t qh[4]) {
  std::memset(qh, 0, 4);
  for (int i = 0; i < kSmall; ++i) {
    qh[i / 8] = static_cast<uint8_t>(qh[i / 8] | (codes[i] >> 4) << i % 8);
  }
}

// Q4_0, Q5_0 (codes 0..2 half - 1, less half) and Q8_0.
float fit_symmetric(const float* x, const float* w, float low, float high, int steps) {
  const Whole code{low, high};
  const float found = quant::search_scale<kSmall>(x, w, code, low, high, steps, 0.1f);
  return quant::settle_scale<kSmall>(x, w, code, found);
}

void shifted_codes(const float* x, float d, int half, uint8_t* codes) {
  const Whole code{static_cast<float>(-half), static_cast<float>(half - 1)};
  const float inv = quant::inverse(d);
  for (int i = 0; i < kSmall; ++i) codes[i] = to_u8(code(x[i] * inv) + static_cast<float>(half));
}

BlockQ4_0 make_q4_0(const float* x, const float* w) {
  BlockQ4_0 b;
  uint8_t codes[kSmall];
  b.d = to_f16(fit_symmetric(x, w, -8, 7, 8));
  shifted_codes(x, to_f32(b.d), 8, codes);
  pack_low_and_high(codes, b.qs);
  return b;
}

BlockQ5_0 make_q5_0(const float* x, const float* w) {
  BlockQ5_0 b;
  uint8_t codes[kSmall];
  b.d = to_f16(fit_symmetric(x, w, -16, 15, 8));
  shifted_codes(x, to_f32(b.d), 16, codes);
  pack_low_and_high(codes, b.qs);
  pack_fifth_bits(codes, b.qh);
  return b;
}

BlockQ8_0 make_q8_0(const float* x, const float* w) {
  BlockQ8_0 b;
  const Whole code{-127, 127};
  b.d = to_f16(fit_symmetric(x, w, -127, 127, 3));
  const float inv = quant::inverse(to_f32(b.d));
  for (int i = 0; i < kSmall; ++i) b.qs[i] = static_cast<int8_t>(code(x[i] * inv));
  return b;
}

// Codes 0..high of x = code * d + m, the best pair in f16.
template <class Block>
void make_affine(const float* x, const float* w, float high, Block* b, uint8_t* codes) {
  constexpr float kAny = std::numeric_limits<float>::max();
  const auto rounded = [](quant::Affine a) {
    return quant::Affine{quant::round_to_f16(a.scale), quant::round_to_f16(a.offset)};
  };
  quant::Affine best = rounded(quant::search_affine<kSmall>(x, w, high, kAny));
  float error = quant::affine_error<kSmall>(x, w, best, high);
  for (int round = 0; round < 3; ++round) {
    const quant::Affine next = rounded(quant::refit_affine<kSmall>(x, w, best, high, kAny));
    const float next_error = quant::affine_error<kSmall>(x, w, next, high);
    if (!(next_error < error)) break;
    best = next, error = next_error;
  }
  b->d = to_f16(best.scale);
  b->m = to_f16(best.offset);
  const Whole code{0, high};
  const float inv = quant::inverse(best.scale);
  for (int i = 0; i < kSmall; ++i) codes[i] = to_u8(code((x[i] - best.offset) * inv));
}

BlockQ4_1 make_q4_1(const float* x, const float* w) {
  BlockQ4_1 b;
  uint8_t codes[kSmall];
  make_affine(x, w, 15, &b, codes);
  pack_low_and_high(codes, b.qs);
  return b;
}

BlockQ5_1 make_q5_1(const float* x, const float* w) {
  BlockQ5_1 b;
  uint8_t codes[kSmall];
  make_affine(x, w, 31, &b, codes);
  pack_low_and_high(codes, b.qs);
  pack_fifth_bits(codes, b.qh);
  return b;
}

BlockIQ4_NL make_iq4_nl(const float* x, const float* w) {
  BlockIQ4_NL b;
  uint8_t codes[kSmall];
  const NearestOfTable& table = nearest_of_table();
  const auto code = [&](float v) { return table(v); };
  const float found = quant::search_scale<kSmall>(x, w, code, -127, 113, 8, 1.5f);
  const float best = quant::settle_scale<kSmall>(x, w, code, found);
  b.d = to_f16(best);
  const float inv = quant::inverse(best);
  for (int i = 0; i < kSmall; ++i) codes[i] = table.code(x[i] * inv);
  pack_low_and_high(codes, b.qs);
  return b;
}

template <class Block>
void store(const Block& block, char* at) {
  std::memcpy(at, &block, sizeof block);
}

void quantize_block(DType type, const float* x, const float* w, char* at) {
  switch (type) {
    case DType::kQ4_0:
      return store(make_q4_0(x, w), at);
    case DType::kQ4_1:
      return store(make_q4_1(x, w), at);
    case DType::kQ5_0:
      return store(make_q5_0(x, w), at);
    case DType::kQ5_1:
      return store(make_q5_1(x, w), at);
    case DType::kQ8_0:
      return store(make_q8_0(x, w), at);
    case DType::kIQ4_NL:
      return store(make_iq4_nl(x, w), at);
    case DType::kQ4_K:
      return store(quant::make_q4_k(x, w), at);
    case DType::kQ5_K:
      return store(quant::make_q5_k(x, w), at);
    case DType::kQ6_K:
      return store(quant::make_q6_k(x, w), at);
    default:
      MAMBA_CHECK(is_quantized(type));
  }
}

// The largest |x| whose scale fits into f16 for every type, with room for the search.
constexpr float kLargest = 60000;

}  // namespace

bool quantize(DType type, const float* values, const float* importance, int64_t elements,
              void* blocks) {
  const int64_t size = block_elements(type);
  MAMBA_CHECK(is_quantized(type) && elements % size == 0);
  char* at = static_cast<char*>(blocks);
  float weights[256];
  for (int64_t begin = 0; begin < elements; begin += size, at += block_bytes(type)) {
    const float* x = values + begin;
    float total = 0;
    for (int64_t i = 0; i < size; ++i) {
      weights[i] = importance != nullptr ? importance[begin + i] : 1.0f;
      if (!(std::fabs(x[i]) <= kLargest) || !(weights[i] >= 0) || std::isinf(weights[i])) {
        return false;
      }
      total += weights[i];
    }
    // Sums of squares stay far from the limits of f32; a block that was never used counts evenly.
    const float mean = total / static_cast<float>(size);
    const bool even = !(mean > 1e-30f) || std::isinf(total);
    for (int64_t i = 0; i < size; ++i) weights[i] = even ? 1.0f : weights[i] / mean;
    quantize_block(type, x, weights, at);
  }
  return true;
}

}  // namespace mamba
