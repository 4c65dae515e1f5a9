// SPDX-License-Identifier: Apache-2.0
// Reference of affine_scan: one element of D at a time. Both orders are the formula itself here.
#include "kernels/affine_scan.h"
#include "kernels/with_float.h"

namespace mamba::MAMBA_ISA {
namespace {

// Row of step s of sequence b, in the direction of the scan.
int64_t row_of(int64_t b, int64_t L, int64_t s, bool reverse) {
  return b * L + (reverse ? L - 1 - s : s);
}

template <class T>
void forward(const AffineScanArgs& p) {
  const T *a = p.a.as<T>(), *x = p.x.as<T>(), *h0 = p.h0.as<T>();
  T* h = p.h.as<T>();
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t i = 0; i < p.D; ++i) {
      T state = h0 ? h0[b * p.D + i] : T(0);
      for (int64_t s = 0; s < p.L; ++s) {
        const int64_t at = row_of(b, p.L, s, p.reverse) * p.D + i;
        state = a[at] * state + x[at];
        h[at] = state;
      }
    }
  }
}

template <class T>
void backward(const AffineScanBackwardArgs& p) {
  const T *a = p.a.as<T>(), *h = p.h.as<T>(), *h0 = p.h0.as<T>(), *dh = p.dh.as<T>();
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t i = 0; i < p.D; ++i) {
      T incoming = 0;  // a_{t+1} G_{t+1}
      for (int64_t s = p.L - 1; s >= 0; --s) {
        const int64_t at = row_of(b, p.L, s, p.reverse) * p.D + i;
        const T first = h0 ? h0[b * p.D + i] : T(0);
        const T before = s > 0 ? h[row_of(b, p.L, s - 1, p.reverse) * p.D + i] : first;
        const T g = dh[at] + incoming;
        p.dx.as<T>()[at] = g;
        p.da.as<T>()[at] = g * before;
        incoming = a[at] * g;
      }
      if (p.dh0) p.dh0.as<T>()[b * p.D + i] = incoming;
    }
  }
}

}  // namespace

void affine_scan_forward(Stream&, const AffineScanArgs& p) noexcept {
  with_float(p.x.dtype, [&]<class T>() { forward<T>(p); });
}

void affine_scan_backward(Stream&, const AffineScanBackwardArgs& p) noexcept {
  with_float(p.a.dtype, [&]<class T>() { backward<T>(p); });
}

}  // namespace mamba::MAMBA_ISA
