// SPDX-License-Identifier: Apache-2.0
// scan for CUDA, forward (see scan_walk.cuh) and step.
#include "kernels/scan_walk.cuh"

namespace mamba::cuda {
namespace {

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
    launch(stream, "scan_forward", chain_kernel,
           dim3(static_cast<unsigned>(ceil_div(a.B * a.N * a.E, 256))), dim3(256), 0, a.B,
           w.segments, a.N, a.E, w.in.A_t, w.h0, w.h_stride, w.segment_d, w.segment_h);
  }
  launch_walk<T, R, copies, Task::kOutput>(stream, "scan_forward", w);
}

template <class T>
struct Step {
  ScanInput<T> in;  // L = 1
  float* h;
  int64_t h_stride;
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
  float* state = w.h + b * w.h_stride + c;
  float h[kStates], rate[kStates], B[kStates], C[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int64_t n = kStates * part + i;
    const bool valid = n < N;
    rate[i] = valid ? decay_rate(w.in.A_t[n * E + c]) : -1.0f;
    h[i] = valid ? state[n * E] : 0.0f;
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
    if (n < N) state[n * E] = h[i];
  }
  if (part != 0) return;
  const bool has_z = w.in.z.data != nullptr;
  const float z = has_z ? load(w.in.z.data + b * w.in.z.stride + c) : 0.0f;
  const float y = fmaf(w.in.D != nullptr ? w.in.D[c] : 0.0f, u, sum);
  store(w.y + b * w.y_stride + c, has_z ? gate<T>(y, z) : y);
}

template <class T, int R>
void step(Stream& stream, const ScanStepArgs& a) {
  Step<T> w{scan_input<T>(a), a.h.as<float>(), a.h_stride, a.y.as<T>(), a.y_stride};
  w.in.L = 1;
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
    with_lanes(stream, "scan_step", a.N, [&]<int R>() { step<T, R>(stream, a); });
  });
}

}  // namespace mamba::cuda
