// SPDX-License-Identifier: Apache-2.0
// scan for CUDA, forward (see scan_walk.cuh) and step.
#include "kernels/choices.h"
#include "kernels/scan_chunks.cuh"
#include "kernels/scan_walk.cuh"
#include "kernels/step.cuh"

namespace mamba::cuda {
namespace {

// Lanes of a channel where there may be two: they take fewer instructions than four, but there are
// half as many warps.
template <class T>
int lanes_of_walk(const ScanArgs& a) {
  const int64_t two = a.B * a.E / Lanes<2>::kChannels, four = a.B * a.E / Lanes<4>::kChannels;
  const bool fills = two >= kEnoughWarps || four < kEnoughWarps;  // alone, or in segments
  return takes_copies(a, 2) && fills ? 2 : 4;
}

template <class T, int R, bool copies>
void forward(Stream& stream, const ScanArgs& a) {
  Walk<T> w{};
  w.in = scan_input<T>(a);
  w.in.L = a.L, w.in.ids = a.doc_ids.as<int32_t>();
  w.h0 = a.h0.as<float>(), w.hT = a.hT.as<float>(), w.h_stride = a.h_stride;
  w.y = a.y.as<T>(), w.y_stride = a.y_stride;
  cut(w, segments_of<T>(w.in.slabs(Lanes<R>::kChannels) * a.B, a.L, w.in.ids != nullptr));
  if (w.segments > 1) {
    const int64_t rows = a.B * w.segments;
    w.segment_h = stream.scratch<float>(rows * (a.N + 1) * a.E);
    if (w.segment_h == nullptr) return;
    w.segment_d = w.segment_h + rows * a.N * a.E;
    launch_walk<T, R, copies, Task::kLastStates>(stream, "scan_forward", w);
    launch_early(stream, "scan_forward", chain_kernel,
                 dim3(static_cast<unsigned>(ceil_div(a.B * a.N * a.E, kChainThreads))),
                 dim3(kChainThreads), 0, a.B, w.segments, a.N, a.E, w.in.A_t, w.h0, w.h_stride,
                 w.segment_d, w.segment_h);
  }
  launch_walk<T, R, copies, Task::kOutput>(stream, "scan_forward", w);
}

// Where all channels have a place on a card at once: in chunks of 512 tokens (scan_chunks.cuh).
// Not for fewer channels, which segments of a walk spread over more of the card.
template <class T>
bool forward_chunks(Stream& stream, const ScanArgs& a) {
  using Shape = chunks::Shape<3, 4, 2>;
  constexpr int64_t kProcessors = 132, kFewest = 100, kShortest = 512;
  const int64_t blocks = a.B * a.E / Shape::kChannels;
  if (a.doc_ids || a.L < kShortest || a.E / a.G % Shape::kChannels != 0 || blocks < kFewest ||
      blocks > kProcessors || !chunks::fits<T, Shape>(stream)) {
    return false;
  }
  chunks::Scan<T> w{};
  w.in = scan_input<T>(a);
  w.in.L = a.L;
  w.h0 = a.h0.as<float>(), w.hT = a.hT.as<float>(), w.h_stride = a.h_stride;
  w.y = a.y.as<T>(), w.y_stride = a.y_stride;
  chunks::launch_chunks<Shape>(stream, "scan_forward", w);
  return true;
}

template <class T>
struct Step {
  ScanInput<T> in;  // L = 1
  step::StateBuf h;
  T* y;
  int64_t y_stride;
};

template <class T, int R>
__global__ void __launch_bounds__(128) step_kernel(const __grid_constant__ Step<T> w) {
  constexpr int kChannels = Lanes<R>::kChannels, kStates = Lanes<R>::kStates;
  const int64_t E = w.in.E, N = w.in.N, slabs = (E + kChannels - 1) / kChannels;
  const int64_t job = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / kWarp;
  if (job >= slabs * w.in.B) return;
  const int lane = threadIdx.x % kWarp, part = lane / kChannels;
  const int64_t b = job / slabs, at = job % slabs * kChannels + lane % kChannels;
  const int64_t c = at < E ? at : E - 1;
  const int64_t state = b * w.h.stride + c;
  float h[kStates], rate[kStates], B[kStates], C[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int64_t n = kStates * part + i;
    const bool valid = n < N;
    rate[i] = valid ? decay_rate(w.in.A_t[n * E + c]) : -1.0f;
    h[i] = valid ? w.h.load(state + n * E) : 0.0f;
    B[i] = valid ? w.in.bc(w.in.Bm, b, c, n) : 0.0f;
    C[i] = valid ? w.in.bc(w.in.Cm, b, c, n) : 0.0f;
  }
  const float u = load(w.in.u.data + b * w.in.u.stride + c);
  float d = __fadd_rn(load(w.in.delta.data + b * w.in.delta.stride + c),
                      w.in.delta_bias != nullptr ? w.in.delta_bias[c] : 0.0f);
  if (w.in.softplus) d = softplus<T>(d);
  advance(h, rate, d, __fmul_rn(d, u), B);
  const float sum = channel_sum<R>(lane_output(h, C));
  if (at >= E) return;
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int64_t n = kStates * part + i;
    if (n < N) w.h.store(state + n * E, h[i]);
  }
  if (part != 0) return;
  const bool has_z = w.in.z.data != nullptr;
  const float z = has_z ? load(w.in.z.data + b * w.in.z.stride + c) : 0.0f;
  const float y = fmaf(w.in.D != nullptr ? w.in.D[c] : 0.0f, u, sum);
  store(w.y + b * w.y_stride + c, has_z ? gate<T>(y, z) : y);
}

// The same, to the same bits, where all channels share B and C of up to 16 states: a thread a
// channel, for many of them.
constexpr int kStepThreads = 128, kStepStates = 16;
template <class T>
__global__ void __launch_bounds__(kStepThreads)
    channel_step_kernel(const __grid_constant__ Step<T> w) {
  __shared__ float B[kStepStates], C[kStepStates];
  const int64_t E = w.in.E, b = blockIdx.y;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  const int64_t c = at < E ? at : E - 1;
  const int N = static_cast<int>(w.in.N);
  const float bias = w.in.delta_bias != nullptr ? w.in.delta_bias[c] : 0.0f;
  const float D = w.in.D != nullptr ? w.in.D[c] : 0.0f;
  float rate[kStepStates], h[kStepStates];
#pragma unroll
  for (int n = 0; n < kStepStates; ++n) rate[n] = n < N ? decay_rate(w.in.A_t[n * E + c]) : -1.0f;
  wait_for_previous();
  const int64_t state = b * w.h.stride + c;
#pragma unroll
  for (int n = 0; n < kStepStates; ++n) h[n] = n < N ? w.h.load(state + n * E) : 0.0f;
  const float u = load(w.in.u.data + b * w.in.u.stride + c);
  float d = __fadd_rn(load(w.in.delta.data + b * w.in.delta.stride + c), bias);
  const bool has_z = w.in.z.data != nullptr;
  const float z = has_z ? load(w.in.z.data + b * w.in.z.stride + c) : 0.0f;
  if (threadIdx.x < 2 * kStepStates) {
    const int n = threadIdx.x % kStepStates;
    const Rows<T>& from = threadIdx.x < kStepStates ? w.in.Bm : w.in.Cm;
    (threadIdx.x < kStepStates ? B : C)[n] = n < N ? load(from.data + b * from.stride + n) : 0.0f;
  }
  __syncthreads();
  if (at >= E) return;
  if (w.in.softplus) d = softplus<T>(d);
  const float du = __fmul_rn(d, u);
  constexpr int kPart = Lanes<4>::kStates;
  float sums[kStepStates / kPart];
#pragma unroll
  for (int part = 0; part < kStepStates / kPart; ++part) {
    float mine[kPart], of_rate[kPart], of_B[kPart], of_C[kPart];
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
      const int n = part * kPart + i;
      mine[i] = h[n], of_rate[i] = rate[n], of_B[i] = B[n], of_C[i] = C[n];
    }
    advance(mine, of_rate, d, du, of_B);
    sums[part] = lane_output(mine, of_C);
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
      const int n = part * kPart + i;
      if (n < N) w.h.store(state + n * E, mine[i]);
    }
  }
  const float sum = __fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3]));
  const float y = fmaf(D, u, sum);
  store(w.y + b * w.y_stride + c, has_z ? gate<T>(y, z) : y);
}

template <class T, int R>
void run_step(Stream& stream, const ScanStepArgs& a) {
  Step<T> w{scan_input<T>(a), step::state_buf(a.h, a.h_stride), a.y.as<T>(), a.y_stride};
  w.in.L = 1;
  const bool fits = a.N <= kStepStates && !w.in.constant && w.in.group == a.E;
  if (choose(stream, scan_step_request(a.B, a.E, a.u.dtype, fits)).way == Way::kChannels) {
    const dim3 grid(static_cast<unsigned>(ceil_div(a.E, kStepThreads)), static_cast<unsigned>(a.B));
    launch_early(stream, "scan_step", channel_step_kernel<T>, grid, dim3(kStepThreads), 0, w);
    return;
  }
  const int64_t jobs = ceil_div(a.E, Lanes<R>::kChannels) * a.B;
  launch(stream, "scan_step", step_kernel<T, R>, dim3(static_cast<unsigned>(ceil_div(jobs, 4))),
         dim3(128), 0, w);
}

}  // namespace

void scan_forward(Stream& stream, const ScanArgs& a) noexcept {
  if (a.B == 0 || a.E == 0) return;
  with_type(a.u.dtype, [&]<class T>() {
    with_lanes(stream, "scan_forward", a.N, [&]<int R>() {
      if constexpr (R == 4) {
        if (takes_copies(a, R) && rows_aligned(a.y, a.y_stride, 16)) {
          if constexpr (sizeof(T) == 2) {
            if (forward_chunks<T>(stream, a)) return;
          }
          if (lanes_of_walk<T>(a) == 2) return forward<T, 2, true>(stream, a);
          return forward<T, R, true>(stream, a);
        }
      }
      forward<T, R, false>(stream, a);
    });
  });
}

void scan_step(Stream& stream, const ScanStepArgs& a) noexcept {
  if (a.B == 0 || a.E == 0) return;
  with_type(a.u.dtype, [&]<class T>() {
    with_lanes(stream, "scan_step", a.N, [&]<int R>() { run_step<T, R>(stream, a); });
  });
}

}  // namespace mamba::cuda
