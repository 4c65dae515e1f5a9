// SPDX-License-Identifier: Apache-2.0
// Buffers of a case, and the list of all cases.
#include "bench/kernel_cases.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/json.h"
#include "base/rng.h"

namespace mamba {

namespace {
constexpr const char* kType = "type";
}  // namespace

int64_t Shape::operator[](const std::string& name) const {
  for (const auto& [key, value] : sizes_) {
    if (key == name) return value;
  }
  MAMBA_CHECK(!"a size that the sample shape has");
  return 0;
}

void Shape::set(const std::string& name, int64_t value) {
  for (auto& [key, old] : sizes_) {
    if (key != name) continue;
    const int64_t low = old == 0 ? 0 : 1, high = old == 0 ? 1 : int64_t{1} << 31;
    if (value < low || value > high) {
      fail(ErrorCode::kInvalidArgument, "[bench] expected {} in {}..{}, got {}", name, low, high,
           value);
    }
    old = value;
    return;
  }
  fail(ErrorCode::kInvalidArgument, "[bench] expected sizes named as in {}, got '{}'", text(),
       name);
}

void Shape::set_type(const std::string& name) {
  std::string names;
  for (int type = 0; type <= static_cast<int>(DType::kIQ4_NL); ++type) {
    const DType dtype = static_cast<DType>(type);
    if (!is_quantized(dtype)) continue;
    if (name == dtype_name(dtype)) return set(kType, type);
    names += (names.empty() ? "" : ", ") + std::string(dtype_name(dtype));
  }
  fail(ErrorCode::kInvalidArgument, "[--shape] expected type as one of {}, got '{}'", names,
       printable(name, 40));
}

std::string Shape::multiplies() const {
  for (const auto& [key, value] : sizes_) {
    if (key == kType) return "int8";
    if (key == "bf16" && value == 1) return "bf16";
  }
  return "f32";
}

std::string Shape::text() const {
  std::string text;
  for (const auto& [key, value] : sizes_) {
    const std::string shown =
        key == kType ? dtype_name(static_cast<DType>(value)) : std::to_string(value);
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key, shown);
  }
  return text;
}

KernelCase::Tensor& KernelCase::add(DType dtype, int64_t count, bool output) {
  tensors_.push_back(
      {AlignedBlock(count * dtype_size(dtype), "a benchmark", memory_), dtype, count, output, {}});
  cost.bytes += static_cast<double>(count * dtype_size(dtype));
  return tensors_.back();
}

std::vector<float> KernelCase::random(int64_t count, double low, double high) {
  std::vector<float> values(static_cast<size_t>(count));
  const CounterRng rng(7, streams_++);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(rng.uniform(i, low, high));
  }
  return values;
}

CBuf KernelCase::in(int64_t count, double low, double high) {
  const Tensor& t = add(DType::kF32, count, false);
  memory_.copy_in(t.block.data(), random(count, low, high).data(), t.block.size());
  return CBuf(t.block.data(), t.dtype);
}

CBuf KernelCase::ids(int64_t count, int64_t high) {
  const Tensor& t = add(DType::kI32, count, false);
  const CounterRng rng(7, streams_++);
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(high)));
  }
  memory_.copy_in(t.block.data(), values.data(), t.block.size());
  return CBuf(t.block.data(), t.dtype);
}

Buf KernelCase::out(int64_t count, DType dtype) {
  const Tensor& t = add(dtype, count, true);
  return Buf(t.block.data(), t.dtype);
}

Buf KernelCase::room(int64_t count) {
  const Tensor& t = add(DType::kF32, count, false);
  cost.bytes -= static_cast<double>(count * dtype_size(t.dtype));
  return Buf(t.block.data(), t.dtype);
}

Buf KernelCase::inout(int64_t count, double low, double high) {
  Tensor& t = add(DType::kF32, count, true);
  cost.bytes += static_cast<double>(count * dtype_size(t.dtype));
  t.first = random(count, low, high);
  memory_.copy_in(t.block.data(), t.first.data(), t.block.size());
  return Buf(t.block.data(), t.dtype);
}

void KernelCase::reset() {
  for (Tensor& t : tensors_) {
    if (!t.first.empty()) memory_.copy_in(t.block.data(), t.first.data(), t.block.size());
  }
}

std::vector<std::vector<double>> KernelCase::results() const {
  std::vector<std::vector<double>> all;
  for (const Tensor& t : tensors_) {
    if (!t.output) continue;
    std::vector<double> values(static_cast<size_t>(t.count));
    const HostView view(memory_, CBuf(t.block.data(), t.dtype), t.count);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = t.dtype == DType::kF64   ? view.as<double>()[i]
                  : t.dtype == DType::kI32 ? view.as<int32_t>()[i]
                                           : view.as<float>()[i];
    }
    all.push_back(std::move(values));
  }
  return all;
}

const std::vector<KernelEntry>& kernel_entries() {
  static const std::vector<KernelEntry> kEntries = [] {
    std::vector<KernelEntry> entries = dense_kernel_entries();
    for (const auto& more : {quant_kernel_entries(), sequence_kernel_entries()}) {
      entries.insert(entries.end(), more.begin(), more.end());
    }
    return entries;
  }();
  return kEntries;
}

}  // namespace mamba
