// SPDX-License-Identifier: Apache-2.0
// What the two directions of conv1d share on CUDA: a thread has some channels and walks over a run
// of tokens with the K - 1 tokens before it in registers.
#pragma once

#include "kernels/conv1d.h"
#include "kernels/mma.cuh"
#include "kernels/rows.cuh"

namespace mamba::cuda::conv {

constexpr int kThreads = 128;
constexpr int64_t kMaxGridY = 65535;

// p[i] = v[i] in global memory, as whole words: of a struct the compiler stores every element.
template <int n, class T>
__device__ __forceinline__ void store_global(T* p, const float (&v)[n]) {
  constexpr int kStep = n * sizeof(T) > 16 ? 16 / sizeof(T) : n;
  constexpr int kWords = kStep * sizeof(T) / 4;
  if constexpr (kStep * sizeof(T) < 4) {
    store(p, v[0]);
  } else {
#pragma unroll
    for (int i = 0; i < n; i += kStep) {
      uint32_t word[kWords];
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        if constexpr (sizeof(T) == 4) {
          word[j] = __float_as_uint(v[i + j]);
        } else {
          word[j] = pack2<T>(v[i + 2 * j], v[i + 2 * j + 1]);
        }
      }
      if constexpr (kWords == 4) {
        __stwb(reinterpret_cast<uint4*>(p + i), make_uint4(word[0], word[1], word[2], word[3]));
      } else if constexpr (kWords == 2) {
        __stwb(reinterpret_cast<uint2*>(p + i), make_uint2(word[0], word[1]));
      } else {
        static_assert(kWords == 1);
        *reinterpret_cast<uint32_t*>(p + i) = word[0];
      }
    }
  }
}

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
      store_global<vec>(static_cast<bf16*>(to) + at, v);
    } else {
      store_global<vec>(static_cast<float*>(to) + at, v);
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

// ---- Host ----

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

inline dim3 grid_of(int64_t C, int vec, int64_t rows, int64_t B) {
  return dim3(static_cast<unsigned>(ceil_div(C, kThreads * vec)),
              static_cast<unsigned>(rows < kMaxGridY ? rows : kMaxGridY), static_cast<unsigned>(B));
}

}  // namespace mamba::cuda::conv
