// SPDX-License-Identifier: Apache-2.0
// Looking up tensors with helpful errors, and their elements in other types.
#include "formats/tensor_table.h"

#include <string.h>

#include <algorithm>
#include <cmath>

#include "base/bf16.h"
#include "base/check.h"
#include "base/f16.h"
#include "base/json.h"
#include "base/near_names.h"
#include "quant/dequantize.h"

namespace mamba {
namespace {

constexpr int64_t kBlockElements = 1 << 20;

// Up to three names of the table that look most like `name`.
std::string nearest(const std::string& name, const TensorTable& table) {
  std::vector<std::string> stored;
  for (const TensorInfo& t : table.tensors()) stored.push_back(table.name_in_file(t.name));
  const std::vector<std::string_view> names(stored.begin(), stored.end());
  return names.empty() ? "no tensors at all" : near_names(name, names);
}

// out[i] = convert(element begin + i of type T), for data of any alignment.
template <class T, class Out, class Convert>
void convert_range(const TensorInfo& tensor, int64_t begin, int64_t count, Out* out,
                   Convert convert) {
  const char* from =
      static_cast<const char*>(tensor.data) + begin * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; ++i) {
    T value;
    memcpy(&value, from + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    out[i] = convert(value);
  }
}

// False if a finite value became infinite.
template <class T, class Convert>
bool round_range(const float* values, int64_t count, void* out, Convert convert) {
  char* to = static_cast<char*>(out);
  bool good = true;
  for (int64_t i = 0; i < count; ++i) {
    const T rounded = convert(values[i]);
    good = good && (std::isfinite(to_f32(rounded)) || !std::isfinite(values[i]));
    memcpy(to + i * static_cast<int64_t>(sizeof(T)), &rounded, sizeof(T));
  }
  return good;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

void read_to_f32(const TensorInfo& tensor, float* out) {
  read_to_f32(tensor, 0, tensor.count(), out);
}

void read_to_f32(const TensorInfo& tensor, int64_t begin, int64_t count, float* out) {
  if (count == 0) return;
  if (is_quantized(tensor.dtype)) {
    MAMBA_CHECK(begin % block_elements(tensor.dtype) == 0);
    const char* data = static_cast<const char*>(tensor.data);
    return dequantize(tensor.dtype, data + dtype_bytes(tensor.dtype, begin), count, out);
  }
  switch (tensor.dtype) {
    case DType::kF32:
      memcpy(out, static_cast<const char*>(tensor.data) + 4 * begin,
             static_cast<size_t>(count) * 4);
      return;
    case DType::kBF16:
      return convert_range<bf16>(tensor, begin, count, out, [](bf16 v) { return to_f32(v); });
    case DType::kF16:
      return convert_range<f16>(tensor, begin, count, out, [](f16 v) { return to_f32(v); });
    case DType::kF64:
      return convert_range<double>(tensor, begin, count, out,
                                   [](double v) { return static_cast<float>(v); });
    default:
      fail(ErrorCode::kUnsupported,
           "[weights] expected tensor \"{}\" as f32, bf16, f16 or f64, got {}; convert the model",
           printable(tensor.name, 200), dtype_name(tensor.dtype));
  }
}

bool write_from_f32(const float* values, int64_t count, DType dtype, void* out) {
  if (dtype == DType::kF16) return round_range<f16>(values, count, out, to_f16);
  if (dtype == DType::kBF16) {
    return round_range<bf16>(values, count, out, [](float v) { return to_bf16(v); });
  }
  MAMBA_CHECK(dtype == DType::kF32);
  memcpy(out, values, static_cast<size_t>(count) * 4);
  return true;
}

std::vector<int64_t> read_to_i64(const TensorInfo& tensor) {
  std::vector<int64_t> out(static_cast<size_t>(tensor.count()));
  const auto widen = [](auto v) { return static_cast<int64_t>(v); };
  switch (tensor.dtype) {
    case DType::kI64:
      convert_range<int64_t>(tensor, 0, tensor.count(), out.data(), widen);
      break;
    case DType::kI32:
      convert_range<int32_t>(tensor, 0, tensor.count(), out.data(), widen);
      break;
    case DType::kU8:
      convert_range<uint8_t>(tensor, 0, tensor.count(), out.data(), widen);
      break;
    default:
      fail(ErrorCode::kUnsupported,
           "[weights] expected tensor \"{}\" as i64, i32 or u8, got {}; convert the file",
           printable(tensor.name, 200), dtype_name(tensor.dtype));
  }
  return out;
}

const TensorInfo* TensorTable::find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& t, std::string_view key) { return t.name < key; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

const TensorInfo& TensorTable::get(std::string_view name) const {
  const TensorInfo* found = find(name);
  if (found == nullptr) {
    const std::string stored = name_in_file(std::string(name));
    fail(ErrorCode::kBadFile,
         "[{}] expected a tensor \"{}\", found none; the nearest of {} names: {}; do {} and the "
         "weights belong together?",
         where_, printable(stored, 200), tensors_.size(), nearest(stored, *this), config_name());
  }
  return *found;
}

const TensorInfo& TensorTable::get(std::string_view name, const std::vector<int64_t>& shape) const {
  const TensorInfo& tensor = get(name);
  if (tensor.shape != shape) {
    fail(ErrorCode::kBadFile,
         "[{}] expected tensor \"{}\" of shape {}, got {}; do {} and the weights belong together?",
         where_, printable(name_in_file(tensor.name), 200),
         shape_text(shape_in_file(tensor.name, shape)),
         shape_text(shape_in_file(tensor.name, tensor.shape)), config_name());
  }
  return tensor;
}

void TensorTable::sort() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
}

int64_t count_elements(const TensorData& tensor) {
  int64_t count = 1;
  for (const int64_t size : tensor.shape) {
    MAMBA_CHECK(size >= 0 && !__builtin_mul_overflow(count, size, &count));
  }
  return count;
}

int64_t count_bytes(const TensorData& tensor) {
  int64_t bytes = 0;
  const int64_t count = count_elements(tensor), block = block_elements(tensor.dtype);
  MAMBA_CHECK(count % block == 0);
  MAMBA_CHECK(!__builtin_mul_overflow(count / block, block_bytes(tensor.dtype), &bytes));
  MAMBA_CHECK(bytes == 0 || tensor.data != nullptr || tensor.fill != nullptr);
  return bytes;
}

void for_each_block(const TensorData& tensor,
                    const std::function<void(const void* bytes, size_t count)>& sink) {
  const int64_t total = count_elements(tensor);
  if (tensor.data != nullptr || total == 0) {
    return sink(tensor.data, static_cast<size_t>(count_bytes(tensor)));
  }
  const int64_t largest = dtype_bytes(tensor.dtype, std::min(total, kBlockElements));
  std::vector<char> block(static_cast<size_t>(largest));
  for (int64_t at = 0; at < total; at += kBlockElements) {
    const int64_t count = std::min(kBlockElements, total - at);
    tensor.fill(at, count, block.data());
    sink(block.data(), static_cast<size_t>(dtype_bytes(tensor.dtype, count)));
  }
}

}  // namespace mamba
