// SPDX-License-Identifier: Apache-2.0
// Products of up to 64 rows of 16 bits on tensor cores. A block has some rows of the weight and a
// slice of the columns, which pass through a ring of tiles in shared memory, those of the weight
// from before the kernel in front has ended. The blocks of a cluster have the slices of the same
// rows, and send their sums to each other.
#include "kernels/linear_rows_cuda.cuh"
#include "kernels/tensor_copy.cuh"

namespace mamba::cuda {
namespace {

constexpr int kWarps = 8;  // that multiply; one more brings tiles
constexpr int kThreads = (kWarps + 1) * kWarp;
constexpr int kMostRing = 100 * 1024;  // another block has room beside it
constexpr int kMostTiles = 8;          // of a ring

struct Tiles {
  int M, N, K;
  int slice, slices;  // columns of a block, whole tiles; blocks of a cluster
  int ring_bytes;
  int64_t y_stride;
  const float* bias;
  void* y;
  DType y_type;
  bool accumulate;
  bool vectors;  // of 4 neighbours in y are aligned
};

// What is [[maybe_unused]] is so before compute capability 9.0, where nothing launches the kernel.

// How the warps share 16 kDown rows of x and kAcross of the weight: places beside each other, and
// groups that take the tiles in turn.
template <int kDown, int kAcross>
struct Shares {
  static constexpr int kPlacesDown = kDown >= 4 ? 2 : 1, kPlacesAcross = kAcross >= 96 ? 4 : 2;
  static constexpr int kPlaces = kPlacesDown * kPlacesAcross, kGroups = kWarps / kPlaces;
  static constexpr int kMine = kDown / kPlacesDown;                // 16 rows of x each
  static constexpr int kMineAcross = kAcross / kPlacesAcross / 8;  // 8 rows of the weight each
  static constexpr int kRows = 16 * kDown;
  static constexpr int kTileBytes = (kAcross + kRows) * kTileRowBytes;
  // A place of the ring belongs to one group: the parity that it waits for would mean another tile
  // where that of another group has not come yet.
  static constexpr int kMost = kMostRing / kTileBytes;
  static constexpr int kRing = (kMost < kMostTiles ? kMost : kMostTiles) / kGroups * kGroups;
  static constexpr int kSumStride = kAcross + 8;  // of a row of sums: other banks
  static constexpr int kSumsBytes = kGroups * kRows * kSumStride * 4;
  static constexpr int kReceivedBytes = kRows * kAcross * 4;
  static_assert(kMine * kPlacesDown == kDown && kMineAcross * kPlacesAcross * 8 == kAcross &&
                kRing >= 3);

  static int ring_bytes(int tiles) {
    const int ring = (tiles < kRing ? tiles : kRing) * kTileBytes;
    return ring > kSumsBytes ? ring : kSumsBytes;
  }
};

[[maybe_unused]] __device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Columns n ... n + 3 of row m.
template <class Y>
__device__ __forceinline__ void put(const Tiles& p, int m, int n, float4 sum) {
  float v[4] = {sum.x, sum.y, sum.z, sum.w};
  Y* at = static_cast<Y*>(p.y) + m * p.y_stride + n;
  const bool whole = p.vectors && n + 4 <= p.N;
  float before[4] = {};
  if (p.accumulate && whole) load_n<4>(at, before);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (n + i >= p.N) break;
    if (p.bias != nullptr) v[i] += p.bias[n + i];
    if (p.accumulate) v[i] += whole ? before[i] : load(at + i);
    if (!whole) store(at + i, v[i]);
  }
  if (whole) store_n<4>(at, v);
}
[[maybe_unused]] __device__ __forceinline__ void put(const Tiles& p, int m, int n, float4 sum) {
  if (p.y_type == DType::kF32) {
    put<float>(p, m, n, sum);
  } else if (p.y_type == DType::kBF16) {
    put<bf16>(p, m, n, sum);
  } else {
    put<f16>(p, m, n, sum);
  }
}

[[maybe_unused]] __device__ __forceinline__ void load_two_matrices(uint32_t (&v)[2],
                                                                   uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(v[0]), "=r"(v[1])
               : "r"(address)
               : "memory");
}

// c += x w for a warp's place in a tile; at: where this lane reads its rows.
template <class T, class S>
__device__ __forceinline__ void multiply_tile(float (&c)[S::kMine][S::kMineAcross][4],
                                              uint32_t x_at, uint32_t w_at, uint32_t w_last) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kTileColumns / 16; ++i) {
    const uint32_t x_part = ((2 * i + lane / 16) ^ (lane % 8)) * 16;
    const uint32_t w_part = ((2 * i + lane / 8 % 2) ^ (lane % 8)) * 16;
    FragmentA<T> a[S::kMine];
    FragmentB<T> b[S::kMineAcross];
#pragma unroll
    for (int m = 0; m < S::kMine; ++m) {
      load_matrices<false>(a[m].v, x_at + x_part + m * 16 * kTileRowBytes);
    }
#pragma unroll
    for (int n = 0; n + 1 < S::kMineAcross; n += 2) {
      uint32_t v[4];
      load_matrices<false>(v, w_at + w_part + n * 8 * kTileRowBytes);
      b[n].v[0] = v[0], b[n].v[1] = v[1], b[n + 1].v[0] = v[2], b[n + 1].v[1] = v[3];
    }
    if constexpr (S::kMineAcross % 2 != 0)
      load_two_matrices(b[S::kMineAcross - 1].v, w_last + w_part);
#pragma unroll
    for (int m = 0; m < S::kMine; ++m) {
#pragma unroll
      for (int n = 0; n < S::kMineAcross; ++n) mma(c[m][n], a[m], b[n]);
    }
  }
}

template <class T, int kDown, int kAcross>
__global__ void __launch_bounds__(kThreads, 2)
    tiles_kernel(const __grid_constant__ Tiles p, const __grid_constant__ CUtensorMap weight,
                 const __grid_constant__ CUtensorMap x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using S = Shares<kDown, kAcross>;
  constexpr int kRing = S::kRing, kGroups = S::kGroups;
  constexpr int kWeightBytes = kAcross * kTileRowBytes;
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ Barrier full[kRing], empty[kRing], received;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int rank = static_cast<int>(blockIdx.x) % p.slices;
  const int n0 = static_cast<int>(blockIdx.x) / p.slices * kAcross;
  const int begin = rank * p.slice, end = begin + p.slice < p.K ? begin + p.slice : p.K;
  const int steps = end > begin ? (end - begin + kTileColumns - 1) / kTileColumns : 0;
  const int first = steps < kRing ? steps : kRing;                        // tiles
  const int own_rows = p.M > rank ? (p.M - rank - 1) / p.slices + 1 : 0;  // rank, rank + slices...

  const auto bring = [&](const CUtensorMap& map, int step, int row, int at) {
    const int i = step % kRing;
    copy_tile(shared + i * S::kTileBytes + at, map, begin + step * kTileColumns, row, &full[i]);
  };
  const auto bring_weight = [&](int step) {
    arrive_and_expect(&full[step % kRing], S::kTileBytes);
    bring(weight, step, n0, 0);
  };
  if (threadIdx.x == kWarps * kWarp) {
    for (int i = 0; i < kRing; ++i) {
      start_barrier(&full[i], 1);
      start_barrier(&empty[i], S::kPlaces);
    }
    start_barrier(&received, 1);
    publish_barriers();
#pragma unroll 1
    for (int i = 0; i < first; ++i) bring_weight(i);
    prefetch_map(x);
    if (p.slices > 1) arrive_and_expect(&received, (p.slices - 1) * own_rows * kAcross * 4);
  }
  __syncthreads();
  if (p.slices > 1) arrive_at_cluster();
  wait_for_previous();

  auto* sums = reinterpret_cast<float*>(shared);  // (kGroups, kRows, kSumStride)
  if (warp == kWarps) {
    if (lane == 0) {
#pragma unroll 1
      for (int i = 0; i < first; ++i) bring(x, i, 0, kWeightBytes);
#pragma unroll 1
      for (int i = kRing; i < steps; ++i) {
        wait_for(&empty[i % kRing], (i / kRing - 1) & 1);
        bring_weight(i);
        bring(x, i, 0, kWeightBytes);
      }
    }
    __syncwarp();
    __syncthreads();
  } else {
    const int place = warp % S::kPlaces, group = warp / S::kPlaces;
    const int down = place / S::kPlacesAcross, across = place % S::kPlacesAcross;
    const int m0 = down * S::kMine * 16, w0 = across * S::kMineAcross * 8;
    float c[S::kMine][S::kMineAcross][4] = {};
    const uint32_t base = shared_address(shared);
    const uint32_t x_row = base + kWeightBytes + (m0 + lane % 16) * kTileRowBytes;
    const uint32_t w_row = base + (w0 + lane % 8 + lane / 16 * 8) * kTileRowBytes;
    const uint32_t w_last = base + (w0 + (S::kMineAcross - 1) * 8 + lane % 8) * kTileRowBytes;
#pragma unroll 1
    for (int step = group; step < steps; step += kGroups) {
      const int i = step % kRing;
      wait_for(&full[i], step / kRing & 1);
      const uint32_t at = i * S::kTileBytes;
      multiply_tile<T, S>(c, x_row + at, w_row + at, w_last + at);
      if (step + kRing < steps) {
        __syncwarp();
        if (lane == 0) arrive_at(&empty[i]);
      }
    }
    __syncthreads();
    float* to = sums + (group * S::kRows + m0 + lane / 4) * S::kSumStride + w0 + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < S::kMine; ++m) {
#pragma unroll
      for (int n = 0; n < S::kMineAcross; ++n) {
        float* low = to + m * 16 * S::kSumStride + n * 8;
        *reinterpret_cast<float2*>(low) = make_float2(c[m][n][0], c[m][n][1]);
        *reinterpret_cast<float2*>(low + 8 * S::kSumStride) = make_float2(c[m][n][2], c[m][n][3]);
      }
    }
  }
  __syncthreads();

  constexpr int kFours = kAcross / 4;
  const auto sum_of = [&](int m, int four) {
    const auto* from = reinterpret_cast<const float4*>(sums + m * S::kSumStride) + four;
    float4 v = *from;
#pragma unroll
    for (int i = 1; i < kGroups; ++i) v = add(v, from[i * S::kRows * S::kSumStride / 4]);
    return v;
  };
  const int columns = p.N - n0 < kAcross ? p.N - n0 : kAcross;
  if (p.slices == 1) {
#pragma unroll 1
    for (int e = threadIdx.x; e < p.M * kFours; e += kThreads) {
      const int m = e / kFours, n = e % kFours * 4;
      if (n < columns) put(p, m, n0 + n, sum_of(m, n / 4));
    }
    return;
  }
  // Row m is added up by block m % slices.
  auto* parts = reinterpret_cast<float4*>(shared + p.ring_bytes);  // (slices, rows, kFours)
  const int rows = S::kRows / p.slices;
  wait_for_cluster();
#pragma unroll 1
  for (int e = threadIdx.x; e < p.M * kFours; e += kThreads) {
    const int m = e / kFours, owner = m % p.slices;
    float4* at = parts + (rank * rows + m / p.slices) * kFours + e % kFours;
    const float4 v = sum_of(m, e % kFours);
    if (owner == rank) {
      *at = v;
    } else {
      send(address_in(at, owner), address_in(&received, owner), v);
    }
  }
  __syncthreads();
  wait_for(&received, 0);
#pragma unroll 1
  for (int e = threadIdx.x; e < own_rows * kFours; e += kThreads) {
    const int m = e / kFours * p.slices + rank, n = e % kFours * 4;
    float4 v = parts[e];
    for (int i = 1; i < p.slices; ++i) v = add(v, parts[i * rows * kFours + e]);
    if (n < columns) put(p, m, n0 + n, v);
  }
#endif
}

// ---- Host ----

struct Operands {
  const void *weight, *x;
  int64_t weight_stride, x_stride;
};

template <class T, int kDown, int kAcross>
void launch_tiles(Stream& stream, const char* name, Tiles p, const Operands& o, int slices) {
  using S = Shares<kDown, kAcross>;
  const int steps = static_cast<int>(ceil_div(p.K, kTileColumns));
  p.slices = slices;
  p.slice = static_cast<int>(ceil_div(steps, slices)) * kTileColumns;
  p.ring_bytes = S::ring_bytes(p.slice / kTileColumns);
  const int shared = p.ring_bytes + (slices > 1 ? S::kReceivedBytes : 0);
  CUtensorMap weight, x;
  if (!describe_tiles(stream, name, weight, o.weight, p.N, p.K, o.weight_stride, kAcross) ||
      !describe_tiles(stream, name, x, o.x, p.M, p.K, o.x_stride, S::kRows)) {
    return;
  }
  launch_clusters(stream, name, tiles_kernel<T, kDown, kAcross>,
                  dim3(static_cast<unsigned>(ceil_div(p.N, kAcross) * slices)), dim3(kThreads),
                  static_cast<size_t>(shared), slices, p, weight, x);
}

// Rows of the weight of a block, and blocks for slices of the columns.
struct Plan {
  int across, slices;
};
// As many blocks as an H200 of 132 multiprocessors takes beside the kernel behind them, and of
// those the ones with the most rows: 64 x 3072 x 768 took 4.3 us of 192 blocks, 4.8 of 128 and 5.2
// of 96, each behind the other.
Plan plan_of(int64_t N, int64_t K) {
  constexpr int64_t kMostBlocks = 216, kLeastSlice = 3 * kTileColumns;
  Plan best = {96, 1};
  int64_t most = 0;
  for (const int across : {16, 32, 48, 80, 96}) {
    for (int slices = 1; slices <= kMostCluster; slices *= 2) {
      const int64_t blocks = ceil_div(N, across) * slices;
      if (slices > 1 && K < slices * kLeastSlice) break;
      if (blocks > kMostBlocks || blocks < most) continue;
      best = {across, slices};
      most = blocks;
    }
  }
  return best;
}

template <class T, int kDown>
void launch_down(Stream& stream, const char* name, const Tiles& p, const Operands& o) {
  const Plan plan = plan_of(p.N, p.K);
  const auto run = [&]<int kAcross>() {
    launch_tiles<T, kDown, kAcross>(stream, name, p, o, plan.slices);
  };
  switch (plan.across) {
    case 16:
      return run.template operator()<16>();
    case 32:
      return run.template operator()<32>();
    case 48:
      return run.template operator()<48>();
    case 80:
      return run.template operator()<80>();
    default:
      return run.template operator()<96>();
  }
}

template <class T>
void launch_type(Stream& stream, const char* name, const Tiles& p, const Operands& o) {
  if (p.M <= 16) return launch_down<T, 1>(stream, name, p, o);
  if (p.M <= 32) return launch_down<T, 2>(stream, name, p, o);
  launch_down<T, 4>(stream, name, p, o);
}

}  // namespace

void multiply_tiles(Stream& stream, const char* name, const LinearArgs& a, CBuf weight,
                    int64_t weight_stride) noexcept {
  Tiles p = {};
  p.M = static_cast<int>(a.M), p.N = static_cast<int>(a.N), p.K = static_cast<int>(a.K);
  p.y_stride = a.y_stride;
  p.bias = a.bias.as<float>();
  p.y = a.y.data, p.y_type = a.y.dtype;
  p.accumulate = a.accumulate;
  p.vectors = rows_aligned(a.y, a.y_stride, 4 * dtype_size(a.y.dtype));
  const Operands o = {weight.data, a.x.data, weight_stride, a.M == 1 ? a.K : a.x_stride};
  if (weight.dtype == DType::kF16) {
    launch_type<f16>(stream, name, p, o);
  } else {
    launch_type<bf16>(stream, name, p, o);
  }
}

}  // namespace mamba::cuda
