// SPDX-License-Identifier: Apache-2.0
// conv1d for CUDA, backward. Runs go on past their end until the gradients of their own tokens are
// whole, so no run waits for another.
#include "kernels/conv1d_cuda.cuh"

namespace mamba::cuda {
namespace {

using namespace conv;

constexpr int64_t kRun = 16;           // tokens of a run, at least
constexpr int kAtOnce = 4;             // tokens of x and dy that are loaded together
constexpr int kVec = 2;                // channels of a thread
constexpr int64_t kBlocks = 132 * 4;   // that are resident at once
constexpr int64_t kMaxPartials = 512;  // rows of partial weight gradients

template <class T>
struct Gradients {
  bool silu;
  int64_t run, dy_stride, dx_stride;
  const T* dy;
  const float* dstate_out;
  T* dx;
  float* dstate_in;
  float* partial;  // (B * runs, C * (K + 1)): dweight as (C, K), then dbias
};

template <class T>
__device__ __forceinline__ float slope(float pre) {
  const float s = sigmoid<T>(pre);
  return s * (1 + pre * (1 - s));
}

// What one thread knows on its walk over the tokens of a run, and some behind it.
template <class T, int taps, int vec>
struct Walk {
  const Input<T>& in;
  const Gradients<T>& g;
  int64_t b, c, begin, end;
  Window<taps, vec> w;
  // Gradients that the values in the window have got so far.
  float got[taps - 1][vec] = {}, dweight[taps][vec] = {}, dbias[vec] = {};

  __device__ __forceinline__ Walk(const Input<T>& input, const Gradients<T>& gradients, int64_t c)
      : in(input), g(gradients), b(blockIdx.z), c(c), begin(blockIdx.y * gradients.run) {
    end = begin + g.run < in.L ? begin + g.run : in.L;
    w.load_weights(in, c);
  }

  // Writes what a source has got, if it is this run's: a token of its own, or the state for the
  // first run.
  __device__ __forceinline__ void give(Source source, const float (&v)[vec]) const {
    if (source >= begin && source < end) {
      store_global<vec>(g.dx + (b * in.L + source) * g.dx_stride + c, v);
    } else if (source < kZero && begin == 0 && g.dstate_in != nullptr) {
      store_global<vec>(g.dstate_in + (b * (taps - 1) + (-2 - source)) * in.C + c, v);
    }
  }
  // Token t, whose gradient is dpre; the oldest of the window leaves it behind give().
  __device__ __forceinline__ void take(int64_t t, const float (&now)[vec], float (&dpre)[vec]) {
    if (g.silu) {
      float pre[vec];
      w.pre_activation(now, pre);
#pragma unroll
      for (int i = 0; i < vec; ++i) dpre[i] *= slope<T>(pre[i]);
    }
    if (t < end) {
#pragma unroll
      for (int i = 0; i < vec; ++i) {
        dbias[i] += dpre[i];
#pragma unroll
        for (int j = 0; j < taps - 1; ++j) {
          dweight[j][i] = fmaf(dpre[i], w.before[j][i], dweight[j][i]);
        }
        dweight[taps - 1][i] = fmaf(dpre[i], now[i], dweight[taps - 1][i]);
      }
    }
#pragma unroll
    for (int j = 0; j < taps - 1; ++j) {
#pragma unroll
      for (int i = 0; i < vec; ++i) got[j][i] = fmaf(dpre[i], w.weight[j][i], got[j][i]);
    }
  }
  __device__ __forceinline__ void push(const float (&now)[vec], const float (&dpre)[vec]) {
#pragma unroll
    for (int i = 0; i < vec; ++i) {
#pragma unroll
      for (int j = 0; j < taps - 2; ++j) got[j][i] = got[j + 1][i];
      got[taps - 2][i] = dpre[i] * w.weight[taps - 1][i];
    }
    w.push(now);
  }
  // Source j at the end of a walk that came to the end of the row gets the gradient of the state.
  __device__ __forceinline__ void add_state(int j) {
    if (g.dstate_out == nullptr) return;
    float more[vec];
    load_n<vec>(g.dstate_out + (b * (taps - 1) + j) * in.C + c, more);
#pragma unroll
    for (int i = 0; i < vec; ++i) got[j][i] += more[i];
  }

  // Sources by their places: a token, or a slot of the state where that is negative.
  static __device__ __forceinline__ Source at(int64_t t) {
    return t >= 0 ? t : -2 - (t + taps - 1);
  }
  __device__ __forceinline__ void walk() {
    const int64_t stop = in.L - end < taps - 1 ? in.L : end + taps - 1;
#pragma unroll
    for (int j = 0; j < taps - 1; ++j) {
      in.template read<vec>(b, at(begin - (taps - 1) + j), c, w.before[j]);
    }
    const T* x = in.x + b * in.L * in.x_stride + c;
    const T* dy = g.dy + b * in.L * g.dy_stride + c;
    Vector<T, vec> ahead_x[kAtOnce], ahead_dy[kAtOnce];
    const auto fetch = [&](int64_t t) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (t + k >= stop) continue;
        ahead_x[k] = *reinterpret_cast<const Vector<T, vec>*>(x + (t + k) * in.x_stride);
        ahead_dy[k] = *reinterpret_cast<const Vector<T, vec>*>(dy + (t + k) * g.dy_stride);
      }
    };
    fetch(begin);
    for (int64_t t0 = begin; t0 < stop; t0 += kAtOnce) {
      float now[kAtOnce][vec], dpre[kAtOnce][vec];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
        for (int i = 0; i < vec; ++i) {
          now[k][i] = to_float(ahead_x[k].at[i]), dpre[k][i] = to_float(ahead_dy[k].at[i]);
        }
      }
      fetch(t0 + kAtOnce);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t t = t0 + k;
        if (t >= stop) break;
        take(t, now[k], dpre[k]);
        give(at(t - (taps - 1)), got[0]);
        push(now[k], dpre[k]);
      }
    }
#pragma unroll
    for (int j = 0; j < taps - 1; ++j) {
      if (stop == in.L) add_state(j);
      give(at(stop - (taps - 1) + j), got[j]);
    }
  }

  // The same with documents and padding.
  __device__ __forceinline__ void walk_documents(const int32_t* ids) {
    Source source[taps - 1];
    Backwards sources(ids, begin, taps);
#pragma unroll
    for (int j = taps - 2; j >= 0; --j) {
      source[j] = sources.next();
      in.template read<vec>(b, source[j], c, w.before[j]);
    }
    bool known = sources.knows_document();
    int32_t document = sources.document();
    bool whole = true;  // the walk comes to the end of the row
    for (int64_t t = begin; t < in.L; ++t) {
      if (t >= end) {  // past the end only while the window holds a token of this run
        bool waits = begin == 0 && source[0] < kZero;
#pragma unroll
        for (int j = 0; j < taps - 1; ++j) waits = waits || (source[j] >= begin && source[j] < end);
        if (!waits) {
          whole = false;
          break;
        }
      }
      if (ids[t] < 0) {
        const float zeros[vec] = {};
        if (t < end) store_global<vec>(g.dx + (b * in.L + t) * g.dx_stride + c, zeros);
        continue;
      }
      if (known && ids[t] != document) {
#pragma unroll
        for (int j = 0; j < taps - 1; ++j) {
          give(source[j], got[j]);
          source[j] = kZero;
#pragma unroll
          for (int i = 0; i < vec; ++i) got[j][i] = 0;
        }
        w.clear();
      }
      known = true;
      document = ids[t];
      float now[vec], dpre[vec];
      load_n<vec>(in.x + (b * in.L + t) * in.x_stride + c, now);
      load_n<vec>(g.dy + (b * in.L + t) * g.dy_stride + c, dpre);
      take(t, now, dpre);
      give(source[0], got[0]);
#pragma unroll
      for (int j = 0; j < taps - 2; ++j) source[j] = source[j + 1];
      source[taps - 2] = t;
      push(now, dpre);
    }
#pragma unroll
    for (int j = 0; j < taps - 1; ++j) {
      if (whole) add_state(j);
      give(source[j], got[j]);
    }
  }
};

template <class T, int taps, int vec, bool documents>
__global__ void __launch_bounds__(kThreads) backward_kernel(Input<T> in, Gradients<T> g) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vec;
  if (c >= in.C) return;
  Walk<T, taps, vec> walk(in, g, c);
  if constexpr (documents) {
    walk.walk_documents(in.ids(walk.b));
  } else {
    walk.walk();
  }
  float* partial = g.partial + (walk.b * gridDim.y + blockIdx.y) * in.C * (taps + 1);
#pragma unroll
  for (int i = 0; i < vec; ++i) {
#pragma unroll
    for (int j = 0; j < taps; ++j) partial[(c + i) * taps + j] = walk.dweight[j][i];
    partial[in.C * taps + c + i] = walk.dbias[i];
  }
}

// ---- Backward for any number of taps: slow, everything is recomputed where it is needed ----

// The gradient of the pre-activation of token t, which is no padding.
template <class T>
__device__ float dpre_of(const Input<T>& in, const Gradients<T>& g, int64_t b, int64_t t,
                         int64_t c) {
  const float dy = load(g.dy + (b * in.L + t) * g.dy_stride + c);
  if (!g.silu) return dy;
  const int32_t* ids = in.ids(b);
  Backwards sources(ids, t, in.K);
  if (ids != nullptr) sources.expect(ids[t]);
  float v[1], pre = in.bias != nullptr ? in.bias[c] : 0;
  in.template read<1>(b, t, c, v);
  pre = fmaf(in.weight[c * in.K + in.K - 1], v[0], pre);
  for (int64_t j = in.K - 2; j >= 0; --j) {
    in.template read<1>(b, sources.next(), c, v);
    pre = fmaf(in.weight[c * in.K + j], v[0], pre);
  }
  return dy * slope<T>(pre);
}

// What `tap` and the taps before it of the tokens behind token t (-1: the state) send back, from
// the first such token on; where the row ends before the taps do, dstate_out too.
template <class T>
__device__ float sent_back(const Input<T>& in, const Gradients<T>& g, int64_t b, int64_t t,
                           int64_t c, int64_t tap) {
  const int32_t* ids = in.ids(b);
  bool known = ids != nullptr && t >= 0;
  int32_t document = known ? ids[t] : 0;
  float sum = 0;
  for (++t; tap >= 0 && t < in.L; ++t) {
    if (ids != nullptr) {
      if (ids[t] < 0) continue;
      if (known && ids[t] != document) return sum;
      known = true;
      document = ids[t];
    }
    sum = fmaf(dpre_of(in, g, b, t, c), in.weight[c * in.K + tap], sum);
    --tap;
  }
  if (tap < 0 || g.dstate_out == nullptr) return sum;
  // The walk must not have passed over a document that begins behind: it went to the end.
  return sum + g.dstate_out[(b * (in.K - 1) + tap) * in.C + c];
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_any_kernel(Input<T> in, Gradients<T> g) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= in.C) return;
  const int64_t b = blockIdx.z;
  const int32_t* ids = in.ids(b);
  // Rows of the grid beyond L do the slots of the state.
  const int64_t slots = g.dstate_in != nullptr ? in.K - 1 : 0;
  for (int64_t t = blockIdx.y; t < in.L + slots; t += gridDim.y) {
    if (t >= in.L) {
      const int64_t k = t - in.L;
      g.dstate_in[(b * (in.K - 1) + k) * in.C + c] = sent_back(in, g, b, -1, c, k);
      continue;
    }
    float dx = 0;
    if (ids == nullptr || ids[t] >= 0) {
      dx = dpre_of(in, g, b, t, c) * in.weight[c * in.K + in.K - 1] +
           sent_back(in, g, b, t, c, in.K - 2);
    }
    store(g.dx + (b * in.L + t) * g.dx_stride + c, dx);
  }
}

// Gradients of the weights of a run: a thread for a channel and a tap, or the bias.
template <class T>
__global__ void __launch_bounds__(kThreads) weight_any_kernel(Input<T> in, Gradients<T> g) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= in.C * (in.K + 1)) return;
  const bool is_bias = i >= in.C * in.K;
  const int64_t c = is_bias ? i - in.C * in.K : i / in.K, j = i % in.K;
  const int64_t b = blockIdx.z, begin = blockIdx.y * g.run;
  const int64_t end = begin + g.run < in.L ? begin + g.run : in.L;
  const int32_t* ids = in.ids(b);
  float sum = 0;
  for (int64_t t = begin; t < end; ++t) {
    if (ids != nullptr && ids[t] < 0) continue;
    float v[1] = {1};
    if (!is_bias) {
      Backwards sources(ids, t, in.K);
      if (ids != nullptr) sources.expect(ids[t]);
      Source s = t;
      for (int64_t back = in.K - 1; back > j; --back) s = sources.next();
      in.template read<1>(b, s, c, v);
    }
    sum = fmaf(dpre_of(in, g, b, t, c), v[0], sum);
  }
  g.partial[(b * gridDim.y + blockIdx.y) * in.C * (in.K + 1) + i] = sum;
}

}  // namespace

// All buffers over time have one type.
void conv1d_backward(Stream& stream, const Conv1dBackwardArgs& a) noexcept {
  const char* name = "conv1d_backward";
  if (a.B == 0) return;
  const bool vectors = a.C % 4 == 0 && takes_vectors(a.x, a.x_stride, 4) &&
                       takes_vectors(a.dy, a.dy_stride, 4) && takes_vectors(a.dx, a.dx_stride, 4) &&
                       takes_vectors(a.state_in, a.state_stride, 4) &&
                       takes_vectors(a.dstate_out, a.C, 4) && takes_vectors(a.dstate_in, a.C, 4);
  // As many runs as are resident at once, where they are not too short then.
  const int64_t across = ceil_div(a.C, kThreads * (vectors ? kVec : 1)) * a.B;
  const int64_t resident = across < kBlocks ? kBlocks / across : 1;
  const auto at_least = [](int64_t a, int64_t b) { return a > b ? a : b; };
  const int64_t run =
      at_least(at_least(ceil_div(a.L, resident), ceil_div(a.B * a.L, kMaxPartials)), kRun);
  const int64_t runs = a.L > run ? ceil_div(a.L, run) : 1;
  const int64_t width = a.C * (a.K + 1);
  float* partial = stream.scratch<float>(a.B * runs * width + 1);
  if (partial == nullptr) return;
  with_training_type(a.x.dtype, [&]<class T>() {
    const Input<T> in = input_of<T>(a, DType::kF32);
    if (a.dy.dtype != a.x.dtype || a.dx.dtype != a.x.dtype) {
      expect_success(stream, name, cudaErrorNotSupported);
    }
    const Gradients<T> g = {a.silu,       run,
                            a.dy_stride,  a.dx_stride,
                            a.dy.as<T>(), a.dstate_out.as<float>(),
                            a.dx.as<T>(), a.dstate_in.as<float>(),
                            partial};
    const bool fast = with_taps(a.K, static_cast<bool>(a.doc_ids), [&]<int taps, bool documents>() {
      launch(stream, name,
             vectors ? backward_kernel<T, taps, kVec, documents>
                     : backward_kernel<T, taps, 1, documents>,
             grid_of(a.C, vectors ? kVec : 1, runs, a.B), dim3(kThreads), 0, in, g);
    });
    if (fast) return;
    launch(stream, name, backward_any_kernel<T>, grid_of(a.C, 1, a.L + a.K - 1, a.B),
           dim3(kThreads), 0, in, g);
    launch(stream, name, weight_any_kernel<T>, grid_of(width, 1, runs, a.B), dim3(kThreads), 0, in,
           g);
  });
  add_partials(stream, name, partial, a.B * runs, width, a.C * a.K, a.dweight.as<float>());
  if (a.dbias) {
    add_partials(stream, name, partial + a.C * a.K, a.B * runs, width, a.C, a.dbias.as<float>());
  }
}

}  // namespace mamba::cuda
