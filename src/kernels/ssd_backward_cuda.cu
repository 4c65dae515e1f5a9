// SPDX-License-Identifier: Apache-2.0
// The backward pass of ssd for CUDA. One pass through time finds the state before every chunk, one
// from the end the gradient of the state after it (ssd_states_cuda.cu); then all chunks are
// computed at once (ssd_back.cuh).
#include "kernels/ssd_back.cuh"

namespace mamba::cuda {
namespace {

using namespace ssd;

constexpr const char* kName = "ssd_backward";

template <class T, int NP>
__global__ void __launch_bounds__(kThreads, 1) back_kernel(const __grid_constant__ Backward<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<BackMemory<T, NP>*>(shared);
  const Plan& p = a.plan;
  const int32_t of_group = p.of_group * p.parts, split = static_cast<int32_t>(blockIdx.y);
  const int32_t first = split % a.splits * a.per_block;
  const int32_t end = first + a.per_block < of_group ? first + a.per_block : of_group;
  const int warp = threadIdx.x / kWarp;
  const int64_t b = blockIdx.z;
  const BackBlock<T, NP> block{a,        memory,  b,    split / a.splits,
                               first,    end,     warp, static_cast<int>(threadIdx.x % kWarp),
                               warp % 4, warp / 4};
  const int64_t count = p.chunk_count(b);
  for (int64_t c = blockIdx.x; c < count; c += gridDim.x) {
    const Chunk chunk = p.chunk(b, c);
    // Where the gradient of the state after the chunk is.
    const int64_t after = c + 1 == count ? a.has_last ? p.slots - 1 : -1
                          : chunk.last   ? -1
                                         : p.chunk(b, c + 1).slot;
    block.run(chunk, after);
  }
}

// dB and dC of tokens that are no padding: sums over the blocks of a group.
template <class T>
__global__ void __launch_bounds__(256)
    add_splits_kernel(const float* __restrict__ partial, const int32_t* __restrict__ ids,
                      int64_t splits, int64_t rows, int64_t G, int64_t N, T* dB, int64_t dB_stride,
                      T* dC, int64_t dC_stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, width = G * 2 * N;
  if (i >= rows * width) return;
  const int64_t row = i / width, group = i % width / (2 * N), n = i % N;
  if (ids != nullptr && ids[row] < 0) return;
  float sum = 0;
  for (int64_t k = 0; k < splits; ++k) sum += partial[k * rows * width + i];
  if (i % (2 * N) < N) {
    store(dB + row * dB_stride + group * N + n, sum);
  } else {
    store(dC + row * dC_stride + group * N + n, sum);
  }
}
// out[i] += sums over `count` parts. A warp an element.
__global__ void __launch_bounds__(256)
    add_parts_kernel(const float* __restrict__ parts, int64_t count, int64_t n, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / kWarp;
  if (i >= n) return;
  const int lane = threadIdx.x % kWarp;
  float sum = 0;
  for (int64_t k = lane; k < count; k += kWarp) sum += parts[k * n + i];
  sum = warp_sum(sum);
  if (lane == 0) out[i] += sum;
}
void add_parts(Stream& stream, const float* parts, int64_t count, int64_t n, Buf out) {
  if (!out) return;
  launch(stream, kName, add_parts_kernel, dim3(static_cast<unsigned>(ceil_div(n, 8))), dim3(256), 0,
         parts, count, n, out.as<float>());
}

template <class T>
void backward(Stream& stream, const SsdBackwardArgs& a) {
  const int64_t NP = padded_states(a.N), of_group = a.H / a.G * ceil_div(a.P, kPart);
  const int64_t likely = 2 * ceil_div(a.L, kChunk), PN = a.P * a.N;
  Backward<T> k{};
  T *states, *gradients, *restart;
  float* reset = nullptr;
  int64_t zeros = 0, from_zeros = 0;
  Split split{};
  dim3 grid;
  for (Pieces pieces;;) {
    k.plan = make_plan(a, pieces);
    const int64_t chunks = k.plan.max_chunks < likely ? k.plan.max_chunks : likely;
    const int64_t of_row = a.H * k.plan.parts * kPart * NP;
    constexpr int64_t kBlocks = 132;
    const int64_t wanted = chunks * a.B * a.G * of_group / kBlocks;
    const int64_t parts = k.plan.parts;
    // With documents a row's sums over heads must not depend on how long or how many the rows are.
    constexpr int64_t kFixedHeads = 4;
    k.per_block = static_cast<int32_t>(a.doc_ids           ? kFixedHeads * parts
                                       : wanted < parts    ? parts
                                       : wanted < of_group ? wanted / parts * parts
                                                           : of_group);
    k.splits = static_cast<int32_t>(ceil_div(of_group, k.per_block));
    grid = dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(a.G * k.splits),
                static_cast<unsigned>(a.B));
    states = pieces.take<T>(a.B * k.plan.slots * of_row);
    gradients = pieces.take<T>(a.B * k.plan.slots * of_row);
    restart = a.doc_ids && a.S_reset ? pieces.take<T>(of_row) : nullptr;
    k.partial = k.splits > 1 ? pieces.take<float>(k.splits * a.B * a.L * a.G * 2 * a.N) : nullptr;
    split = make_split(k.plan, NP, pieces);
    from_zeros = pieces.used;
    k.partial_A = pieces.take<float>(a.B * chunks * a.H);
    k.partial_bias = pieces.take<float>(a.B * chunks * a.H);
    k.partial_D =
        a.dD ? pieces.take<float>(a.B * chunks * a.H * (a.D_has_hdim ? a.P : 1)) : nullptr;
    reset = a.doc_ids && a.dS_reset ? pieces.take<float>(a.B * a.H * PN) : nullptr;
    zeros = pieces.used - from_zeros;
    if (pieces.data != nullptr) {
      if (stream.failed != nullptr ||
          !expect_success(stream, kName,
                          cudaMemsetAsync(pieces.data + from_zeros, 0, static_cast<size_t>(zeros),
                                          cuda_stream(stream)))) {
        return;
      }
      break;
    }
    char* memory = stream.scratch<char>(pieces.used);
    if (memory == nullptr) return;
    pieces = {memory, 0};
  }
  prepare(stream, kName, k.plan, step_input(a), a.dt.dtype);
  k.step = step_input(a);
  k.x = source<T>(a.x, a.x_stride, a.P), k.dy = source<T>(a.dy, a.dy_stride, a.P);
  k.B = source<T>(a.Bm, a.B_stride, a.N), k.C = source<T>(a.Cm, a.C_stride, a.N);
  StatesArgs<T> s{};
  s.plan = k.plan, s.x = k.x, s.bc = k.B, s.states = states, s.split = split;
  s.first = a.S0.as<float>(), s.first_stride = a.s_stride, s.restart = a.S_reset.as<float>();
  if (a.L > 0) find_states<T, false>(stream, kName, s);
  StatesArgs<T> r{};
  r.plan = k.plan, r.x = k.dy, r.bc = k.C, r.states = gradients, r.split = split;
  r.first = a.dST.as<float>(), r.first_stride = a.H * PN;
  r.last = a.dS0.as<float>(), r.last_stride = a.H * PN, r.restart_gradient = reset;
  find_states<T, true>(stream, kName, r);
  if (a.L == 0) return;
  clear_padding(stream, kName, k.plan, a.dx, a.dx_stride, a.H * a.P);
  clear_padding(stream, kName, k.plan, a.ddt, a.ddt_stride, a.H);
  clear_padding(stream, kName, k.plan, a.dBm, a.dB_stride, a.G * a.N);
  clear_padding(stream, kName, k.plan, a.dCm, a.dC_stride, a.G * a.N);
  if (restart != nullptr) {
    const int64_t count = a.H * k.plan.parts * kPart * NP;
    launch(stream, kName, restart_kernel<T>, dim3(static_cast<unsigned>(ceil_div(count, 256))),
           dim3(256), 0, a.S_reset.as<float>(), a.P, a.N, NP, int64_t{k.plan.parts}, count,
           restart);
  }
  k.D = a.D.as<float>(), k.D_has_hdim = a.D_has_hdim;
  k.has_first = static_cast<bool>(a.S0), k.has_last = static_cast<bool>(a.dST);
  k.states = states, k.restart = restart, k.gradients = gradients;
  k.dx = a.dx.as<T>(), k.dx_stride = a.dx_stride, k.ddt = a.ddt.as<T>(),
  k.ddt_stride = a.ddt_stride;
  k.dx_pairs = rows_aligned(a.dx, a.dx_stride, 2 * dtype_size(a.dx.dtype)) && a.P % 2 == 0;
  k.dB = a.dBm.as<T>(), k.dB_stride = a.dB_stride, k.dC = a.dCm.as<T>(), k.dC_stride = a.dC_stride;
  const auto run = [&]<int kNP>() {
    launch(stream, kName, back_kernel<T, kNP>, grid, dim3(kThreads), sizeof(BackMemory<T, kNP>), k);
  };
  if (NP == 64) {
    run.template operator()<64>();
  } else if (NP == 128) {
    run.template operator()<128>();
  } else {
    run.template operator()<256>();
  }
  if (k.partial != nullptr) {
    const int64_t count = a.B * a.L * a.G * 2 * a.N;
    launch(stream, kName, add_splits_kernel<T>, dim3(static_cast<unsigned>(ceil_div(count, 256))),
           dim3(256), 0, k.partial, k.plan.ids, int64_t{k.splits}, a.B * a.L, a.G, a.N, k.dB,
           a.dB_stride, k.dC, a.dC_stride);
  }
  const int64_t blocks = a.B * grid.x;
  add_parts(stream, k.partial_A, blocks, a.H, a.dA);
  add_parts(stream, k.partial_bias, blocks, a.H, a.ddt_bias);
  add_parts(stream, k.partial_D, blocks, a.D_has_hdim ? a.H * a.P : a.H, a.dD);
  if (reset != nullptr) add_parts(stream, reset, a.B, a.H * PN, a.dS_reset);
}

}  // namespace

void ssd_backward(Stream& stream, const SsdBackwardArgs& a) noexcept {
  if (a.B == 0 || a.H == 0 || a.P == 0) return;
  if (padded_states(a.N) == 0) {
    expect_success(stream, kName, cudaErrorNotSupported);
    return;
  }
  with_training_type(a.x.dtype, [&]<class T>() { backward<T>(stream, a); });
}

}  // namespace mamba::cuda
