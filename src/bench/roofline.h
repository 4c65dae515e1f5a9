// SPDX-License-Identifier: Apache-2.0
// The two limits that every kernel is held against, measured where it runs.
#pragma once

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
};

// Takes about half a second.
Limits measure_limits(Device& device);

}  // namespace mamba
