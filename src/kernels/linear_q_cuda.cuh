// SPDX-License-Identifier: Apache-2.0
// Weights in blocks for the CUDA kernels of linear_q: from codes to 32 integers with their scales.
// Included by linear_q*_cuda.cu alone.
#pragma once

#include "kernels/linear_packed_cuda.cuh"
#include "kernels/linear_q.h"
#include "quant/blocks.h"

namespace mamba::cuda {

constexpr int kColumns = 32;  // of x that share a scale

// 32 integers v and what they are multiplied by and added to: weight = scale * v + add.
struct Group {
  int v[8];        // 4 int8 each
  float scale[2];  // of 16 each
  float add;
};

// Blocks lie at multiples of 2 bytes.
__device__ __forceinline__ uint32_t bytes4(const uint8_t* p) {
  const auto* h = reinterpret_cast<const uint16_t*>(p);
  return h[0] | static_cast<uint32_t>(h[1]) << 16;
}
__device__ __forceinline__ float half_at(const f16& at) { return to_float(at); }

// v[i] = codes - zero, four at a time, for codes below 64.
__device__ __forceinline__ void put_codes(const uint32_t (&codes)[8], int zero, Group& g) {
#pragma unroll
  for (int i = 0; i < 8; ++i) g.v[i] = __vsub4(codes[i], static_cast<unsigned>(zero) * 0x01010101u);
}
// The halves of bytes: elements i < 16 in the low ones, i + 16 in the high ones.
__device__ __forceinline__ void halves(const uint8_t* qs, uint32_t (&codes)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t both = bytes4(qs + 4 * i);
    codes[i] = both & 0x0f0f0f0fu;
    codes[i + 4] = both >> 4 & 0x0f0f0f0fu;
  }
}
// Bits 4 i .. 4 i + 3 of `bits` to bit 4 of the bytes of codes[i].
__device__ __forceinline__ void fifth_bits(uint32_t bits, uint32_t (&codes)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t four = bits >> (4 * i) & 15u;
    codes[i] |= ((four & 1) | (four & 2) << 7 | (four & 4) << 14 | (four & 8) << 21) << 4;
  }
}
__device__ __forceinline__ void same_scale(Group& g, float scale, float add) {
  g.scale[0] = g.scale[1] = scale;
  g.add = add;
}

// Scale and minimum of group j of Q4_K and Q5_K, as scale_of_group of quant/blocks.h.
__device__ __forceinline__ void k_scale(const uint8_t* scales, int j, int& scale, int& min) {
  if (j < 4) {
    scale = scales[j] & 63;
    min = scales[j + 4] & 63;
  } else {
    scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
    min = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
  }
}

// Whether linear_q_pack takes blocks apart: the codes of all rows, 16 or 32 bytes a group, then the
// scales of all groups. Then a lane reads its codes in 16 bytes at a time.
__host__ __device__ constexpr bool is_split(DType type) {
  return type == DType::kQ8_0 || type == DType::kQ4_0 || type == DType::kIQ4_NL;
}
__host__ __device__ constexpr int code_bytes(DType type) { return type == DType::kQ8_0 ? 32 : 16; }

// A packed matrix; `scales` where it is_split.
struct Blocks {
  const char* rows;
  const f16* scales;
  int64_t row_bytes, groups;
};

// Codes of a group of a split type, as they lie, to integers.
template <DType type>
__device__ __forceinline__ void decode(const uint4* raw, float scale, Group& g) {
  const uint4 low = raw[0];
  if constexpr (type == DType::kQ8_0) {
    const uint4 high = raw[1];
    g.v[0] = static_cast<int>(low.x), g.v[1] = static_cast<int>(low.y);
    g.v[2] = static_cast<int>(low.z), g.v[3] = static_cast<int>(low.w);
    g.v[4] = static_cast<int>(high.x), g.v[5] = static_cast<int>(high.y);
    g.v[6] = static_cast<int>(high.z), g.v[7] = static_cast<int>(high.w);
  } else {
    const uint32_t words[4] = {low.x, low.y, low.z, low.w};
    uint32_t codes[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = words[i] & 0x0f0f0f0fu;
      codes[i + 4] = words[i] >> 4 & 0x0f0f0f0fu;
    }
    if constexpr (type == DType::kQ4_0) {
      put_codes(codes, 8, g);
    } else {
      // kIQ4_NLValues, four to a word.
      constexpr uint32_t kValues[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        uint32_t v = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const uint32_t code = codes[i] >> (8 * e) & 15u;
          const uint32_t word = code < 8 ? (code < 4 ? kValues[0] : kValues[1])
                                         : (code < 12 ? kValues[2] : kValues[3]);
          v |= (word >> (8 * (code % 4)) & 255u) << (8 * e);
        }
        g.v[i] = static_cast<int>(v);
      }
    }
  }
  same_scale(g, scale, 0);
}

// Group `j` (32 columns) of a row of blocks of type `type`.
template <DType type>
__device__ __forceinline__ void unpack_blocks(const char* row, int64_t j, Group& g) {
  uint32_t codes[8];
  if constexpr (type == DType::kQ4_1) {
    const auto& b = reinterpret_cast<const BlockQ4_1*>(row)[j];
    halves(b.qs, codes);
    put_codes(codes, 0, g);
    same_scale(g, half_at(b.d), half_at(b.m));
  } else if constexpr (type == DType::kQ5_0) {
    const auto& b = reinterpret_cast<const BlockQ5_0*>(row)[j];
    halves(b.qs, codes);
    fifth_bits(bytes4(b.qh), codes);
    put_codes(codes, 16, g);
    same_scale(g, half_at(b.d), 0);
  } else if constexpr (type == DType::kQ5_1) {
    const auto& b = reinterpret_cast<const BlockQ5_1*>(row)[j];
    halves(b.qs, codes);
    fifth_bits(bytes4(b.qh), codes);
    put_codes(codes, 0, g);
    same_scale(g, half_at(b.d), half_at(b.m));
  } else if constexpr (type == DType::kQ6_K) {
    const auto& b = reinterpret_cast<const BlockQ6_K*>(row)[j / 8];
    const int h = static_cast<int>(j % 8) / 4, k = static_cast<int>(j % 4);
    const uint8_t* low = b.ql + 64 * h + 32 * (k % 2);
    const uint8_t* high = b.qh + 32 * h;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      codes[i] = (bytes4(low + 4 * i) >> (k < 2 ? 0 : 4) & 0x0f0f0f0fu) |
                 (bytes4(high + 4 * i) >> (2 * k) & 0x03030303u) << 4;
    }
    put_codes(codes, 32, g);
    const float d = half_at(b.d);
    g.scale[0] = d * static_cast<float>(b.scales[2 * (j % 8)]);
    g.scale[1] = d * static_cast<float>(b.scales[2 * (j % 8) + 1]);
    g.add = 0;
  } else {
    static_assert(type == DType::kQ4_K || type == DType::kQ5_K);
    using Block = std::conditional_t<type == DType::kQ4_K, BlockQ4_K, BlockQ5_K>;
    const auto& b = reinterpret_cast<const Block*>(row)[j / 8];
    const int group = static_cast<int>(j % 8);
    const uint8_t* qs = b.qs + 32 * (group / 2);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      codes[i] = bytes4(qs + 4 * i) >> (4 * (group % 2)) & 0x0f0f0f0fu;
      if constexpr (type == DType::kQ5_K) {
        codes[i] |= (bytes4(b.qh + 4 * i) >> group & 0x01010101u) << 4;
      }
    }
    put_codes(codes, 0, g);
    int scale, min;
    k_scale(b.scales, group, scale, min);
    same_scale(g, half_at(b.d) * static_cast<float>(scale),
               -half_at(b.dmin) * static_cast<float>(min));
  }
}

// Group `j` (32 columns) of row `n`.
template <DType type>
__device__ __forceinline__ void unpack(const Blocks& w, int64_t n, int64_t j, Group& g) {
  const char* row = w.rows + n * w.row_bytes;
  if constexpr (is_split(type)) {
    const auto* raw = reinterpret_cast<const uint4*>(row + j * code_bytes(type));
    decode<type>(raw, to_float(w.scales[n * w.groups + j]), g);
  } else {
    unpack_blocks<type>(row, j, g);
  }
}

// Calls body.operator()<type>().
template <class Body>
void with_blocks(DType type, Body&& body) {
  switch (type) {
    case DType::kQ4_0:
      return body.template operator()<DType::kQ4_0>();
    case DType::kQ4_1:
      return body.template operator()<DType::kQ4_1>();
    case DType::kQ5_0:
      return body.template operator()<DType::kQ5_0>();
    case DType::kQ5_1:
      return body.template operator()<DType::kQ5_1>();
    case DType::kQ4_K:
      return body.template operator()<DType::kQ4_K>();
    case DType::kQ5_K:
      return body.template operator()<DType::kQ5_K>();
    case DType::kQ6_K:
      return body.template operator()<DType::kQ6_K>();
    case DType::kIQ4_NL:
      return body.template operator()<DType::kIQ4_NL>();
    default:
      return body.template operator()<DType::kQ8_0>();
  }
}

// ---- x as integers ----

// What a lane has of 32 neighbours v, one a lane: its integer and the scale of all.
struct RoundedValue {
  int q;
  float scale;
};
__device__ __forceinline__ RoundedValue round_group(float v) {
  const bool finite = __all_sync(kAllLanes, isfinite(v));
  const float most = warp_max(fabsf(v));
  const float inverse = most > 0x1p-100f ? __fdiv_rn(127.0f, most) : 0.0f;
  return {finite ? __float2int_rn(__fmul_rn(v, inverse)) : 0,
          finite ? __fdiv_rn(most, 127.0f) : NAN};
}

// sum + scale of x * (the products of a group); `total` is the sum of x's integers.
__device__ __forceinline__ float add_group(const Group& g, int4 a, int4 b, float scale, float total,
                                           float sum) {
  int first = __dp4a(g.v[0], a.x, 0), second = __dp4a(g.v[4], b.x, 0);
  first = __dp4a(g.v[3], a.w, __dp4a(g.v[2], a.z, __dp4a(g.v[1], a.y, first)));
  second = __dp4a(g.v[7], b.w, __dp4a(g.v[6], b.z, __dp4a(g.v[5], b.y, second)));
  float part = fmaf(g.scale[0], static_cast<float>(first), g.scale[1] * static_cast<float>(second));
  part = fmaf(g.add, total, part);
  return fmaf(scale, part, sum);
}

// Few rows of x with a matrix that is_split, read at the speed of memory: the same bits as the
// general kernel. False, with nothing done, for other types, more rows or longer ones.
bool multiply_few_rows(Stream& stream, const char* name, const LinearQArgs& args,
                       const Blocks& weight) noexcept;

}  // namespace mamba::cuda
