// SPDX-License-Identifier: Apache-2.0
// A pointer with its element type: what kernels take. No ownership, no shape (the args say it).
// Arithmetic is in elements, so that the same model code runs in f32 and in f64.
#pragma once

#include "base/bf16.h"
#include "mamba/dtype.h"

namespace mamba {

namespace detail {
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct dtype_of<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <>
struct dtype_of<uint8_t> {
  static constexpr DType value = DType::kU8;
};
}  // namespace detail

// Read and write.
struct Buf {
  void* data = nullptr;
  DType dtype = DType::kF32;

  Buf() = default;
  MAMBA_INLINE Buf(void* p, DType t) : data(p), dtype(t) {}
  template <class T>
  MAMBA_INLINE Buf(T* p) : data(p), dtype(detail::dtype_of<T>::value) {}

  MAMBA_INLINE explicit operator bool() const { return data != nullptr; }
  template <class T>
  MAMBA_INLINE T* as() const {
    return static_cast<T*>(data);
  }
  // The buffer `elements` further on; a null buffer stays null.
  MAMBA_INLINE Buf operator+(int64_t elements) const {
    return data ? Buf(static_cast<char*>(data) + elements * dtype_size(dtype), dtype) : *this;
  }
};

// Read only.
struct CBuf {
  const void* data = nullptr;
  DType dtype = DType::kF32;

  CBuf() = default;
  MAMBA_INLINE CBuf(const void* p, DType t) : data(p), dtype(t) {}
  MAMBA_INLINE CBuf(const Buf& b) : data(b.data), dtype(b.dtype) {}
  template <class T>
  MAMBA_INLINE CBuf(const T* p) : data(p), dtype(detail::dtype_of<T>::value) {}

  MAMBA_INLINE explicit operator bool() const { return data != nullptr; }
  template <class T>
  MAMBA_INLINE const T* as() const {
    return static_cast<const T*>(data);
  }
  MAMBA_INLINE CBuf operator+(int64_t elements) const {
    return data ? CBuf(static_cast<const char*>(data) + elements * dtype_size(dtype), dtype)
                : *this;
  }
};

}  // namespace mamba
