// SPDX-License-Identifier: Apache-2.0
// embed for the CPU: forward copies rows in parallel; backward gives each task a range of columns
// and all rows in order, so that rows with the same id add up in the order of r.
#include "kernels/embed.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int64_t kColumns = 64;      // of a backward task: four cache lines of each row
constexpr int64_t kSerial = 1 << 15;  // elements below which threads do not pay

MAMBA_INLINE void copy_row(CBuf weight, int64_t at, int64_t dim, float* y) {
  if (weight.dtype == DType::kBF16) {
    const bf16* w = weight.as<bf16>() + at;
    for (int64_t d = 0; d < dim; ++d) y[d] = to_f32(w[d]);
  } else {
    memcpy(y, weight.as<float>() + at, sizeof(float) * static_cast<size_t>(dim));
  }
}

MAMBA_INLINE void add_range(const float* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) {
    (F32::load(to + i) + F32::load(from + i)).store(to + i);
  }
  (F32::load_n(to + i, n - i) + F32::load_n(from + i, n - i)).store_n(to + i, n - i);
}

}  // namespace

void embed_forward(Stream& stream, const EmbedArgs& a) noexcept {
  const int32_t* ids = a.ids.as<int32_t>();
  float* y = a.y.as<float>();
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (a.rows * a.dim >= kSerial)
  for (int64_t r = 0; r < a.rows; ++r) {
    if (ids[r] < 0) {
      memset(y + r * a.dim, 0, sizeof(float) * static_cast<size_t>(a.dim));
    } else {
      copy_row(a.weight, ids[r] * a.dim, a.dim, y + r * a.dim);
    }
  }
}

void embed_backward(Stream& stream, const EmbedBackwardArgs& a) noexcept {
  const int32_t* ids = a.ids.as<int32_t>();
  const float* dy = a.dy.as<float>();
  float* dweight = a.dweight.as<float>();
  const int64_t tasks = (a.dim + kColumns - 1) / kColumns;
#pragma omp parallel for num_threads(stream.threads) schedule(static) if (a.rows * a.dim >= kSerial)
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t d = t * kColumns;
    const int64_t n = a.dim - d < kColumns ? a.dim - d : kColumns;
    for (int64_t r = 0; r < a.rows; ++r) {
      if (ids[r] >= 0) add_range(dy + r * a.dim + d, n, dweight + ids[r] * a.dim + d);
    }
  }
}

}  // namespace mamba::MAMBA_ISA
