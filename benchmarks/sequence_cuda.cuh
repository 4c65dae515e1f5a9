// SPDX-License-Identifier: Apache-2.0
// What sequence_cuda.cu checks with: a stream with scratch, tensors on both sides, comparison.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/f16.h"
#include "kernels/affine_scan.h"
#include "kernels/scan.h"
#include "kernels/ssd.h"

namespace mamba {
#define MAMBA_KERNELS(X)                 \
  X(scan_forward, ScanArgs)              \
  X(scan_backward, ScanBackwardArgs)     \
  X(scan_step, ScanStepArgs)             \
  X(ssd_forward, SsdArgs)                \
  X(ssd_backward, SsdBackwardArgs)       \
  X(ssd_step, SsdStepArgs)               \
  X(affine_scan_forward, AffineScanArgs) \
  X(affine_scan_backward, AffineScanBackwardArgs)
#define MAMBA_X(name, Args)                 \
  namespace ref {                           \
  void name(Stream&, const Args&) noexcept; \
  }                                         \
  namespace cuda {                          \
  void name(Stream&, const Args&) noexcept; \
  }
MAMBA_KERNELS(MAMBA_X)
#undef MAMBA_X
}  // namespace mamba

namespace {

using namespace mamba;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

bool grow(Stream& s, int64_t bytes) {
  require(cudaDeviceSynchronize(), "kernels before growing scratch");
  require(cudaFree(s.scratch_data), "cudaFree");
  require(cudaMalloc(&s.scratch_data, bytes), "cudaMalloc of scratch");
  require(cudaMemset(s.scratch_data, 0xff, bytes), "cudaMemset");
  s.scratch_bytes = bytes;
  return true;
}
Stream& gpu() {
  static Stream s = [] {
    Stream made;
    made.grow = grow;
    cudaDeviceProp properties{};
    require(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    made.overlaps = properties.major >= 9;
    return made;
  }();
  return s;
}
Stream& cpu() {
  static Stream s;
  return s;
}
void sync(const char* what) {
  if (gpu().failed != nullptr) {
    std::printf("%s failed: %s: %s\n", what, gpu().failed, gpu().failed_why);
    std::exit(1);
  }
  require(cudaDeviceSynchronize(), what);
}

std::mt19937_64 generator(1);
double uniform(double lo, double hi) {
  return std::uniform_real_distribution<double>(lo, hi)(generator);
}
int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); }

uint16_t to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
float from_bf16(uint16_t b) {
  const uint32_t u = static_cast<uint32_t>(b) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
uint16_t to_f16(float f) {
  const _Float16 h = static_cast<_Float16>(f);
  uint16_t u;
  std::memcpy(&u, &h, 2);
  return u;
}
float from_f16(uint16_t u) {
  _Float16 h;
  std::memcpy(&h, &u, 2);
  return static_cast<float>(h);
}

bool lean = false;  // timing: no values on the host

// rows of width elements, `gap` between rows and `offset` before: f64 on the host, `type` on the
// device; poisoned where nothing was written.
struct Tensor {
  int64_t rows = 0, width = 0, stride = 0, offset = 0;
  DType type = DType::kF32;
  std::vector<double> host;
  unsigned char* device = nullptr;

  Tensor() = default;
  Tensor(int64_t r, int64_t w, DType t, int64_t gap = 0, int64_t off = 0)
      : rows(r),
        width(w),
        stride(w + gap),
        offset(off),
        type(t),
        host(lean ? 0 : static_cast<size_t>(r * (w + gap)), std::nan("")) {
    require(cudaMalloc(&device, bytes() + 16), "cudaMalloc");
    require(cudaMemset(device, 0xff, bytes() + 16), "cudaMemset");
  }
  Tensor(const Tensor&) = delete;
  Tensor(Tensor&& o) noexcept { *this = std::move(o); }
  Tensor& operator=(Tensor&& o) noexcept {
    std::swap(rows, o.rows), std::swap(width, o.width), std::swap(stride, o.stride);
    std::swap(offset, o.offset), std::swap(type, o.type), std::swap(host, o.host);
    std::swap(device, o.device);
    return *this;
  }
  ~Tensor() { cudaFree(device); }

  int64_t size() const { return dtype_size(type); }
  int64_t bytes() const { return (rows * stride + offset) * size(); }
  bool empty() const { return device == nullptr; }
  std::vector<unsigned char> encode() const {
    std::vector<unsigned char> raw(static_cast<size_t>(bytes()), 0xff);
    for (size_t i = 0; i < host.size(); ++i) {
      if (std::isnan(host[i])) continue;
      const float f = static_cast<float>(host[i]);
      unsigned char* to =
          raw.data() + (i + static_cast<size_t>(offset)) * static_cast<size_t>(size());
      const uint16_t half = type == DType::kBF16 ? to_bf16(f) : to_f16(f);
      if (size() == 4)
        std::memcpy(to, &f, 4);
      else
        std::memcpy(to, &half, 2);
    }
    return raw;
  }
  void upload() {
    const auto raw = encode();
    require(cudaMemcpy(device, raw.data(), raw.size(), cudaMemcpyHostToDevice), "upload");
  }
  double rounded(double v) const {
    const float f = static_cast<float>(v);
    return type == DType::kBF16  ? from_bf16(to_bf16(f))
           : type == DType::kF16 ? from_f16(to_f16(f))
                                 : f;
  }
  void fill(double lo, double hi) {
    host.resize(static_cast<size_t>(rows * stride), std::nan(""));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) host[r * stride + i] = rounded(uniform(lo, hi));
    }
    upload();
  }
  // Much data, on the device alone: one block of random values repeated.
  void fill_fast(double lo, double hi) {
    host.resize(1 << 20);
    for (double& v : host) v = uniform(lo, hi);
    std::vector<unsigned char> raw;
    {
      const int64_t r = rows, s = stride, o = offset;
      rows = 1, stride = 1 << 20, offset = 0;
      raw = encode();
      rows = r, stride = s, offset = o;
      host.clear();
    }
    for (int64_t at = 0; at < bytes(); at += static_cast<int64_t>(raw.size())) {
      const int64_t n = std::min<int64_t>(static_cast<int64_t>(raw.size()), bytes() - at);
      require(cudaMemcpy(device + at, raw.data(), n, cudaMemcpyHostToDevice), "upload");
    }
  }
  std::vector<unsigned char> raw() const {
    std::vector<unsigned char> r(static_cast<size_t>(bytes()));
    require(cudaMemcpy(r.data(), device, r.size(), cudaMemcpyDeviceToHost), "download");
    return r;
  }
  std::vector<double> download() const {
    const auto r = raw();
    std::vector<double> v(static_cast<size_t>(rows * stride));
    for (size_t i = 0; i < v.size(); ++i) {
      const unsigned char* from =
          r.data() + (i + static_cast<size_t>(offset)) * static_cast<size_t>(size());
      uint16_t half;
      float f;
      std::memcpy(&half, from, 2);
      if (size() == 4)
        std::memcpy(&f, from, 4);
      else
        f = type == DType::kBF16 ? from_bf16(half) : from_f16(half);
      v[i] = f;
    }
    return v;
  }
  Buf on_gpu() const { return empty() ? Buf() : Buf(device + offset * size(), type); }
  Buf on_cpu() { return empty() ? Buf() : Buf(host.data()); }
  Buf at(bool cuda) { return cuda ? on_gpu() : on_cpu(); }
};

struct Worst {
  std::string name, where;
  double error = 0;
};
std::vector<Worst> worsts;
int failures = 0, checks = 0;
int64_t every = 1;  // of the cases, one in so many: for checkers that are slow

// |got - want| against the largest |want|.
void compare(const std::string& kernel, const std::string& name, const std::string& where,
             Tensor& t) {
  if (t.empty()) return;
  const std::vector<double> got = t.download();
  double largest = 1e-30, error = 0;
  bool gaps = true;
  for (int64_t i = 0; i < t.rows * t.stride; ++i) {
    if (i % t.stride < t.width) largest = std::max(largest, std::fabs(t.host[i]));
  }
  for (int64_t i = 0; i < t.rows * t.stride; ++i) {
    if (i % t.stride >= t.width) {
      gaps &= std::isnan(got[i]);
      continue;
    }
    const double e = std::fabs(got[i] - t.host[i]) / largest;
    if (!(e <= error)) error = std::isnan(e) ? 1e9 : std::max(error, e);
  }
  const char* type = t.type == DType::kF32 ? " f32" : t.type == DType::kBF16 ? " bf16" : " f16";
  const std::string key = kernel + " " + name + type;
  auto at =
      std::find_if(worsts.begin(), worsts.end(), [&](const Worst& w) { return w.name == key; });
  if (at == worsts.end()) at = worsts.insert(at, Worst{key, where, 0});
  if (error > at->error) at->error = error, at->where = where;
  const bool exact = kernel.find("f32") != std::string::npos;
  // Of 16-bit results, sums of differences (which may cancel) are given more.
  const bool differences = kernel.find("ssd_backward") == 0 && (name == "dA" || name == "dbias");
  const double bound = exact ? differences ? 1e-3 : 1e-4 : differences ? 0.05 : 0.02;
  ++checks;
  if (error > bound || !gaps) {
    ++failures;
    if (failures < 40) {
      std::printf("FAIL %s: %.3g%s | %s\n", key.c_str(), error, gaps ? "" : " gap written",
                  where.c_str());
    }
  }
}

}  // namespace
