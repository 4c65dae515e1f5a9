// SPDX-License-Identifier: Apache-2.0
// The two limits that every kernel is held against, measured where it runs.
#pragma once

#include <string>
#include <utility>

#include "device/device.h"

namespace mamba {

struct Limits {
  std::string hardware;
  bool gpu = false;
  // CPU: reads of a buffer several times larger than the last cache, all threads. GPU: bytes that a
  // large copy reads and writes.
  double read_gb_per_s = 0;
  // CPU: independent fused multiply-adds in registers, all threads. GPU: a large product in f32.
  double f32_gflop_per_s = 0;
  // The same in other types; 0 where there are no instructions for it, and on a GPU.
  double bf16_gop_per_s = 0, int8_gop_per_s = 0;

  // The type whose multiply-adds limit work in `type`, and their rate: f32 where a type has none.
  std::pair<std::string, double> rate(const std::string& type) const;
};

// Takes about half a second.
Limits measure_limits(Device& device);

}  // namespace mamba
