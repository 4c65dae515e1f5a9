// SPDX-License-Identifier: Apache-2.0
// Cases of products with weights in 4 and 8 bits.
#include <cstring>
#include <memory>

#include "base/check.h"
#include "base/rng.h"
#include "bench/kernel_cases.h"
#include "mamba/dtype.h"

namespace mamba {
namespace {

constexpr int64_t kBlock = 32;  // elements of a block of Q4_0 and Q8_0

DType type_of(const Shape& shape) {
  const int64_t bits = shape["bits"];
  if (bits != 4 && bits != 8) {
    fail(ErrorCode::kInvalidArgument, "[--shape] expected bits=4 or bits=8, got {}", bits);
  }
  return bits == 4 ? DType::kQ4_0 : DType::kQ8_0;
}

// K as asked for, in whole blocks.
int64_t columns_of(const Shape& shape) { return (shape["K"] + kBlock - 1) / kBlock * kBlock; }

// (N, K) blocks of random codes, each behind a scale of 1/64 in f16.
std::shared_ptr<std::vector<uint8_t>> random_blocks(DType type, int64_t N, int64_t K) {
  const uint16_t scale = 0x2400;
  auto bytes =
      std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(dtype_bytes(type, N * K)));
  const CounterRng rng(5);
  for (size_t i = 0; i < bytes->size(); ++i) (*bytes)[i] = static_cast<uint8_t>(rng.bits(i));
  for (size_t at = 0; at < bytes->size(); at += static_cast<size_t>(block_bytes(type))) {
    std::memcpy(bytes->data() + at, &scale, sizeof scale);
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
  return {
      {"linear_q_forward",
       {{"M", 1024}, {"N", 3072}, {"K", 768}, {"bits", 8}},
       build_linear_q_forward},
      {"linear_q_rows", {{"rows", 512}, {"N", 4096}, {"K", 768}, {"bits", 8}}, build_linear_q_rows},
  };
}

}  // namespace mamba
