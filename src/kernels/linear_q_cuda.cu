// SPDX-License-Identifier: Apache-2.0
// linear_q for CUDA: x is rounded to 8-bit integers once, then a warp has a row of W, whose lanes
// take blocks of 32 columns in turn and multiply integers four at a time. The packed weight is the
// blocks as files have them.
#include "kernels/linear_packed_cuda.cuh"
#include "kernels/linear_q.h"
#include "quant/blocks.h"

namespace mamba::cuda {
namespace {

constexpr int kColumns = 32;       // of x that share a scale
constexpr int kWarpsPerBlock = 4;  // rows of W of a block of threads
constexpr int kRowsAtOnce = 4;     // rows of x that a warp multiplies with one unpacked block
constexpr int64_t kMaxGridY = 65535;

// ---- Unpacking ----

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

// Group `j` (32 columns) of a row of blocks of type `type`.
template <DType type>
__device__ __forceinline__ void unpack(const char* row, int64_t j, Group& g) {
  uint32_t codes[8];
  if constexpr (type == DType::kQ8_0) {
    const auto& b = reinterpret_cast<const BlockQ8_0*>(row)[j];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      g.v[i] = static_cast<int>(bytes4(reinterpret_cast<const uint8_t*>(b.qs) + 4 * i));
    }
    same_scale(g, half_at(b.d), 0);
  } else if constexpr (type == DType::kQ4_0) {
    const auto& b = reinterpret_cast<const BlockQ4_0*>(row)[j];
    halves(b.qs, codes);
    put_codes(codes, 8, g);
    same_scale(g, half_at(b.d), 0);
  } else if constexpr (type == DType::kQ4_1) {
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
  } else if constexpr (type == DType::kIQ4_NL) {
    const auto& b = reinterpret_cast<const BlockIQ4_NL*>(row)[j];
    // kIQ4_NLValues, four to a word.
    constexpr uint32_t kValues[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
    halves(b.qs, codes);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t v = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t code = codes[i] >> (8 * e) & 15u;
        const uint32_t word =
            code < 8 ? (code < 4 ? kValues[0] : kValues[1]) : (code < 12 ? kValues[2] : kValues[3]);
        v |= (word >> (8 * (code % 4)) & 255u) << (8 * e);
      }
      g.v[i] = static_cast<int>(v);
    }
    same_scale(g, half_at(b.d), 0);
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

// ---- The product ----

// x as integers: q (M, K) int8; scale and sum (M, K / 32).
struct Rounded {
  int8_t* q;
  float* scale;
  float* sum;
};

// A warp a group of 32 columns, a lane a column.
template <class X>
__global__ void round_kernel(int64_t M, int64_t K, const X* x, int64_t stride, Rounded to) {
  wait_for_previous();
  const int lane = threadIdx.x % kWarp;
  const int64_t groups = K / kColumns;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (j >= groups) return;
  for (int64_t m = blockIdx.y; m < M; m += gridDim.y) {
    const float v = load(x + m * stride + j * kColumns + lane);
    const bool finite = __all_sync(kAllLanes, isfinite(v));
    const float most = warp_max(fabsf(v));
    const float inverse = most > 0x1p-100f ? __fdiv_rn(127.0f, most) : 0.0f;
    const int q = finite ? __float2int_rn(__fmul_rn(v, inverse)) : 0;
    const int sum = warp_sum(q);
    to.q[m * K + j * kColumns + lane] = static_cast<int8_t>(q);
    if (lane != 0) continue;
    to.scale[m * groups + j] = finite ? __fdiv_rn(most, 127.0f) : NAN;
    to.sum[m * groups + j] = static_cast<float>(sum);
  }
}

template <DType type, class Y>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp)
    product_kernel(int64_t M, int64_t N, int64_t K, Rounded x, const char* weight,
                   int64_t row_bytes, const float* bias, Y* y, int64_t y_stride) {
  wait_for_previous();
  const int lane = threadIdx.x % kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (n >= N) return;
  const char* row = weight + n * row_bytes;
  const int64_t groups = K / kColumns;
  for (int64_t m0 = static_cast<int64_t>(blockIdx.y) * kRowsAtOnce; m0 < M;
       m0 += static_cast<int64_t>(gridDim.y) * kRowsAtOnce) {
    float sum[kRowsAtOnce] = {};
    for (int64_t j = lane; j < groups; j += kWarp) {
      Group g;
      unpack<type>(row, j, g);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        if (m0 + i >= M) break;
        const int4* q = reinterpret_cast<const int4*>(x.q + (m0 + i) * K + j * kColumns);
        const int4 a = q[0], b = q[1];
        int first = __dp4a(g.v[0], a.x, 0), second = __dp4a(g.v[4], b.x, 0);
        first = __dp4a(g.v[3], a.w, __dp4a(g.v[2], a.z, __dp4a(g.v[1], a.y, first)));
        second = __dp4a(g.v[7], b.w, __dp4a(g.v[6], b.z, __dp4a(g.v[5], b.y, second)));
        const int64_t at = (m0 + i) * groups + j;
        float part =
            fmaf(g.scale[0], static_cast<float>(first), g.scale[1] * static_cast<float>(second));
        part = fmaf(g.add, x.sum[at], part);
        sum[i] = fmaf(x.scale[at], part, sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const float total = warp_sum(sum[i]);
      if (lane == 0 && m0 + i < M) {
        store(y + (m0 + i) * y_stride + n, total + (bias != nullptr ? bias[n] : 0));
      }
    }
  }
}

// A warp a group of 32 columns of a row.
template <DType type, class Y>
__global__ void rows_kernel(int64_t K, const int32_t* ids, const char* weight, int64_t row_bytes,
                            Y* y) {
  wait_for_previous();
  const int64_t r = blockIdx.x, id = ids[r];
  const int lane = threadIdx.x % kWarp;
  for (int64_t j = threadIdx.x / kWarp; j < K / kColumns; j += blockDim.x / kWarp) {
    float v = 0;
    if (id >= 0) {
      Group g;
      unpack<type>(weight + id * row_bytes, j, g);
      int four = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) four = lane / 4 == i ? g.v[i] : four;
      const auto code = static_cast<int8_t>(four >> (8 * (lane % 4)));
      v = __fadd_rn(__fmul_rn(static_cast<float>(code), g.scale[lane / 16]), g.add);
    }
    store(y + r * K + j * kColumns + lane, v);
  }
}

}  // namespace

void linear_q_forward(Stream& stream, const LinearQArgs& a) noexcept {
  const char* name = "linear_q_forward";
  if (a.M == 0 || a.N == 0 || !expect_packed(stream, name, *a.packed, a.N, a.K)) return;
  const int64_t groups = a.K / kColumns;
  char* memory = stream.scratch<char>(a.M * (a.K + 8 * groups) + 16);
  if (memory == nullptr) return;
  auto* scales = reinterpret_cast<float*>(memory + a.M * a.K);
  const Rounded x = {reinterpret_cast<int8_t*>(memory), scales, scales + a.M * groups};
  with_type(a.x.dtype, [&]<class X>() {
    launch_early(stream, name, round_kernel<X>,
                 dim3(static_cast<unsigned>(ceil_div(groups, kWarpsPerBlock)),
                      static_cast<unsigned>(a.M < kMaxGridY ? a.M : kMaxGridY)),
                 dim3(kWarpsPerBlock * kWarp), 0, a.M, a.K, a.x.as<X>(), a.x_stride, x);
  });
  const int64_t down = ceil_div(a.M, kRowsAtOnce);
  const dim3 grid(static_cast<unsigned>(ceil_div(a.N, kWarpsPerBlock)),
                  static_cast<unsigned>(down < kMaxGridY ? down : kMaxGridY));
  const DType type = a.packed->dtype;
  with_blocks(type, [&]<DType kType>() {
    with_type(a.y.dtype, [&]<class Y>() {
      launch_early(stream, name, product_kernel<kType, Y>, grid, dim3(kWarpsPerBlock * kWarp), 0,
                   a.M, a.N, a.K, x, static_cast<const char*>(a.packed->data),
                   dtype_bytes(type, a.K), a.bias.as<float>(), a.y.as<Y>(), a.y_stride);
    });
  });
}

void linear_q_pack(Stream& stream, const LinearQPackArgs& a) noexcept {
  const int64_t bytes = a.N * dtype_bytes(a.weight.dtype, a.K);
  *a.out =
      new_packed(stream, "linear_q_pack",
                 {a.N, a.K, kPackedOnCuda, Product::kF32, a.weight.dtype, nullptr, bytes, nullptr});
  if (*a.out == nullptr) return;
  expect_success(stream, "linear_q_pack",
                 cudaMemcpyAsync((*a.out)->data, a.weight.data, static_cast<size_t>(bytes),
                                 cudaMemcpyDefault, cuda_stream(stream)));
  // The weight may go once this returns.
  expect_success(stream, "linear_q_pack", cudaStreamSynchronize(cuda_stream(stream)));
}

void linear_q_rows(Stream& stream, const LinearQRowsArgs& a) noexcept {
  const DType type = a.packed->dtype;
  with_blocks(type, [&]<DType kType>() {
    with_type(a.y.dtype, [&]<class Y>() {
      launch_early(stream, "linear_q_rows", rows_kernel<kType, Y>,
                   dim3(static_cast<unsigned>(a.rows)), dim3(8 * kWarp), 0, a.packed->K,
                   a.ids.as<int32_t>(), static_cast<const char*>(a.packed->data),
                   dtype_bytes(type, a.packed->K), a.y.as<Y>());
    });
  });
}

}  // namespace mamba::cuda
