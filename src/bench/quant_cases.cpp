// SPDX-License-Identifier: Apache-2.0
// Cases of products with weights in blocks of 4 to 8 bits.
#include <cstring>
#include <memory>
#include <utility>

#include "base/rng.h"
#include "bench/kernel_cases.h"
#include "mamba/dtype.h"

namespace mamba {
namespace {

DType type_of(const Shape& shape) { return static_cast<DType>(shape["type"]); }

// K as asked for, in whole blocks.
int64_t columns_of(const Shape& shape) {
  const int64_t block = block_elements(type_of(shape));
  return (shape["K"] + block - 1) / block * block;
}

// Where a block has its scales in f16, in bytes; the second is -1 where there is one alone.
std::pair<int64_t, int64_t> scales_of(DType type) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ6_K:
      return {block_bytes(type) - 2, -1};
    default:
      return {0, -1};
  }
}

// (N, K) blocks of random codes with scales of 1/64.
std::shared_ptr<std::vector<uint8_t>> random_blocks(DType type, int64_t N, int64_t K) {
  const uint16_t scale = 0x2400;
  const auto [first, second] = scales_of(type);
  auto bytes =
      std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(dtype_bytes(type, N * K)));
  const CounterRng rng(5);
  for (size_t i = 0; i < bytes->size(); ++i) (*bytes)[i] = static_cast<uint8_t>(rng.bits(i));
  for (size_t at = 0; at < bytes->size(); at += static_cast<size_t>(block_bytes(type))) {
    std::memcpy(bytes->data() + at + first, &scale, sizeof scale);
    if (second >= 0) std::memcpy(bytes->data() + at + second, &scale, sizeof scale);
  }
  return bytes;
}

// Outside of the timing: a->packed is the weight in the layout of the backend that runs.
template <class Args>
void pack_before(KernelCase& c, DType type, int64_t N, int64_t K, std::shared_ptr<Args> a) {
  auto packed = std::make_shared<PackedLinear*>(nullptr);
  auto blocks = random_blocks(type, N, K);
  c.prepare = [=](const Kernels& k, Stream& s) {
    k.linear_q_pack(s, LinearQPackArgs{N, K, CBuf(blocks->data(), type), packed.get()});
    a->packed = *packed;
  };
  c.finish = [=](const Kernels& k, Stream& s) {
    k.linear_unpack(s, LinearUnpackArgs{*packed});
    *packed = nullptr;
    a->packed = nullptr;
  };
}

void build_linear_q_forward(KernelCase& c) {
  const DType type = type_of(c.shape);
  const int64_t M = c.shape["M"], N = c.shape["N"], K = columns_of(c.shape);
  auto a = std::make_shared<LinearQArgs>();
  a->M = M, a->N = N, a->K = K;
  a->x = c.in(M * K), a->x_stride = K;
  a->y = c.out(M * N), a->y_stride = N;
  c.terms = K;
  c.cost.bytes += static_cast<double>(dtype_bytes(type, N * K));
  c.cost.flops = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
  pack_before(c, type, N, K, a);
  c.run = [a](const Kernels& k, Stream& s) { k.linear_q_forward(s, *a); };
}

void build_linear_q_rows(KernelCase& c) {
  const DType type = type_of(c.shape);
  const int64_t rows = c.shape["rows"], N = c.shape["N"], K = columns_of(c.shape);
  auto a = std::make_shared<LinearQRowsArgs>();
  a->rows = rows;
  a->ids = c.ids(rows, N);
  a->y = c.out(rows * K);
  c.cost.bytes += static_cast<double>(dtype_bytes(type, rows * K));
  pack_before(c, type, N, K, a);
  c.run = [a](const Kernels& k, Stream& s) { k.linear_q_rows(s, *a); };
}

}  // namespace

std::vector<KernelEntry> quant_kernel_entries() {
  constexpr auto kSample = static_cast<int64_t>(DType::kQ8_0);
  return {
      {"linear_q_forward",
       {{"M", 1024}, {"N", 3072}, {"K", 768}, {"type", kSample}},
       build_linear_q_forward},
      {"linear_q_rows",
       {{"rows", 512}, {"N", 4096}, {"K", 768}, {"type", kSample}},
       build_linear_q_rows},
  };
}

}  // namespace mamba
