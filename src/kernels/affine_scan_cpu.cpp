// SPDX-License-Identifier: Apache-2.0
// affine_scan on SIMD (f32) and in plain loops (f64): a lane is an element of D, rows are walked in
// slabs that stay in L1. The work is cut by shapes alone, so threads do not change results.
#include "kernels/affine_scan.h"
#include "kernels/simd.h"

namespace mamba::MAMBA_ISA {
namespace {

constexpr int64_t kSlab = 256;              // elements of D in a task
constexpr int64_t kBlock = 128;             // steps in a block of ScanOrder::kParallel
constexpr int64_t kParallelWork = 1 << 15;  // B L D below which one thread is faster

// One double with the interface of F32.
struct F64 {
  static constexpr int kLanes = 1;
  double v;
  static MAMBA_INLINE F64 zero() { return {0.0}; }
  static MAMBA_INLINE F64 set(double x) { return {x}; }
  static MAMBA_INLINE F64 load(const double* p) { return {*p}; }
  static MAMBA_INLINE F64 load_n(const double* p, int64_t n) { return {n > 0 ? *p : 0.0}; }
  MAMBA_INLINE void store(double* p) const { *p = v; }
  MAMBA_INLINE void store_n(double* p, int64_t n) const {
    if (n > 0) *p = v;
  }
};
MAMBA_INLINE F64 operator+(F64 a, F64 b) { return {a.v + b.v}; }
MAMBA_INLINE F64 operator*(F64 a, F64 b) { return {a.v * b.v}; }
MAMBA_INLINE F64 fma(F64 a, F64 b, F64 c) { return {a.v * b.v + c.v}; }

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using Vec = F32;
};
template <>
struct VecOf<double> {
  using Vec = F64;
};

MAMBA_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

template <class V, class T>
MAMBA_INLINE V load_part(const T* p, int64_t n) {
  return n >= V::kLanes ? V::load(p) : V::load_n(p, n);
}
template <class V, class T>
MAMBA_INLINE void store_part(V v, T* p, int64_t n) {
  if (n >= V::kLanes) {
    v.store(p);
  } else {
    v.store_n(p, n);
  }
}

// The part of a call that one task owns: steps [s0, s1) in the direction of the scan, elements
// [i, i + n) of D, of sequence b.
struct Part {
  int64_t b, s0, s1, i, n;
};

// Where element i of step s of sequence b is.
template <class Args>
MAMBA_INLINE int64_t place(const Args& p, const Part& part, int64_t s) {
  return (part.b * p.L + (p.reverse ? p.L - 1 - s : s)) * p.D + part.i;
}

struct Cut {
  int64_t blocks, block, slabs, tasks;
};

template <class Args>
MAMBA_INLINE Cut cut(const Args& p) {
  Cut c;
  c.block = p.order == ScanOrder::kParallel ? kBlock : p.L;
  c.blocks = p.order == ScanOrder::kParallel ? (p.L + kBlock - 1) / kBlock : 1;
  c.slabs = (p.D + kSlab - 1) / kSlab;
  c.tasks = p.B * c.blocks * c.slabs;
  return c;
}

template <class Args>
MAMBA_INLINE Part part_of(const Args& p, const Cut& c, int64_t task) {
  const int64_t i = task % c.slabs * kSlab, block = task / c.slabs % c.blocks;
  return {task / c.slabs / c.blocks, block * c.block, min64(p.L, (block + 1) * c.block), i,
          min64(kSlab, p.D - i)};
}

// H_t = a_t H_{t-1} + x_t over a part; `first` is the state before it or null (zero). The state of
// the step before is read back from h, where it is in L1.
template <class T>
void run_forward(const AffineScanArgs& p, const Part& part, const T* first) {
  using V = typename VecOf<T>::Vec;
  const T* before = first;
  for (int64_t s = part.s0; s < part.s1; ++s) {
    const int64_t at = place(p, part, s);
    const T *a = p.a.as<T>() + at, *x = p.x.as<T>() + at;
    T* h = p.h.as<T>() + at;
    for (int64_t i = 0; i < part.n; i += V::kLanes) {
      const int64_t n = part.n - i;
      const V state = before ? load_part<V>(before + i, n) : V::zero();
      store_part(fma(load_part<V>(a + i, n), state, load_part<V>(x + i, n)), h + i, n);
    }
    before = h;
  }
}

// dx = G, da = G_t h_{t-1} over a part, from its last step; `incoming` is a_{t+1} G_{t+1} there.
template <class T>
void run_backward(const AffineScanBackwardArgs& p, const Part& part, const T* incoming) {
  using V = typename VecOf<T>::Vec;
  const T *a_next = nullptr, *g_next = incoming;
  for (int64_t s = part.s1 - 1; s >= part.s0; --s) {
    const int64_t at = place(p, part, s);
    const T* dh = p.dh.as<T>() + at;
    const T* before = s > 0  ? p.h.as<T>() + place(p, part, s - 1)
                      : p.h0 ? p.h0.as<T>() + part.b * p.D + part.i
                             : nullptr;
    T *dx = p.dx.as<T>() + at, *da = p.da.as<T>() + at;
    for (int64_t i = 0; i < part.n; i += V::kLanes) {
      const int64_t n = part.n - i;
      V g = load_part<V>(dh + i, n);
      if (a_next) {
        g = fma(load_part<V>(a_next + i, n), load_part<V>(g_next + i, n), g);
      } else if (g_next) {
        g = g + load_part<V>(g_next + i, n);
      }
      store_part(g, dx + i, n);
      store_part(before ? g * load_part<V>(before + i, n) : V::zero(), da + i, n);
    }
    a_next = p.a.as<T>() + at;
    g_next = dx;
  }
  if (part.s0 > 0 || !p.dh0) return;
  T* dh0 = p.dh0.as<T>() + part.b * p.D + part.i;
  for (int64_t i = 0; i < part.n; i += V::kLanes) {
    const int64_t n = part.n - i;
    const V g = a_next ? load_part<V>(a_next + i, n) * load_part<V>(g_next + i, n) : V::zero();
    store_part(g, dh0 + i, n);
  }
}

// What a block does to the state that enters it: product * state + alone (the result from zero).
template <class T>
void block_alone(const AffineScanArgs& p, const Part& part, T* product, T* alone) {
  using V = typename VecOf<T>::Vec;
  for (int64_t i = 0; i < part.n; i += V::kLanes) {
    const int64_t n = part.n - i;
    V all = V::set(1), h = V::zero();
    for (int64_t s = part.s0; s < part.s1; ++s) {
      const int64_t at = place(p, part, s) + i;
      const V a = load_part<V>(p.a.as<T>() + at, n);
      all = all * a;
      h = fma(a, h, load_part<V>(p.x.as<T>() + at, n));
    }
    store_part(all, product + i, n);
    store_part(h, alone + i, n);
  }
}

template <class T>
void block_alone(const AffineScanBackwardArgs& p, const Part& part, T* product, T* alone) {
  using V = typename VecOf<T>::Vec;
  for (int64_t i = 0; i < part.n; i += V::kLanes) {
    const int64_t n = part.n - i;
    V all = V::set(1), incoming = V::zero();
    for (int64_t s = part.s1 - 1; s >= part.s0; --s) {
      const int64_t at = place(p, part, s) + i;
      const V a = load_part<V>(p.a.as<T>() + at, n);
      all = all * a;
      incoming = a * (load_part<V>(p.dh.as<T>() + at, n) + incoming);
    }
    store_part(all, product + i, n);
    store_part(incoming, alone + i, n);
  }
}

// Turns `alone` (B, blocks, D) into what enters each block; `first` (B, D) or null enters the
// first.
template <class T>
void carry(const Cut& c, int64_t b, int64_t D, bool from_last, const T* first, const T* product,
           T* alone) {
  for (int64_t i = 0; i < D; ++i) {
    T state = first ? first[b * D + i] : T(0);
    for (int64_t k = 0; k < c.blocks; ++k) {
      const int64_t at = (b * c.blocks + (from_last ? c.blocks - 1 - k : k)) * D + i;
      const T leaving = product[at] * state + alone[at];
      alone[at] = state;
      state = leaving;
    }
  }
}

template <class T>
MAMBA_INLINE void run(const AffineScanArgs& p, const Part& part, const T* entering) {
  run_forward(p, part, entering);
}
template <class T>
MAMBA_INLINE void run(const AffineScanBackwardArgs& p, const Part& part, const T* entering) {
  run_backward(p, part, entering);
}

// first: the state that enters the first step taken, (B, D) or null; from_last: blocks are taken
// from the end (the backward).
template <class T, class Args>
void scan(Stream& stream, const Args& p, const T* first, bool from_last) {
  const Cut c = cut(p);
  const int threads =
      p.B * p.L * p.D < kParallelWork ? 1 : static_cast<int>(min64(stream.threads, c.tasks));
  const bool blocks = c.blocks > 1;
  T* product = nullptr;
  T* entering = nullptr;  // (B, blocks, D)
  if (blocks) {
    product = stream.scratch<T>(2 * p.B * c.blocks * p.D);
    if (product == nullptr) return;
    entering = product + p.B * c.blocks * p.D;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < c.tasks; ++task) {
      const Part part = part_of(p, c, task);
      const int64_t at = task / c.slabs * p.D + part.i;
      block_alone(p, part, product + at, entering + at);
    }
    for (int64_t b = 0; b < p.B; ++b) carry(c, b, p.D, from_last, first, product, entering);
  }
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t task = 0; task < c.tasks; ++task) {
    const Part part = part_of(p, c, task);
    const T* enters = blocks  ? entering + task / c.slabs * p.D + part.i
                      : first ? first + part.b * p.D + part.i
                              : nullptr;
    run(p, part, enters);
  }
}

}  // namespace

void affine_scan_forward(Stream& stream, const AffineScanArgs& p) noexcept {
  if (p.B == 0 || p.D == 0 || p.L == 0) return;
  if (p.x.dtype == DType::kF64) {
    scan<double>(stream, p, p.h0.as<double>(), false);
  } else {
    scan<float>(stream, p, p.h0.as<float>(), false);
  }
}

void affine_scan_backward(Stream& stream, const AffineScanBackwardArgs& p) noexcept {
  if (p.B == 0 || p.D == 0) return;
  if (p.L == 0) {
    const auto bytes = static_cast<size_t>(p.B * p.D * dtype_size(p.a.dtype));
    if (p.dh0) memset(p.dh0.data, 0, bytes);
    return;
  }
  if (p.a.dtype == DType::kF64) {
    scan<double>(stream, p, nullptr, true);
  } else {
    scan<float>(stream, p, nullptr, true);
  }
}

}  // namespace mamba::MAMBA_ISA
