// SPDX-License-Identifier: Apache-2.0
// conv1d for CUDA: a thread has some channels and walks over a run of tokens with the K - 1 tokens
// before it in registers. Runs of the backward go on past their end until the gradients of their
// own tokens are whole, so no run waits for another.
#include "kernels/conv1d.h"
#include "kernels/rows.cuh"

namespace mamba::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kRun = 32;          // tokens of a run of the forward
constexpr int64_t kBackwardRun = 64;  // at least, in the backward
constexpr int64_t kMaxGridY = 65535;
constexpr int64_t kMaxPartials = 512;  // rows of partial weight gradients

// Where a tap reads: a token t >= 0, slot k of the state as -2 - k, or zero.
using Source = int64_t;
constexpr Source kZero = -1;

// The sources before a token, youngest first.
class Backwards {
 public:
  // ids: doc_ids of the row or null; t: the token, or L for what is behind the last one.
  __device__ Backwards(const int32_t* ids, int64_t t, int64_t K) : ids_(ids), t_(t), slot_(K - 2) {}
  // Sources must belong to this document.
  __device__ void expect(int32_t id) {
    known_ = true;
    id_ = id;
  }
  __device__ bool knows_document() const { return known_; }
  __device__ int32_t document() const { return id_; }
  __device__ Source next() {
    if (ended_) return kZero;
    --t_;
    if (ids_ != nullptr) {
      while (t_ >= 0 && ids_[t_] < 0) --t_;
      if (t_ >= 0) {
        if (!known_) expect(ids_[t_]);
        if (ids_[t_] != id_) {
          ended_ = true;
          return kZero;
        }
      }
    }
    if (t_ >= 0) return t_;
    t_ = -1;
    return slot_ >= 0 ? -2 - slot_-- : kZero;
  }

 private:
  const int32_t* ids_;
  int64_t t_, slot_;
  int32_t id_ = 0;
  bool known_ = false, ended_ = false;
};

// What forward and backward share. Channels c .. c + vec of a row of x and its state.
template <class T>
struct Input {
  int64_t L, C, K, x_stride, state_stride;
  const T* x;
  const float *weight, *bias;
  const void* state;  // f32, or bf16
  bool state_is_bf16;
  const int32_t* doc_ids;

  template <int vec>
  __device__ void read(int64_t b, Source s, int64_t c, float (&v)[vec]) const {
    if (s >= 0) {
      load_n<vec>(x + (b * L + s) * x_stride + c, v);
    } else if (s < kZero && state != nullptr) {
      const int64_t at = b * state_stride + (-2 - s) * C + c;
      if (state_is_bf16) {
        load_n<vec>(static_cast<const bf16*>(state) + at, v);
      } else {
        load_n<vec>(static_cast<const float*>(state) + at, v);
      }
    } else {
#pragma unroll
      for (int i = 0; i < vec; ++i) v[i] = 0;
    }
  }
  // Slot k of the state `to`, of the type of the one that is read.
  template <int vec>
  __device__ void write_state(void* to, int64_t b, int64_t k, int64_t c,
                              const float (&v)[vec]) const {
    const int64_t at = b * state_stride + k * C + c;
    if (state_is_bf16) {
      store_n<vec>(static_cast<bf16*>(to) + at, v);
    } else {
      store_n<vec>(static_cast<float*>(to) + at, v);
    }
  }
  __device__ const int32_t* ids(int64_t b) const {
    return doc_ids == nullptr ? nullptr : doc_ids + b * L;
  }
};

// The taps and the values before a token for `vec` channels.
template <int taps, int vec>
struct Window {
  float weight[taps][vec], bias[vec], before[taps - 1][vec];

  template <class T>
  __device__ void load_weights(const Input<T>& in, int64_t c) {
#pragma unroll
    for (int i = 0; i < vec; ++i) {
      bias[i] = in.bias != nullptr ? in.bias[c + i] : 0;
#pragma unroll
      for (int j = 0; j < taps; ++j) weight[j][i] = in.weight[(c + i) * taps + j];
    }
  }
  // Forgets what came before: the first token of a document.
  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < taps - 1; ++j) {
#pragma unroll
      for (int i = 0; i < vec; ++i) before[j][i] = 0;
    }
  }
  __device__ void pre_activation(const float (&now)[vec], float (&pre)[vec]) const {
#pragma unroll
    for (int i = 0; i < vec; ++i) {
      pre[i] = bias[i];
#pragma unroll
      for (int j = 0; j < taps - 1; ++j) pre[i] = fmaf(weight[j][i], before[j][i], pre[i]);
      pre[i] = fmaf(weight[taps - 1][i], now[i], pre[i]);
    }
  }
  __device__ void push(const float (&now)[vec]) {
#pragma unroll
    for (int i = 0; i < vec; ++i) {
#pragma unroll
      for (int j = 0; j < taps - 2; ++j) before[j][i] = before[j + 1][i];
      before[taps - 2][i] = now[i];
    }
  }
};

// ---- Forward ----

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
  Window<taps, vec> w;
  w.load_weights(in, c);
  Backwards sources(documents ? ids : nullptr, begin, taps);
#pragma unroll
  for (int j = taps - 2; j >= 0; --j) in.template read<vec>(b, sources.next(), c, w.before[j]);
  bool known = sources.knows_document();
  int32_t document = sources.document();
  const T* x = in.x + b * in.L * in.x_stride + c;
  T* y = out.y + b * in.L * out.y_stride + c;
#pragma unroll 8
  for (int64_t t = begin; t < end; ++t) {
    float now[vec], pre[vec];
    if constexpr (documents) {
      if (ids[t] < 0) {
        const float zeros[vec] = {};
        store_n<vec>(y + t * out.y_stride, zeros);
        continue;
      }
      if (known && ids[t] != document) w.clear();
      known = true;
      document = ids[t];
    }
    load_n<vec>(x + t * in.x_stride, now);
    w.pre_activation(now, pre);
    w.push(now);
    if (out.silu) activate<T>(pre);
    store_n<vec>(y + t * out.y_stride, pre);
  }
  if (out.state == nullptr) return;
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

// ---- Backward ----

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

template <class T, int taps, int vec, bool documents>
__global__ void __launch_bounds__(kThreads) backward_kernel(Input<T> in, Gradients<T> g) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * vec;
  if (c >= in.C) return;
  const int64_t b = blockIdx.z, begin = blockIdx.y * g.run;
  const int64_t end = begin + g.run < in.L ? begin + g.run : in.L;
  const int32_t* ids = in.ids(b);
  Window<taps, vec> w;
  w.load_weights(in, c);
  // The sources in the window and the gradients that they have got so far.
  Source source[taps - 1];
  float got[taps - 1][vec] = {}, dweight[taps][vec] = {}, dbias[vec] = {};
  Backwards sources(documents ? ids : nullptr, begin, taps);
#pragma unroll
  for (int j = taps - 2; j >= 0; --j) {
    source[j] = sources.next();
    in.template read<vec>(b, source[j], c, w.before[j]);
  }
  bool known = sources.knows_document();
  int32_t document = sources.document();
  // Writes what source j has got, if it is this run's: a token of its own, or the state for the
  // first run.
  const auto give = [&](int j) {
    if (source[j] >= begin && source[j] < end) {
      store_n<vec>(g.dx + (b * in.L + source[j]) * g.dx_stride + c, got[j]);
    } else if (source[j] < kZero && begin == 0 && g.dstate_in != nullptr) {
      store_n<vec>(g.dstate_in + (b * (taps - 1) + (-2 - source[j])) * in.C + c, got[j]);
    }
  };
  // Past the end only while the window holds a token of this run.
  const int64_t stop = documents || in.L - end < taps - 1 ? in.L : end + taps - 1;
  bool whole = stop == in.L;  // the walk comes to the end of the row
#pragma unroll(documents ? 1 : 3)
  for (int64_t t = begin; t < stop; ++t) {
    if (documents && t >= end) {
      bool waits = begin == 0 && source[0] < kZero;
#pragma unroll
      for (int j = 0; j < taps - 1; ++j) waits = waits || (source[j] >= begin && source[j] < end);
      if (!waits) {
        whole = false;
        break;
      }
    }
    if constexpr (documents) {
      if (ids[t] < 0) {
        const float zeros[vec] = {};
        if (t < end) store_n<vec>(g.dx + (b * in.L + t) * g.dx_stride + c, zeros);
        continue;
      }
      if (known && ids[t] != document) {
#pragma unroll
        for (int j = 0; j < taps - 1; ++j) {
          give(j);
          source[j] = kZero;
#pragma unroll
          for (int i = 0; i < vec; ++i) got[j][i] = 0;
        }
        w.clear();
      }
      known = true;
      document = ids[t];
    }
    float now[vec], dpre[vec], pre[vec];
    in.template read<vec>(b, t, c, now);
    load_n<vec>(g.dy + (b * in.L + t) * g.dy_stride + c, dpre);
    if (g.silu) {
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
    give(0);
#pragma unroll
    for (int j = 0; j < taps - 2; ++j) {
      source[j] = source[j + 1];
#pragma unroll
      for (int i = 0; i < vec; ++i) got[j][i] = got[j + 1][i];
    }
    source[taps - 2] = t;
#pragma unroll
    for (int i = 0; i < vec; ++i) got[taps - 2][i] = dpre[i] * w.weight[taps - 1][i];
    w.push(now);
  }
#pragma unroll
  for (int j = 0; j < taps - 1; ++j) {
    if (whole && g.dstate_out != nullptr) {
      float more[vec];
      load_n<vec>(g.dstate_out + (b * (taps - 1) + j) * in.C + c, more);
#pragma unroll
      for (int i = 0; i < vec; ++i) got[j][i] += more[i];
    }
    give(j);
  }
  float* partial = g.partial + (b * gridDim.y + blockIdx.y) * in.C * (taps + 1);
#pragma unroll
  for (int i = 0; i < vec; ++i) {
#pragma unroll
    for (int j = 0; j < taps; ++j) partial[(c + i) * taps + j] = dweight[j][i];
    partial[in.C * taps + c + i] = dbias[i];
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

// ---- Launches ----

template <class T, class Args>
Input<T> input_of(const Args& a, DType state_dtype) {
  return {a.L,
          a.C,
          a.K,
          a.x_stride,
          a.state_stride,
          a.x.template as<T>(),
          a.weight.template as<float>(),
          a.bias.template as<float>(),
          a.state_in.data,
          state_dtype == DType::kBF16,
          a.doc_ids.template as<int32_t>()};
}

// Calls body.operator()<taps, documents>() for 2 to 4 taps; otherwise false.
template <class Body>
bool with_taps(int64_t K, bool documents, Body&& body) {
  const auto with_documents = [&]<int taps>() {
    if (documents) {
      body.template operator()<taps, true>();
    } else {
      body.template operator()<taps, false>();
    }
    return true;
  };
  if (K == 2) return with_documents.template operator()<2>();
  if (K == 3) return with_documents.template operator()<3>();
  if (K == 4) return with_documents.template operator()<4>();
  return false;
}

dim3 grid_of(int64_t C, int vec, int64_t rows, int64_t B) {
  return dim3(static_cast<unsigned>(ceil_div(C, kThreads * vec)),
              static_cast<unsigned>(rows < kMaxGridY ? rows : kMaxGridY), static_cast<unsigned>(B));
}

}  // namespace

void conv1d_forward(Stream& stream, const Conv1dArgs& a) noexcept {
  const char* name = "conv1d_forward";
  const int64_t longest = ceil_div(a.L, kMaxGridY), run = longest > kRun ? longest : kRun;
  const int64_t runs = a.L > run ? ceil_div(a.L, run) : 1;
  const bool vectors =
      a.C % 4 == 0 && takes_vectors(a.x, a.x_stride, 4) && takes_vectors(a.y, a.y_stride, 4) &&
      takes_vectors(a.state_in, a.state_stride, 4) && takes_vectors(a.state_out, a.state_stride, 4);
  with_type(a.x.dtype, [&]<class T>() {
    const Input<T> in = input_of<T>(a, a.state_in ? a.state_in.dtype : a.state_out.dtype);
    // One run has all of a channel, so it may write the state where it was read.
    const bool writes_state = a.state_out && runs == 1 && a.K <= 4 && a.K >= 2;
    const Output<T> out = {a.silu, run, a.y_stride, a.y.as<T>(),
                           writes_state ? a.state_out.data : nullptr};
    const bool fast = with_taps(a.K, static_cast<bool>(a.doc_ids), [&]<int taps, bool documents>() {
      launch(
          stream, name,
          vectors ? forward_kernel<T, taps, 4, documents> : forward_kernel<T, taps, 1, documents>,
          grid_of(a.C, vectors ? 4 : 1, runs, a.B), dim3(kThreads), 0, in, out);
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

// All buffers over time have one type.
void conv1d_backward(Stream& stream, const Conv1dBackwardArgs& a) noexcept {
  const char* name = "conv1d_backward";
  if (a.B == 0) return;
  const int64_t longest = ceil_div(a.B * a.L, kMaxPartials);
  const int64_t run = longest > kBackwardRun ? longest : kBackwardRun;
  const int64_t runs = a.L > run ? ceil_div(a.L, run) : 1;
  const int64_t width = a.C * (a.K + 1);
  float* partial = stream.scratch<float>(a.B * runs * width + 1);
  if (partial == nullptr) return;
  const bool vectors = a.C % 4 == 0 && takes_vectors(a.x, a.x_stride, 4) &&
                       takes_vectors(a.dy, a.dy_stride, 4) && takes_vectors(a.dx, a.dx_stride, 4) &&
                       takes_vectors(a.state_in, a.state_stride, 4) &&
                       takes_vectors(a.dstate_out, a.C, 4) && takes_vectors(a.dstate_in, a.C, 4);
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
      launch(
          stream, name,
          vectors ? backward_kernel<T, taps, 4, documents> : backward_kernel<T, taps, 1, documents>,
          grid_of(a.C, vectors ? 4 : 1, runs, a.B), dim3(kThreads), 0, in, g);
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
