// SPDX-License-Identifier: Apache-2.0
// linear_q for CUDA: x is rounded to 8-bit integers once, then a warp has a row of W, whose lanes
// take blocks of 32 columns in turn and multiply integers four at a time. The packed weight is the
// blocks as files have them, or those blocks taken apart (linear_q_cuda.cuh).
#include "kernels/linear_q_cuda.cuh"

namespace mamba::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;  // rows of W of a block of threads
constexpr int kRowsAtOnce = 4;     // rows of x that a warp multiplies with one unpacked block
constexpr int64_t kMaxGridY = 65535;

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
    const RoundedValue r = round_group(v);
    const int sum = warp_sum(r.q);
    to.q[m * K + j * kColumns + lane] = static_cast<int8_t>(r.q);
    if (lane != 0) continue;
    to.scale[m * groups + j] = r.scale;
    to.sum[m * groups + j] = static_cast<float>(sum);
  }
}

template <DType type, class Y>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp)
    product_kernel(int64_t M, int64_t N, int64_t K, Rounded x, Blocks weight, const float* bias,
                   Y* y, int64_t y_stride) {
  wait_for_previous();
  const int lane = threadIdx.x % kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (n >= N) return;
  const int64_t groups = K / kColumns;
  for (int64_t m0 = static_cast<int64_t>(blockIdx.y) * kRowsAtOnce; m0 < M;
       m0 += static_cast<int64_t>(gridDim.y) * kRowsAtOnce) {
    float sum[kRowsAtOnce] = {};
    for (int64_t j = lane; j < groups; j += kWarp) {
      Group g;
      unpack<type>(weight, n, j, g);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        if (m0 + i >= M) break;
        const int4* q = reinterpret_cast<const int4*>(x.q + (m0 + i) * K + j * kColumns);
        const int4 a = q[0], b = q[1];
        const int64_t at = (m0 + i) * groups + j;
        sum[i] = add_group(g, a, b, x.scale[at], x.sum[at], sum[i]);
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
__global__ void rows_kernel(int64_t K, const int32_t* ids, Blocks weight, Y* y) {
  wait_for_previous();
  const int64_t r = blockIdx.x, id = ids[r];
  const int lane = threadIdx.x % kWarp;
  for (int64_t j = threadIdx.x / kWarp; j < K / kColumns; j += blockDim.x / kWarp) {
    float v = 0;
    if (id >= 0) {
      Group g;
      unpack<type>(weight, id, j, g);
      int four = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) four = lane / 4 == i ? g.v[i] : four;
      const auto code = static_cast<int8_t>(four >> (8 * (lane % 4)));
      v = __fadd_rn(__fmul_rn(static_cast<float>(code), g.scale[lane / 16]), g.add);
    }
    store(y + r * K + j * kColumns + lane, v);
  }
}

// Blocks apart: a thread a block.
template <DType type, class Block>
__global__ void split_kernel(int64_t count, const Block* blocks, uint16_t* codes, f16* scales) {
  constexpr int kWords = code_bytes(type) / 2;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const auto* from = reinterpret_cast<const uint16_t*>(blocks[i].qs);
  for (int w = 0; w < kWords; ++w) codes[i * kWords + w] = from[w];
  scales[i] = blocks[i].d;
}

void split(Stream& stream, const char* name, const PackedLinear& packed, const char* blocks) {
  const int64_t count = packed.N * packed.K / kColumns;
  const auto run = [&]<DType type, class Block>() {
    auto* codes = static_cast<char*>(packed.data);
    launch(stream, name, split_kernel<type, Block>,
           dim3(static_cast<unsigned>(ceil_div(count, 256))), dim3(256), 0, count,
           reinterpret_cast<const Block*>(blocks), reinterpret_cast<uint16_t*>(codes),
           reinterpret_cast<f16*>(codes + count * code_bytes(type)));
  };
  if (packed.dtype == DType::kQ8_0) run.template operator()<DType::kQ8_0, BlockQ8_0>();
  if (packed.dtype == DType::kQ4_0) run.template operator()<DType::kQ4_0, BlockQ4_0>();
  if (packed.dtype == DType::kIQ4_NL) run.template operator()<DType::kIQ4_NL, BlockIQ4_NL>();
}

Blocks blocks_of(const PackedLinear& packed) {
  const auto* rows = static_cast<const char*>(packed.data);
  const int64_t groups = packed.K / kColumns;
  if (!is_split(packed.dtype)) return {rows, nullptr, dtype_bytes(packed.dtype, packed.K), groups};
  const int64_t row_bytes = groups * code_bytes(packed.dtype);
  return {rows, reinterpret_cast<const f16*>(rows + packed.N * row_bytes), row_bytes, groups};
}

}  // namespace

void linear_q_forward(Stream& stream, const LinearQArgs& a) noexcept {
  const char* name = "linear_q_forward";
  if (a.M == 0 || a.N == 0 || !expect_packed(stream, name, *a.packed, a.N, a.K)) return;
  const Blocks weight = blocks_of(*a.packed);
  if (multiply_few_rows(stream, name, a, weight)) return;
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
                   a.M, a.N, a.K, x, weight, a.bias.as<float>(), a.y.as<Y>(), a.y_stride);
    });
  });
}

void linear_q_pack(Stream& stream, const LinearQPackArgs& a) noexcept {
  const int64_t bytes = a.N * dtype_bytes(a.weight.dtype, a.K);
  *a.out =
      new_packed(stream, "linear_q_pack",
                 {a.N, a.K, kPackedOnCuda, Product::kF32, a.weight.dtype, nullptr, bytes, nullptr});
  if (*a.out == nullptr) return;
  const bool apart = is_split(a.weight.dtype);
  char* to = apart ? stream.scratch<char>(bytes) : static_cast<char*>((*a.out)->data);
  if (to == nullptr) return;
  expect_success(stream, "linear_q_pack",
                 cudaMemcpyAsync(to, a.weight.data, static_cast<size_t>(bytes), cudaMemcpyDefault,
                                 cuda_stream(stream)));
  if (apart) split(stream, "linear_q_pack", **a.out, to);
  // The weight may go once this returns.
  expect_success(stream, "linear_q_pack", cudaStreamSynchronize(cuda_stream(stream)));
}

void linear_q_rows(Stream& stream, const LinearQRowsArgs& a) noexcept {
  const DType type = a.packed->dtype;
  with_blocks(type, [&]<DType kType>() {
    with_type(a.y.dtype, [&]<class Y>() {
      launch_early(stream, "linear_q_rows", rows_kernel<kType, Y>,
                   dim3(static_cast<unsigned>(a.rows)), dim3(8 * kWarp), 0, a.packed->K,
                   a.ids.as<int32_t>(), blocks_of(*a.packed), a.y.as<Y>());
    });
  });
}

}  // namespace mamba::cuda
