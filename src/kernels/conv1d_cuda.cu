// SPDX-License-Identifier: Apache-2.0
// conv1d for CUDA, forward: runs of tokens whose inputs are loaded several at a time.
#include "kernels/conv1d_cuda.cuh"

namespace mamba::cuda {
namespace {

using namespace conv;

constexpr int kVec = 2;               // channels of a thread
constexpr int64_t kRun = 32;          // tokens of a run, at most
constexpr int64_t kShortRun = 8;      // and at least
constexpr int kAtOnce = 8;            // tokens that are loaded together
constexpr int64_t kBlocks = 132 * 8;  // that fill a card

template <class T>
struct Output {
  bool silu;
  int64_t run, y_stride;
  T* y;
  void* state;  // state_out, or null: a kernel behind this one writes it
};

template <class T, int vec>
__device__ __forceinline__ void activate(float (&v)[vec]) {
#pragma unroll
  for (int i = 0; i < vec; ++i) v[i] *= sigmoid<T>(v[i]);
}

template <class T, int taps, int vec, bool documents>
__global__ void __launch_bounds__(kThreads) forward_kernel(Input<T> in, Output<T> out) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vec;
  if (c >= in.C) return;
  const int64_t b = blockIdx.z, begin = blockIdx.y * out.run;
  const int64_t end = begin + out.run < in.L ? begin + out.run : in.L;
  const int32_t* ids = in.ids(b);
  const T* x = in.x + b * in.L * in.x_stride + c;
  T* y = out.y + b * in.L * out.y_stride + c;
  float now[kAtOnce][vec];
  const auto fetch = [&](int64_t t) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (t + i < end) load_n<vec>(x + (t + i) * in.x_stride, now[i]);
    }
  };
  Window<taps, vec> w;
  w.load_weights(in, c);
  wait_for_previous();
  fetch(begin);
  Backwards sources(documents ? ids : nullptr, begin, taps);
#pragma unroll
  for (int j = taps - 2; j >= 0; --j) in.template read<vec>(b, sources.next(), c, w.before[j]);
  bool known = sources.knows_document();
  int32_t document = sources.document();
  for (int64_t t0 = begin; t0 < end; t0 += kAtOnce) {
    if (t0 != begin) fetch(t0);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t t = t0 + i;
      if (t >= end) break;
      if constexpr (documents) {
        if (ids[t] < 0) {
          const float zeros[vec] = {};
          store_global<vec>(y + t * out.y_stride, zeros);
          continue;
        }
        if (known && ids[t] != document) w.clear();
        known = true;
        document = ids[t];
      }
      float pre[vec];
      w.pre_activation(now[i], pre);
      w.push(now[i]);
      if (out.silu) activate<T>(pre);
      store_global<vec>(y + t * out.y_stride, pre);
    }
  }
  if (out.state == nullptr) return;
  // Of several runs the first alone has read the state, so it may write it.
  if (gridDim.y > 1) {
    if (blockIdx.y != 0) return;
#pragma unroll
    for (int j = 0; j < taps - 1; ++j) {
      load_n<vec>(x + (in.L - (taps - 1) + j) * in.x_stride, w.before[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < taps - 1; ++j) {
    in.template write_state<vec>(out.state, b, j, c, w.before[j]);
  }
}

// Any number of taps: a thread for a token and a channel.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_any_kernel(Input<T> in, Output<T> out) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= in.C) return;
  const int64_t b = blockIdx.z;
  const int32_t* ids = in.ids(b);
  for (int64_t t = blockIdx.y; t < in.L; t += gridDim.y) {
    T* y = out.y + (b * in.L + t) * out.y_stride + c;
    if (ids != nullptr && ids[t] < 0) {
      store(y, 0);
      continue;
    }
    Backwards sources(ids, t, in.K);
    if (ids != nullptr) sources.expect(ids[t]);
    float v[1], sum[1] = {in.bias != nullptr ? in.bias[c] : 0};
    in.template read<1>(b, t, c, v);
    sum[0] = fmaf(in.weight[c * in.K + in.K - 1], v[0], sum[0]);
    for (int64_t j = in.K - 2; j >= 0; --j) {
      in.template read<1>(b, sources.next(), c, v);
      sum[0] = fmaf(in.weight[c * in.K + j], v[0], sum[0]);
    }
    if (out.silu) activate<T>(sum);
    store(y, sum[0]);
  }
}

// The state behind the last token. state_out may be state_in: slot k reads no slot before k.
template <class T>
__global__ void __launch_bounds__(kThreads) state_kernel(Input<T> in, void* state_out) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= in.C) return;
  const int64_t b = blockIdx.y;
  for (int64_t k = 0; k < in.K - 1; ++k) {
    Backwards sources(in.ids(b), in.L, in.K);
    Source s = kZero;
    for (int64_t j = in.K - 2; j >= k; --j) s = sources.next();
    float v[1];
    in.template read<1>(b, s, c, v);
    in.template write_state<1>(state_out, b, k, c, v);
  }
}

}  // namespace

void conv1d_forward(Stream& stream, const Conv1dArgs& a) noexcept {
  const char* name = "conv1d_forward";
  const bool vectors =
      a.C % 4 == 0 && takes_vectors(a.x, a.x_stride, 4) && takes_vectors(a.y, a.y_stride, 4) &&
      takes_vectors(a.state_in, a.state_stride, 4) && takes_vectors(a.state_out, a.state_stride, 4);
  // Short runs wait for memory less often, long ones read what is before them less often.
  const int64_t across = ceil_div(a.C, kThreads * (vectors ? kVec : 1)) * a.B;
  int64_t run = kRun;
  while (a.L > kRun && run > kShortRun && across * ceil_div(a.L, run) < kBlocks) run /= 2;
  if (a.L > run * kMaxGridY) run = ceil_div(a.L, kMaxGridY);
  const int64_t runs = a.L > run ? ceil_div(a.L, run) : 1;
  with_type(a.x.dtype, [&]<class T>() {
    const Input<T> in = input_of<T>(a, a.state_in ? a.state_in.dtype : a.state_out.dtype);
    // With padding a later run may begin in the state too.
    const bool writes_state = a.state_out && a.K <= 4 && a.K >= 2 && (runs == 1 || !a.doc_ids);
    const Output<T> out = {a.silu, run, a.y_stride, a.y.as<T>(),
                           writes_state ? a.state_out.data : nullptr};
    const bool fast = with_taps(a.K, static_cast<bool>(a.doc_ids), [&]<int taps, bool documents>() {
      launch_early(stream, name,
                   vectors ? forward_kernel<T, taps, kVec, documents>
                           : forward_kernel<T, taps, 1, documents>,
                   grid_of(a.C, vectors ? kVec : 1, runs, a.B), dim3(kThreads), 0, in, out);
    });
    if (!fast) {
      launch(stream, name, forward_any_kernel<T>, grid_of(a.C, 1, a.L, a.B), dim3(kThreads), 0, in,
             out);
    }
    if (a.state_out && !writes_state) {
      launch(stream, name, state_kernel<T>, grid_of(a.C, 1, a.B, 1), dim3(kThreads), 0, in,
             a.state_out.data);
    }
  });
}

}  // namespace mamba::cuda
