// SPDX-License-Identifier: Apache-2.0
// The backward pass of scan for CUDA. A first walk through time keeps the state of every 8th token
// (scan_walk.cuh), blocks of channels then go back through it (scan_back.cuh), and the sums of
// blocks are added in order.
#include "kernels/scan_back.cuh"

namespace mamba::cuda {
namespace {

constexpr const char* kName = "scan_backward";

template <class T, int R, bool copies, bool constant>
__global__ void __launch_bounds__(kThreads, BackLanes<T, R>::kBlocks)
    back_kernel(const __grid_constant__ Back<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  using Memory = BackMemory<T, R>;
  constexpr int kChannels = Memory::kChannels;
  auto& memory = *reinterpret_cast<Memory*>(shared);
  const ScanInput<T>& in = a.walk.in;
  const int64_t blocks = (in.slabs_of_group(kChannels) + kBlockWarps - 1) / kBlockWarps;
  if (threadIdx.x == 0) {
    const int64_t block = blockIdx.x % blocks, group = blockIdx.x / blocks;
    const int64_t begin = blockIdx.y * a.walk.per_segment, end = begin + a.walk.per_segment;
    memory.place = {blockIdx.z,
                    blockIdx.y,
                    block,
                    group,
                    begin,
                    end < in.L ? end : in.L,
                    group * in.slabs_of_group(kChannels) + block * kBlockWarps,
                    group * in.group + block * kBlockWarps * kChannels,
                    (group + 1) * in.group,
                    0};
    const int64_t width = memory.place.limit - memory.place.first_channel;
    constexpr int kWidth = kBlockWarps * kChannels;
    memory.place.width = width < kWidth ? static_cast<int>(width) : kWidth;
  }
  __syncthreads();
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
  const BackWalker<T, R, copies, constant> walker{a, memory, memory.warps[warp],
                                                  static_cast<int>(threadIdx.x % kWarp), warp};
  walker.run();
}

// segment_g: from gradients that segments alone pass back to those that reach their ends.
__global__ void __launch_bounds__(256)
    chain_back_kernel(int64_t B, int64_t segments, int64_t N, int64_t E,
                      const float* __restrict__ A_t, const float* __restrict__ dhT,
                      const float* __restrict__ segment_d, float* __restrict__ segment_g) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= B * N * E) return;
  const int64_t b = i / (N * E), at = i % (N * E), c = at % E;
  const float rate = decay_rate(A_t[at]);
  float g = dhT == nullptr ? 0.0f : dhT[i];
  for (int64_t s = segments - 1; s >= 0; --s) {
    float* mine = segment_g + (b * segments + s) * N * E + at;
    const float alone = *mine;
    *mine = g;
    g = fmaf(exp2_approx(segment_d[(b * segments + s) * E + c] * rate), g, alone);
  }
}

// dB and dC: the sums of `blocks` blocks. A thread a state of a row.
template <class T>
__global__ void __launch_bounds__(256)
    add_blocks_kernel(const float* __restrict__ partial, int64_t blocks, int64_t rows,
                      int64_t groups, int64_t N, int64_t kN, T* dB, int64_t dB_stride, T* dC,
                      int64_t dC_stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, width = groups * 2 * kN;
  if (i >= rows * width) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t k = 0; k < blocks; ++k) sum += partial[k * rows * width + i];
  const int64_t row = i / width, at = i % width, group = at / (2 * kN), n = at % kN;
  if (n >= N) return;
  if (at % (2 * kN) < kN) {
    store(dB + row * dB_stride + group * N + n, sum);
  } else {
    store(dC + row * dC_stride + group * N + n, sum);
  }
}
// out[i] += the sums of `count` parts.
template <class T>
__global__ void __launch_bounds__(256)
    add_parts_kernel(const float* __restrict__ parts, int64_t count, int64_t n, T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= n) return;
  float sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += parts[k * n + i];
  store(out + i, load(out + i) + sum);
}
template <class T>
void add_parts(Stream& stream, const float* parts, int64_t count, int64_t n, T* out) {
  if (out == nullptr) return;
  launch(stream, kName, add_parts_kernel<T>, dim3(static_cast<unsigned>(ceil_div(n, 256))),
         dim3(256), 0, parts, count, n, out);
}

// Segments so that places for blocks on a card are busy, at least 256 tokens each.
// More than one cost the first walk about as much again as it takes, a quarter of the whole.
int64_t back_segments(int64_t blocks, int64_t at_once, int64_t L) {
  constexpr int64_t kShortest = 256, kMost = 32;
  int64_t best = 1;
  double least = 0;
  for (int64_t s = 1; s <= kMost && (s == 1 || s * kShortest <= L); ++s) {
    const double cost = static_cast<double>(ceil_div(blocks * s, at_once)) /
                        static_cast<double>(s) * (s == 1 ? 1.0 : 1.25);
    if (s > 1 && cost >= least * 0.98) continue;
    best = s, least = cost;
  }
  return best;
}

template <class T, int R, bool copies, bool constant>
void backward(Stream& stream, const ScanBackwardArgs& a) {
  using Memory = BackMemory<T, R>;
  constexpr int kChannels = Memory::kChannels, kN = Memory::kN, kProcessors = 132;
  Back<T> p{};
  Walk<T>& w = p.walk;
  w.in = scan_input<T>(a);
  w.in.L = a.L, w.in.ids = a.doc_ids.as<int32_t>();
  w.h0 = a.h0.as<float>(), w.h_stride = a.h_stride;
  w.dy = {a.dy.as<T>(), a.dy_stride};
  const int64_t groups = a.E / w.in.group;
  const int64_t blocks = ceil_div(w.in.slabs_of_group(kChannels), kBlockWarps);
  cut(w, back_segments(blocks * groups * a.B, kProcessors * Memory::kBlocks, a.L));
  const int64_t parts = a.B * w.segments, NE = a.N * a.E, rows = a.B * a.L;
  p.slabs = w.in.slabs(kChannels), p.tiles = w.in.tiles(), p.groups = groups;
  const auto place = [&](float* memory) {  // returns how much there is
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* piece = memory == nullptr ? nullptr : memory + used;
      used += ceil_div(count, 32) * 32;
      return piece;
    };
    w.checkpoint_h = take(a.B * w.in.tiles() * w.in.slabs(kChannels) * kChannels * kN);
    if (w.segments > 1) {
      w.checkpoint_d = take(a.B * w.in.tiles() * a.E);
      w.segment_h = take(parts * NE), w.segment_g = take(parts * NE),
      w.segment_d = take(parts * a.E);
    }
    p.partial_A = take(parts * NE), p.partial_bias = take(parts * a.E),
    p.partial_D = take(parts * a.E);
    if (constant) {
      p.partial_B = take(parts * NE), p.partial_C = take(parts * NE);
    } else {
      p.partial_bc = take(blocks * rows * groups * 2 * kN);
    }
    return used;
  };
  float* memory = stream.scratch<float>(place(nullptr));
  if (memory == nullptr) return;
  place(memory);
  if (w.segments > 1) {
    launch_walk<T, R, copies, Task::kCheckpointsOfSegments>(stream, kName, w);
    const dim3 grid(static_cast<unsigned>(ceil_div(a.B * NE, 256)));
    launch(stream, kName, chain_kernel, grid, dim3(256), 0, a.B, w.segments, a.N, a.E, w.in.A_t,
           w.h0, w.h_stride, w.segment_d, w.segment_h);
    launch(stream, kName, chain_back_kernel, grid, dim3(256), 0, a.B, w.segments, a.N, a.E,
           w.in.A_t, a.dhT.as<float>(), w.segment_d, w.segment_g);
  } else {
    launch_walk<T, R, copies, Task::kCheckpoints>(stream, kName, w);
  }
  p.dhT = a.dhT.as<float>(), p.dh0 = a.dh0.as<float>();
  p.du = a.du.as<T>(), p.ddelta = a.ddelta.as<T>(), p.dz = a.dz.as<T>();
  p.du_stride = a.du_stride, p.ddelta_stride = a.ddelta_stride, p.dz_stride = a.dz_stride;
  launch(stream, kName, back_kernel<T, R, copies, constant>,
         dim3(static_cast<unsigned>(blocks * groups), static_cast<unsigned>(w.segments),
              static_cast<unsigned>(a.B)),
         dim3(kThreads), sizeof(Memory), p);
  add_parts(stream, p.partial_A, parts, NE, a.dA_t.as<float>());
  add_parts(stream, p.partial_bias, parts, a.E, a.ddelta_bias.as<float>());
  add_parts(stream, p.partial_D, parts, a.E, a.dD.as<float>());
  if (constant) {
    with_training_type(a.dBm.dtype, [&]<class G>() {
      add_parts(stream, p.partial_B, parts, NE, a.dBm.as<G>());
      add_parts(stream, p.partial_C, parts, NE, a.dCm.as<G>());
    });
  } else {
    launch(stream, kName, add_blocks_kernel<T>,
           dim3(static_cast<unsigned>(ceil_div(rows * groups * 2 * kN, 256))), dim3(256), 0,
           p.partial_bc, blocks, rows, groups, a.N, static_cast<int64_t>(kN), a.dBm.as<T>(),
           a.dB_stride, a.dCm.as<T>(), a.dC_stride);
  }
}

}  // namespace

void scan_backward(Stream& stream, const ScanBackwardArgs& a) noexcept {
  if (a.B == 0 || a.E == 0) return;
  if (a.L == 0) {
    if (!a.dh0 || stream.failed != nullptr) return;
    const size_t bytes = static_cast<size_t>(a.B * a.N * a.E) * sizeof(float);
    expect_success(stream, kName,
                   a.dhT ? cudaMemcpyAsync(a.dh0.data, a.dhT.data, bytes, cudaMemcpyDeviceToDevice,
                                           cuda_stream(stream))
                         : cudaMemsetAsync(a.dh0.data, 0, bytes, cuda_stream(stream)));
    return;
  }
  with_training_type(a.u.dtype, [&]<class T>() {
    with_lanes(stream, kName, a.N, [&]<int R>() {
      if (a.bc == ScanBC::kConstant) return backward<T, R, false, true>(stream, a);
      if constexpr (R == 4) {
        if (takes_copies(a, R) && rows_aligned(a.dy, a.dy_stride, 16) &&
            rows_aligned(a.du, a.du_stride, 16) && rows_aligned(a.ddelta, a.ddelta_stride, 16) &&
            rows_aligned(a.dz, a.dz_stride, 16)) {
          return backward<T, R, true, false>(stream, a);
        }
      }
      backward<T, R, false, false>(stream, a);
    });
  });
}

}  // namespace mamba::cuda
