// SPDX-License-Identifier: Apache-2.0
// The limits of a CPU from machine.h, those of a GPU by its own copies and products.
#include "bench/roofline.h"

#include <algorithm>

#include "bench/machine.h"
#include "device/arena.h"

namespace mamba {
namespace {

// The best of a few runs, in seconds.
double best_time(Device& device, const std::function<void()>& body) {
  double best = device.time(body);
  for (int i = 0; i < 10; ++i) best = std::min(best, device.time(body));
  return best;
}

Limits measure_gpu(Device& device) {
  constexpr int64_t kBytes = int64_t{1} << 30, kSide = 4096;
  DeviceMemory& memory = device.memory();
  Limits limits{device.hardware(), true};
  const AlignedBlock from(kBytes, "measuring copies", memory),
      to(kBytes, "measuring copies", memory);
  const double copy = best_time(device, [&] { memory.copy(to.data(), from.data(), kBytes); });
  limits.read_gb_per_s = 2e-9 * static_cast<double>(kBytes) / copy;
  LinearArgs args{};
  args.M = args.N = args.K = kSide;
  args.product = Product::kF32;
  args.x = CBuf(from.data(), DType::kF32), args.x_stride = kSide;
  args.weight = args.x + kSide * kSide;
  args.y = Buf(to.data(), DType::kF32), args.y_stride = kSide;
  const double product =
      best_time(device, [&] { device.kernels().linear_forward(device.stream(), args); });
  device.sync();
  limits.f32_gflop_per_s = 2e-9 * static_cast<double>(kSide * kSide * kSide) / product;
  return limits;
}

}  // namespace

Limits measure_limits(Device& device) {
  if (!device.memory().on_host()) return measure_gpu(device);
  constexpr int64_t kReadBytes = int64_t{256} << 20;  // 8 times the last cache of a large core
  const std::string kernels = device.kernels().name;
  const int used = std::max(1, device.threads());
  const auto rate = [&](const char* type) {
    return compute_rate(kernels, type, used, 0.1).gop_per_s;
  };
  return {device.hardware(), false,        read_rate(kernels, kReadBytes, used, 0.2),
          rate("f32"),       rate("bf16"), rate("int8")};
}

std::pair<std::string, double> Limits::rate(const std::string& type) const {
  if (type == "bf16" && bf16_gop_per_s > 0) return {type, bf16_gop_per_s};
  if (type == "int8" && int8_gop_per_s > 0) return {type, int8_gop_per_s};
  return {"f32", f32_gflop_per_s};
}

}  // namespace mamba
