// SPDX-License-Identifier: Apache-2.0
// affine_scan for CUDA: a thread an element of D, blocks of time where there are too few of them: a
// first pass finds the state that every block alone ends with and the product of its a, a second
// one chains these, the third walks the blocks again from the states before them.
#include "kernels/affine_scan.h"
#include "kernels/cuda.cuh"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 128;

// One recurrence s_k = p_k * s_{k-1} + q_k over steps k of the direction that it runs in.
// Forward: p = a_t, q = x_t, out = s. Backward: s_k = a_t G_t with G_t = dh_t + s_{k-1}.
struct Scan {
  int64_t B, L, D, blocks, per_block;
  bool reverse;  // whether step 0 is the last token
  bool backward;
  const float *a, *x;  // x or dh
  const float* first;  // state before step 0, or null
  const float* h;      // backward: the result of the forward, and the state before it
  const float* h0;
  float *out, *da;         // h, or dx and da
  float* last;             // backward: dh0, or null
  float *ends, *products;  // (B, blocks, D)

  __device__ __forceinline__ int64_t at(int64_t b, int64_t k, int64_t i) const {
    return (b * L + (reverse ? L - 1 - k : k)) * D + i;
  }
};

template <bool ends_only>
__global__ void __launch_bounds__(kThreads) walk_kernel(const __grid_constant__ Scan s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t block = blockIdx.y, b = blockIdx.z;
  if (i >= s.D) return;
  const int64_t begin = block * s.per_block;
  const int64_t end = begin + s.per_block < s.L ? begin + s.per_block : s.L;
  const int64_t mine = (b * s.blocks + block) * s.D + i;
  float state = ends_only            ? 0.0f
                : s.blocks > 1       ? s.ends[mine]
                : s.first != nullptr ? s.first[b * s.D + i]
                                     : 0.0f;
  float product = 1;
#pragma unroll 4
  for (int64_t k = begin; k < end; ++k) {
    const int64_t at = s.at(b, k, i);
    const float a = s.a[at], x = s.x[at];
    if (!s.backward) {
      state = fmaf(a, state, x);
      if (!ends_only) s.out[at] = state;
    } else {
      const float g = x + state;
      if (!ends_only) {
        // The step before in the forward's direction is the next one here.
        const float before = k + 1 < s.L       ? s.h[s.at(b, k + 1, i)]
                             : s.h0 != nullptr ? s.h0[b * s.D + i]
                                               : 0.0f;
        s.da[at] = g * before;
        s.out[at] = g;
      }
      state = a * g;
    }
    if (ends_only) product *= a;
  }
  if (ends_only) {
    s.ends[mine] = state;
    s.products[mine] = product;
  } else if (s.last != nullptr && block + 1 == s.blocks) {
    s.last[b * s.D + i] = state;
  }
}

// ends: from the states that blocks alone end with to those they start from, in place.
__global__ void __launch_bounds__(kThreads) chain_kernel(const __grid_constant__ Scan s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  if (i >= s.D) return;
  float state = s.first == nullptr ? 0.0f : s.first[b * s.D + i];
  for (int64_t block = 0; block < s.blocks; ++block) {
    const int64_t mine = (b * s.blocks + block) * s.D + i;
    const float alone = s.ends[mine];
    s.ends[mine] = state;
    state = fmaf(s.products[mine], state, alone);
  }
}

void run(Stream& stream, const char* name, Scan s, ScanOrder order) {
  if (s.B == 0 || s.D == 0) return;
  constexpr int64_t kShortest = 64, kWanted = 132 * 2048;  // threads that fill a card
  const int64_t most = s.L / kShortest, wanted = kWanted / (s.B * s.D);
  s.blocks = order == ScanOrder::kSequential ? 1 : wanted < most ? wanted : most;
  if (s.blocks < 1) s.blocks = 1;
  s.per_block = s.L == 0 ? 1 : ceil_div(s.L, s.blocks);
  s.blocks = s.L == 0 ? 1 : ceil_div(s.L, s.per_block);
  const dim3 grid(static_cast<unsigned>(ceil_div(s.D, kThreads)), static_cast<unsigned>(s.blocks),
                  static_cast<unsigned>(s.B));
  if (s.blocks > 1) {
    s.ends = stream.scratch<float>(2 * s.B * s.blocks * s.D);
    if (s.ends == nullptr) return;
    s.products = s.ends + s.B * s.blocks * s.D;
    launch(stream, name, walk_kernel<true>, grid, dim3(kThreads), 0, s);
    launch(stream, name, chain_kernel, dim3(grid.x, grid.z), dim3(kThreads), 0, s);
  }
  launch(stream, name, walk_kernel<false>, grid, dim3(kThreads), 0, s);
}

}  // namespace

void affine_scan_forward(Stream& stream, const AffineScanArgs& p) noexcept {
  Scan s{};
  s.B = p.B, s.L = p.L, s.D = p.D, s.reverse = p.reverse;
  s.a = p.a.as<float>(), s.x = p.x.as<float>(), s.first = p.h0.as<float>(), s.out = p.h.as<float>();
  run(stream, "affine_scan_forward", s, p.order);
}

void affine_scan_backward(Stream& stream, const AffineScanBackwardArgs& p) noexcept {
  Scan s{};
  s.B = p.B, s.L = p.L, s.D = p.D, s.reverse = !p.reverse, s.backward = true;
  s.a = p.a.as<float>(), s.x = p.dh.as<float>(), s.h = p.h.as<float>(), s.h0 = p.h0.as<float>();
  s.out = p.dx.as<float>(), s.da = p.da.as<float>(), s.last = p.dh0.as<float>();
  run(stream, "affine_scan_backward", s, p.order);
}

}  // namespace mamba::cuda
